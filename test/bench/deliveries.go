package main

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
)

// arrival is one event of a watch: the number of the write that it tells of, and when it came.
type arrival struct {
	write int
	at    time.Time
}

// written is one write: when it was sent and when its answer came.
type written struct{ sent, answered time.Time }

// delays are the times in ms that events took to reach their watchers. An event that comes before the answer to its
// write counts 0 from the answer.
type delays struct{ sinceSent, sinceAnswer []float64 }

// deliveries checks that each write was seen by as many watchers as want, once by each, and returns the delays.
func deliveries(writes []written, watchers [][]arrival, want int) (delays, error) {
	var out delays
	seen := make([]int, len(writes))
	for i, arrivals := range watchers {
		mine := make(map[int]bool, len(arrivals))
		for _, a := range arrivals {
			switch {
			case a.write < 0 || a.write >= len(writes):
				return delays{}, fmt.Errorf("watcher %d saw write %d, which was not made", i, a.write)
			case mine[a.write]:
				return delays{}, fmt.Errorf("watcher %d saw write %d twice", i, a.write)
			}
			mine[a.write] = true
			seen[a.write]++
			w := writes[a.write]
			out.sinceSent = append(out.sinceSent, inMilliseconds(a.at.Sub(w.sent)))
			out.sinceAnswer = append(out.sinceAnswer, max(0, inMilliseconds(a.at.Sub(w.answered))))
		}
	}
	for write, n := range seen {
		if n != want {
			return delays{}, fmt.Errorf("write %d was seen by %d watchers, want %d", write, n, want)
		}
	}
	return out, nil
}

func inMilliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// writeMark is the annotation that carries a write's number.
const writeMark = "bench.gantry.dev/write"

// markOf finds the number of the write in the line of an event; false for events of others.
func markOf(line []byte) (int, bool) {
	_, rest, found := bytes.Cut(line, []byte(`"`+writeMark+`":"`))
	if !found {
		return 0, false
	}
	digits, _, found := bytes.Cut(rest, []byte(`"`))
	if !found {
		return 0, false
	}
	n, err := strconv.Atoi(string(digits))
	return n, err == nil
}
