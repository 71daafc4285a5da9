package server

import "testing"

func TestGrowth(t *testing.T) {
	for name, c := range map[string]struct {
		live uint64
		now  int
		want int
	}{
		"a small heap":                           {live: 40 << 20, now: smallPercent, want: smallPercent},
		"it has grown large":                     {live: largeHeap, now: smallPercent, want: largePercent},
		"it shrinks a little and stays as it is": {live: largeHeap - 1, now: largePercent, want: largePercent},
		"it grows a little and stays as it is":   {live: smallHeap, now: smallPercent, want: smallPercent},
		"it has shrunk":                          {live: smallHeap - 1, now: largePercent, want: smallPercent},
	} {
		t.Run(name, func(t *testing.T) {
			if got := growth(c.live, c.now); got != c.want {
				t.Errorf("growth(%d, %d) = %d, want %d", c.live, c.now, got, c.want)
			}
		})
	}
}
