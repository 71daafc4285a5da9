package server

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"gantry.dev/gantry/internal/lifecycle"
)

// How much the heap may grow between two collections, in percent of what is in use: a small heap is collected rarely, for speed; a
// large one, of a cluster with thousands of pods, is held closer, for else half of the memory would be garbage.
const (
	smallHeap     = 256 << 20 // bytes in use
	largeHeap     = 384 << 20
	smallPercent  = 100 // Go's default
	largePercent  = 50
	paceEvery     = 2 * time.Second
	liveHeapBytes = "/gc/heap/live:bytes"
)

// growth returns the percentage for a heap of which live bytes are in use, given the one now.
func growth(live uint64, now int) int {
	switch {
	case live >= largeHeap:
		return largePercent
	case live < smallHeap:
		return smallPercent
	}
	return now // in between nothing flips
}

// pace fits the collector to the heap until ctx ends, unless the environment says how to collect.
func pace(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	sample := []metrics.Sample{{Name: liveHeapBytes}}
	percent := smallPercent
	for lifecycle.Pause(ctx, paceEvery) {
		metrics.Read(sample)
		if next := growth(sample[0].Value.Uint64(), percent); next != percent {
			debug.SetGCPercent(next)
			percent = next
		}
	}
	return nil
}
