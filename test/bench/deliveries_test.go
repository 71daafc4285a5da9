package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDeliveries(t *testing.T) {
	begun := time.Unix(1e9, 0)
	at := func(ms int) time.Time { return begun.Add(time.Duration(ms) * time.Millisecond) }
	writes := []written{{at(0), at(10)}, {at(100), at(120)}}
	for name, tc := range map[string]struct {
		watchers [][]arrival
		want     int
		sent     []float64
		answer   []float64
		failure  string
	}{
		"each write to one watcher":  {[][]arrival{{{0, at(15)}}, {{1, at(110)}}}, 1, []float64{15, 10}, []float64{5, 0}, ""},
		"each write to all watchers": {[][]arrival{{{0, at(15)}, {1, at(130)}}, {{0, at(16)}, {1, at(131)}}}, 2, []float64{15, 30, 16, 31}, []float64{5, 10, 6, 11}, ""},
		"a lost event":               {[][]arrival{{{0, at(15)}}}, 1, nil, nil, "write 1 was seen by 0 watchers, want 1"},
		"an event twice":             {[][]arrival{{{0, at(15)}, {0, at(16)}}, {{1, at(110)}}}, 1, nil, nil, "watcher 0 saw write 0 twice"},
		"an event of no write":       {[][]arrival{{{7, at(15)}}}, 1, nil, nil, "watcher 0 saw write 7, which was not made"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := deliveries(writes, tc.watchers, tc.want)
			if tc.failure != "" {
				if err == nil || !strings.Contains(err.Error(), tc.failure) {
					t.Errorf("deliveries = %v, want %q", err, tc.failure)
				}
				return
			}
			if err != nil || !slices.Equal(got.sinceSent, tc.sent) || !slices.Equal(got.sinceAnswer, tc.answer) {
				t.Errorf("deliveries = %v, %v; want %v and %v", got, err, tc.sent, tc.answer)
			}
		})
	}
}

func TestMarkOf(t *testing.T) {
	for name, tc := range map[string]struct {
		line string
		want int
		ok   bool
	}{
		"marked":     {`{"type":"MODIFIED","object":{"metadata":{"annotations":{"a":"b","bench.gantry.dev/write":"42"}}}}`, 42, true},
		"of another": {`{"type":"MODIFIED","object":{"metadata":{"annotations":{"a":"b"}}}}`, 0, false},
		"owned only": {`{"object":{"metadata":{"managedFields":[{"fieldsV1":{"f:bench.gantry.dev/write":{}}}]}}}`, 0, false},
		"no number":  {`{"annotations":{"bench.gantry.dev/write":"x"}}`, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := markOf([]byte(tc.line)); got != tc.want || ok != tc.ok {
				t.Errorf("markOf = %d, %v; want %d, %v", got, ok, tc.want, tc.ok)
			}
		})
	}
}
