package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestIndexedWatchSeesWhatAFilterSees changes objects at random and compares watches with and without the index.
func TestIndexedWatchSeesWhatAFilterSees(t *testing.T) {
	s, _ := start(t, Options{Dir: t.TempDir()})
	random := rand.New(rand.NewPCG(1, 2))
	colors := []string{"red", "blue", "green", ""}
	entries := make(map[string]*Entry)
	step := func(i int) {
		name, color := fmt.Sprint("c", random.IntN(6)), colors[random.IntN(len(colors))]
		key := "default/" + name
		var err error
		switch e := entries[key]; {
		case e == nil:
			entries[key] = mustCreate(t, s, name, color, fmt.Sprint(i))
		case random.IntN(4) == 0:
			_, err = s.Delete(t.Context(), "configmaps", key, e.Rev)
			delete(entries, key)
		default:
			entries[key], err = s.Update(t.Context(), "configmaps", key, e.Rev, configMap(name, color, fmt.Sprint(i)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		step(i)
	}
	since := s.Revision()
	watches := make(map[string][2]*Watch) // by color: without and with the index
	for _, color := range colors[:3] {
		for _, initial := range []bool{false, true} {
			opts := WatchOptions{Initial: initial, Since: since, Filter: func(e *Entry) bool { return e.Object.GetLabels()["color"] == color }}
			var pair [2]*Watch
			for i := range pair {
				if i == 1 {
					opts.Index, opts.Value = "color", color
				}
				w, err := s.Watch(t.Context(), "configmaps", opts)
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				pair[i] = w
			}
			watches[fmt.Sprint(color, initial)] = pair
		}
	}
	for i := range 300 {
		step(100 + i)
	}
	for name, pair := range watches {
		plain, indexed := pair[0].queue, pair[1].queue
		if len(plain) < 20 || !slices.EqualFunc(plain, indexed, sameEvent) {
			t.Errorf("%s: without the index %v, with it %v", name, describe(plain), describe(indexed))
		}
	}
}

func sameEvent(a, b Event) bool {
	return a.Type == b.Type && a.Rev == b.Rev && a.Entry.Key == b.Entry.Key
}

func TestIndexedWatchesAreForgotten(t *testing.T) {
	s, _ := start(t, Options{Dir: t.TempDir()})
	table, err := s.table("configmaps")
	if err != nil {
		t.Fatal(err)
	}
	opts := WatchOptions{Since: s.Revision(), Index: "color", Value: "red", Queue: 1, Filter: func(e *Entry) bool { return e.Object.GetLabels()["color"] == "red" }}
	closed, err := s.Watch(t.Context(), "configmaps", opts)
	if err != nil {
		t.Fatal(err)
	}
	slow, err := s.Watch(t.Context(), "configmaps", opts)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	closed.Close()
	for i := range 3 {
		mustCreate(t, s, fmt.Sprint("c", i), "red", "1")
	}
	if n := len(table.watchers.under); n != 0 {
		t.Errorf("%d index values have watches after one was closed and one was too slow", n)
	}
	opts.Since = s.Revision()
	if _, err := s.Watch(t.Context(), "configmaps", opts); err != nil {
		t.Fatal(err)
	}
	s.EndWatches("configmaps")
	if n := len(table.watchers.under); n != 0 {
		t.Errorf("%d index values have watches after all were ended", n)
	}
}
