package stats

import "time"

// minWindow is the shortest time over which a rate is computed: metrics-server's resolution for
// containers that are new.
const minWindow = 10 * time.Second

// point is a counter of CPU time at a moment.
type point struct {
	at    time.Time
	nanos uint64
}

// window is the two points of a counter that its rate is computed from.
type window struct {
	from, to point
	round    uint64 // of the sampling that last saw it
}

// add takes a newer value. Values that come sooner than minWindow after the last change nothing.
func (w *window) add(p point) {
	switch {
	case w.to.at.IsZero() || p.nanos < w.to.nanos:
		w.from, w.to = point{}, p
	case p.at.Sub(w.to.at) >= minWindow:
		w.from, w.to = w.to, p
	}
}

// began tells when the counter was 0; it is of use while there is one value only.
func (w *window) began(at time.Time) {
	if w.from.at.IsZero() && !at.IsZero() && w.to.at.Sub(at) >= minWindow {
		w.from = point{at: at}
	}
}

// rate is the CPU time used in a second, in nanoseconds; false while that is not known.
func (w *window) rate() (nanoCores uint64, over time.Duration, ok bool) {
	if w.from.at.IsZero() {
		return 0, 0, false
	}
	over = w.to.at.Sub(w.from.at)
	if over <= 0 {
		return 0, 0, false
	}
	return uint64(float64(w.to.nanos-w.from.nanos) / over.Seconds()), over, true
}
