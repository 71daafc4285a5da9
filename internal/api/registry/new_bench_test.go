package registry

import (
	"runtime"
	"testing"

	"gantry.dev/gantry/internal/store"
)

// BenchmarkNew is what the kinds cost at a start: the registry and the tables of a store.
func BenchmarkNew(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := newRegistry(b, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTables reports how much memory registry and empty tables hold.
func BenchmarkTables(b *testing.B) {
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return float64(stats.HeapAlloc)
	}
	before := heap()
	var keep []any
	for b.Loop() {
		r, err := newRegistry(b, nil)
		if err != nil {
			b.Fatal(err)
		}
		st, err := store.New(store.Options{Dir: b.TempDir(), Kinds: r.Kinds(), NoFsync: true})
		if err != nil {
			b.Fatal(err)
		}
		keep = append(keep, r, st)
	}
	b.ReportMetric((heap()-before)/float64(b.N), "heap-B/op")
	b.ReportMetric(float64(len(keep[0].(*Registry).Kinds())), "tables")
}

// BenchmarkWarm is what the first write waits for: the schemas of all kinds.
func BenchmarkWarm(b *testing.B) {
	r, err := newRegistry(b, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := buildTypeConverter(r.defs); err != nil {
			b.Fatal(err)
		}
	}
}
