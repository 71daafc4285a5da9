package node

import "testing"

func TestTTLSeconds(t *testing.T) {
	for name, tc := range map[string]struct{ nodes, now, want int }{
		"one, new": {1, -1, 0}, "a hundred": {100, 0, 0}, "a hundred and one": {101, 0, 15}, "shrunk a little": {95, 15, 15},
		"shrunk": {89, 15, 0}, "five hundred and one": {501, 15, 30}, "many": {5000, -1, 300}, "nonsense": {10, 77, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := ttlSeconds(tc.nodes, tc.now); got != tc.want {
				t.Errorf("ttlSeconds(%d, %d) = %d, want %d", tc.nodes, tc.now, got, tc.want)
			}
		})
	}
}
