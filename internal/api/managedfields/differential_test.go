package managedfields

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// histories is raised for a long search.
var histories = flag.Uint64("histories", 16, "histories of each kind")

// tally counts what became of the writes of a test.
type tally struct{ writes, refused, cleared, owned int }

// history takes one object of a kind through writes at random, each with both managers, and
// fails where they differ. It must run in a bubble, so that both see the same time.
func history(t *testing.T, tracker *Tracker, k testKind, seed uint64, writes int, count *tally) {
	t.Helper()
	g := generator{rand.New(rand.NewPCG(seed, 1))}
	v := newViews(t, tracker, k)
	live := k.empty()
	for i := range writes {
		if g.chance(40) {
			time.Sleep(time.Duration(g.IntN(3)) * time.Second / 2)
		}
		sub, manager := "", fmt.Sprintf("manager-%d", g.IntN(4))
		if live.GetUID() != "" {
			sub = v.names[g.IntN(len(v.names))]
		}
		if g.chance(2) {
			manager = ""
		}
		if i > 3 && g.chance(10) {
			manager = fmt.Sprintf("many-%d", g.IntN(12)) // until upstream merges the oldest
		}
		if live.GetUID() != "" && g.chance(15) {
			config := &unstructured.Unstructured{Object: g.document(live)}
			if merged, err := v.upstream[sub].Apply(live.DeepCopyObject(), config, "applier", true); err == nil {
				live = merged.(Object)
			}
			continue
		}
		next := g.next(k, live)
		live = write(t, fmt.Sprintf("%s seed %d write %d", k.gvk().Kind, seed, i), v, sub, manager, live, next, count)
		if live.GetUID() == "" {
			live.SetUID(types.UID("uid"))
			live.SetResourceVersion("1")
		}
		if len(live.GetManagedFields()) == 0 && g.chance(70) {
			live = k.empty() // nobody will own its fields again
		}
	}
}

// next is what a client makes of live.
func (g generator) next(k testKind, live Object) Object {
	next := live.DeepCopyObject().(Object)
	entries := next.GetManagedFields()
	next.SetManagedFields(nil)
	switch {
	case live.GetUID() == "":
		g.fill(reflect.ValueOf(next).Elem(), 0)
		next.SetUID("")
	case g.chance(10): // as it is
	case g.chance(8):
		next = k.empty()
		g.fill(reflect.ValueOf(next).Elem(), 0)
	default:
		share := [...]int{4, 15, 60}[g.IntN(3)]
		for i, v := 0, reflect.ValueOf(next).Elem(); i < v.NumField(); i++ {
			if v.Type().Field(i).Name != "TypeMeta" {
				g.change(v.Field(i), share, 1)
			}
		}
	}
	next.SetManagedFields(g.clientEntries(entries))
	if g.chance(30) {
		if data, err := json.Marshal(next); err == nil { // it fails where a client's entry is broken
			next = k.newObj()
			if err := json.Unmarshal(data, next); err != nil {
				panic(err)
			}
		}
	}
	next.GetObjectKind().SetGroupVersionKind(k.gvk())
	return next
}

// clientEntries is what a client sends as managedFields after it read entries.
func (g generator) clientEntries(entries []metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	switch n := g.IntN(100); {
	case n < 20:
		return nil
	case n < 22:
		return []metav1.ManagedFieldsEntry{}
	case n < 24:
		return []metav1.ManagedFieldsEntry{{}}
	case n >= 32 || len(entries) == 0:
		return entries
	}
	e := &entries[g.IntN(len(entries))]
	switch g.IntN(8) {
	case 0:
		e.FieldsV1 = metav1.NewFieldsV1([]string{`{}`, `{"f:metadata":{"f:labels":{".":{},"f:ka":{}},"f:managedFields":{}}}`, ` {"f:spec" : {"f:a":{}, "f:A":{}}}`}[g.IntN(3)])
	case 1:
		e.FieldsV1 = metav1.NewFieldsV1([]string{``, `{`, `[]`, `{"f:spec":{"f:containers":{"v:5":{}}}}`, `{"z:a":{}}`, `{"f:spec":{}}`}[g.IntN(6)])
	case 2:
		e.APIVersion = "v1beta7"
	case 3:
		e.Time = nil
	case 4:
		e.Manager = "é<\"&>"
	case 5:
		e.Subresource = "status"
	case 6:
		entries = append(entries, *e)
	case 7:
		entries = append(entries[:0], entries[1:]...)
	}
	return entries
}

// write makes one write with both managers and returns the new object.
func write(t *testing.T, what string, v views, sub, manager string, live, next Object, count *tally) Object {
	t.Helper()
	before, sent := live.DeepCopyObject(), next.DeepCopyObject()
	want := v.upstream[sub].UpdateNoErrors(live.DeepCopyObject(), next.DeepCopyObject(), manager).(Object)
	count.writes++
	if len(want.GetManagedFields()) == 0 {
		count.cleared++
	}
	if !v.fast[sub].Update(live, next, manager) {
		count.refused++
		if !reflect.DeepEqual(next, sent) {
			t.Fatalf("%s: refused, and changed the object", what)
		}
		next = want
	} else if !reflect.DeepEqual(next.GetManagedFields(), want.GetManagedFields()) {
		t.Fatalf("%s by %q through %q: managedFields are\n%s\nwant\n%s\nbefore\n%s", what, manager, sub,
			show(next.GetManagedFields()), show(want.GetManagedFields()), show(live.GetManagedFields()))
	} else {
		count.owned += len(next.GetManagedFields())
	}
	if !reflect.DeepEqual(live, before) {
		t.Fatalf("%s: the live object was changed", what)
	}
	if !reflect.DeepEqual(next, want) {
		t.Fatalf("%s: the objects differ in more than their managedFields", what)
	}
	return next
}

func show(entries []metav1.ManagedFieldsEntry) string {
	data, _ := json.MarshalIndent(entries, "", " ")
	return string(data)
}

func quiet() { klog.LogToStderr(false); klog.SetOutput(io.Discard) }

// TestSameAsUpstream takes every kind through thousands of writes.
func TestSameAsUpstream(t *testing.T) {
	quiet()
	tracker := newTracker(t)
	for _, k := range testKinds() {
		t.Run(k.gvk().GroupKind().String()+"/"+k.gvk().Version, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var count tally
				for seed := range *histories {
					history(t, tracker, k, seed, 16, &count)
				}
				t.Logf("%d writes: %d refused, %d left without fields, %d entries", count.writes, count.refused, count.cleared, count.owned)
				if lacksKeys(k) {
					return // all of it is upstream's
				}
				if count.refused*4 > count.writes || count.owned == 0 {
					t.Errorf("%d of %d writes were left to upstream, %d entries were made", count.refused, count.writes, count.owned)
				}
			})
		})
	}
}

// lacksKeys reports whether the kind has a list deep inside whose items may lack their key.
func lacksKeys(k testKind) bool {
	return slices.Contains([]string{"FlowSchema", "PriorityLevelConfiguration", "StorageVersion"}, k.gvk().Kind)
}

func FuzzSameAsUpstream(f *testing.F) {
	quiet()
	tracker := newTracker(f)
	for i := range testKinds() {
		f.Add(uint64(1000+i), uint8(i), uint8(6))
	}
	f.Fuzz(func(t *testing.T, seed uint64, kind, writes uint8) {
		synctest.Test(t, func(t *testing.T) {
			history(t, tracker, testKinds()[int(kind)%len(testKinds())], seed, int(writes%40), &tally{})
		})
	})
}
