package gateway

import (
	"maps"
	"strconv"
	"sync/atomic"
	"time"
)

// routeStats counts requests that have ended.
type routeStats struct {
	requests, errors  atomic.Uint64
	bytesIn, bytesOut atomic.Uint64
	codes             [6]atomic.Uint64 // by first digit; 0: none
	latency           [16]atomic.Uint64
	nanos             atomic.Int64
}

// serviceStats counts a service's requests.
type serviceStats struct {
	routeStats
	retries        atomic.Uint64
	ejections      atomic.Uint64
	inFlight, held atomic.Int64
	busy           atomic.Int64 // sum of ends less sum of begins, in nanoseconds since begin
}

// count counts a request that has ended.
func (s *routeStats) count(took time.Duration, status int, in, out int64, failed, timed bool) {
	s.requests.Add(1)
	if failed {
		s.errors.Add(1)
	}
	class := status / 100
	if class < 0 || class > 5 {
		class = 0
	}
	s.codes[class].Add(1)
	s.bytesIn.Add(uint64(max(in, 0)))
	s.bytesOut.Add(uint64(max(out, 0)))
	if !timed {
		return
	}
	s.latency[latencyBucket(took)].Add(1)
	s.nanos.Add(int64(took))
}

// latencyBucket returns the index of the first of LatencyBounds that is not below d.
func latencyBucket(d time.Duration) int {
	bounds := [...]time.Duration{time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
		50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond,
		5 * time.Second, 10 * time.Second, 30 * time.Second, 60 * time.Second}
	i := 0
	for i < len(bounds) && d > bounds[i] {
		i++
	}
	return i
}

// begin counts a request that starts now; at is the time since the gateway's start.
func (s *serviceStats) begin(at time.Duration) {
	s.inFlight.Add(1)
	s.busy.Add(-int64(at))
}

// end counts the same request's end.
func (s *serviceStats) end(at, took time.Duration, status int, in, out int64, failed, timed bool) {
	s.inFlight.Add(-1)
	s.busy.Add(int64(at))
	s.count(took, status, in, out, failed, timed)
}

// read returns the counts.
func (s *routeStats) read() RouteStats {
	out := RouteStats{Requests: s.requests.Load(), Errors: s.errors.Load(), BytesIn: s.bytesIn.Load(), BytesOut: s.bytesOut.Load(),
		Codes: map[string]uint64{}, Seconds: time.Duration(s.nanos.Load()).Seconds()}
	for class := range s.codes {
		if n := s.codes[class].Load(); n > 0 {
			name := "none"
			if class > 0 {
				name = strconv.Itoa(class) + "xx"
			}
			out.Codes[name] = n
		}
	}
	for i := range s.latency {
		out.Latency = append(out.Latency, s.latency[i].Load())
	}
	return out
}

// readAt returns the counts; at is the time since the gateway's start.
func (s *serviceStats) readAt(at time.Duration, labels map[string]string) ServiceStats {
	ended, flying := s.read(), s.inFlight.Load()
	return ServiceStats{Requests: ended.Requests, Errors: ended.Errors, BytesIn: ended.BytesIn, BytesOut: ended.BytesOut, Codes: ended.Codes,
		Latency: ended.Latency, Seconds: ended.Seconds, InFlight: flying, Held: s.held.Load(), Busy: time.Duration(s.busy.Load() + flying*int64(at)).Seconds(),
		Retries: s.retries.Load(), Ejections: s.ejections.Load(), Labels: maps.Clone(labels)}
}
