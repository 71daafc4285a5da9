//go:build linux

package main

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestDriveIsBoundedByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took, elapsed, err := drive(t.Context(), load{3, time.Second, 1000}, func(context.Context, int, int) error {
			time.Sleep(150 * time.Millisecond)
			return nil
		})
		if err != nil || len(took) != 21 || elapsed != 1050*time.Millisecond {
			t.Errorf("drive = %d requests in %v, %v; want 21 in 1.05s", len(took), elapsed, err)
		}
	})
}

func TestDriveIsBoundedByCount(t *testing.T) {
	var calls atomic.Int64
	took, _, err := drive(t.Context(), load{4, time.Hour, 10}, func(context.Context, int, int) error {
		calls.Add(1)
		return nil
	})
	if err != nil || len(took) != 10 || calls.Load() != 10 {
		t.Errorf("drive = %d requests, %d calls, %v; want 10", len(took), calls.Load(), err)
	}
}

func TestDriveReportsAFailure(t *testing.T) {
	broken := errors.New("broken")
	_, _, err := drive(t.Context(), load{2, time.Hour, 1000}, func(_ context.Context, _, i int) error {
		if i == 3 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) {
		t.Errorf("drive = %v, want %v", err, broken)
	}
}

func TestFillCallsEachOnce(t *testing.T) {
	var calls [100]atomic.Int64
	if err := fill(t.Context(), 8, len(calls), func(_ context.Context, i int) error { calls[i].Add(1); return nil }); err != nil {
		t.Fatal(err)
	}
	for i := range calls {
		if n := calls[i].Load(); n != 1 {
			t.Errorf("object %d was made %d times", i, n)
		}
	}
}

func TestAddedCounterSeesMarksAcrossWrites(t *testing.T) {
	var bound atomic.Int64
	counter := &addedCounter{bound: &bound}
	stream := strings.Repeat(`{"type":"ADDED","object":{"kind":"Pod"}}`+"\n"+`{"type":"MODIFIED","object":{}}`+"\n", 5)
	for _, piece := range strings.SplitAfter(stream, "D") { // cuts in the middle of every mark
		if _, err := counter.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if got := bound.Load(); got != 5 {
		t.Errorf("counted %d, want 5", got)
	}
}

func TestLinesCountsLongLines(t *testing.T) {
	count := 0
	_ = lines(strings.NewReader(strings.Repeat("x", 200_000)+"\nshort\n"), func() { count++ })
	if count != 2 {
		t.Errorf("counted %d lines, want 2", count)
	}
}
