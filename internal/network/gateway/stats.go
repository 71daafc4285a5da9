package gateway

import (
	"maps"
	"strconv"
	"sync/atomic"
	"time"
)

// serviceStats counts a service's requests.
type serviceStats struct {
	requests, errors  atomic.Uint64
	bytesIn, bytesOut atomic.Uint64
	retries           atomic.Uint64
	ejections         atomic.Uint64
	inFlight, held    atomic.Int64
	codes             [6]atomic.Uint64 // by first digit; 0: none
	latency           [16]atomic.Uint64
	nanos             atomic.Int64
	busy              atomic.Int64 // sum of ends less sum of begins, in nanoseconds since begin
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

// read returns the counts; at is the time since the gateway's start.
func (s *serviceStats) read(at time.Duration, labels map[string]string) ServiceStats {
	flying := s.inFlight.Load()
	out := ServiceStats{Requests: s.requests.Load(), Errors: s.errors.Load(), BytesIn: s.bytesIn.Load(), BytesOut: s.bytesOut.Load(),
		InFlight: flying, Held: s.held.Load(), Codes: map[string]uint64{}, Seconds: time.Duration(s.nanos.Load()).Seconds(),
		Busy: time.Duration(s.busy.Load() + flying*int64(at)).Seconds(), Retries: s.retries.Load(), Ejections: s.ejections.Load(), Labels: maps.Clone(labels)}
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
