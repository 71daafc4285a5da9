package main

import (
	"math"
	"testing"
)

func TestQuantile(t *testing.T) {
	for name, tc := range map[string]struct {
		values []float64
		q      float64
		want   float64
	}{
		"one value":           {[]float64{7}, 0.99, 7},
		"middle of three":     {[]float64{9, 1, 5}, 0.5, 5},
		"between two":         {[]float64{1, 2}, 0.5, 1.5},
		"greatest":            {[]float64{3, 1, 2}, 1, 3},
		"least":               {[]float64{3, 1, 2}, 0, 1},
		"a tenth of the last": {[]float64{0, 10}, 0.9, 9},
	} {
		t.Run(name, func(t *testing.T) {
			if got := quantile(tc.values, tc.q); math.Abs(got-tc.want) > 1e-9 {
				t.Errorf("quantile(%v, %v) = %v, want %v", tc.values, tc.q, got, tc.want)
			}
		})
	}
	if got := quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("quantile of nothing = %v, want NaN", got)
	}
}

func TestQuantileLeavesItsArgument(t *testing.T) {
	values := []float64{3, 1, 2}
	quantile(values, 0.5)
	if values[0] != 3 {
		t.Errorf("quantile sorted its argument: %v", values)
	}
}
