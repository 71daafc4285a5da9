package main

import (
	"math"
	"slices"
	"time"
)

// series is one figure measured in several rounds.
type series []float64

// median is the middle value, the mean of the two middle ones, or NaN when there are none.
func (s series) median() float64 { return quantile(s, 0.5) }

// quantile is the value below which the share q (0 to 1) of the values lies, interpolated between
// neighbours; NaN when there are no values.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(math.Floor(at))
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// milliseconds turns durations into numbers.
func milliseconds(durations []time.Duration) []float64 {
	out := make([]float64, len(durations))
	for i, d := range durations {
		out[i] = float64(d) / float64(time.Millisecond)
	}
	return out
}
