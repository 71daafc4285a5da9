package managedfields

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestRefuses names what is left to upstream; the object must stay as it was.
func TestRefuses(t *testing.T) {
	v := newViews(t, newTracker(t), testKinds()[0])
	entry := func(change func(*metav1.ManagedFieldsEntry)) []metav1.ManagedFieldsEntry {
		e := metav1.ManagedFieldsEntry{
			Manager: "a", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", FieldsType: "FieldsV1",
			FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:nodeName":{}}}`),
		}
		change(&e)
		return []metav1.ManagedFieldsEntry{e}
	}
	var many []metav1.ManagedFieldsEntry
	for i := range 11 {
		many = append(many, entry(func(e *metav1.ManagedFieldsEntry) { e.Manager = fmt.Sprint(i) })...)
	}
	for name, entries := range map[string][]metav1.ManagedFieldsEntry{
		"a reset":                   {},
		"a reset by an empty entry": {{}},
		"another version":           entry(func(e *metav1.ManagedFieldsEntry) { e.APIVersion = "v2" }),
		"another operation":         entry(func(e *metav1.ManagedFieldsEntry) { e.Operation = "Guess" }),
		"another type of fields":    entry(func(e *metav1.ManagedFieldsEntry) { e.FieldsType = "FieldsV2" }),
		"no fields":                 entry(func(e *metav1.ManagedFieldsEntry) { e.FieldsV1 = nil }),
		"broken fields":             entry(func(e *metav1.ManagedFieldsEntry) { e.FieldsV1 = metav1.NewFieldsV1(`{"f:`) }),
		"fields of an older schema": entry(func(e *metav1.ManagedFieldsEntry) {
			e.FieldsV1 = metav1.NewFieldsV1(`{"f:spec":{"f:nodeSelector":{"f:a":{}}}}`)
		}),
		"a manager that is there twice": slices.Concat(entry(func(*metav1.ManagedFieldsEntry) {}), entry(func(*metav1.ManagedFieldsEntry) {})),
		"too many updaters":             many,
	} {
		t.Run(name, func(t *testing.T) {
			live := templatePod()
			live.UID = "p1"
			next := live.DeepCopy()
			next.Labels["app"], next.ManagedFields = "other", entries
			if v.fast[""].Update(live, next, "me") {
				t.Error("Update = true, want it to be refused")
			}
			if len(next.ManagedFields) != len(entries) || next.ManagedFields == nil {
				t.Errorf("the refused object has %d entries, want its %d", len(next.ManagedFields), len(entries))
			}
		})
	}
	t.Run("another kind", func(t *testing.T) {
		if v.fast[""].Update(&corev1.Secret{}, &corev1.Secret{}, "me") {
			t.Error("Update of a Secret by the view of pods = true")
		}
	})
}

func TestNothingChangedMovesNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newViews(t, newTracker(t), testKinds()[0])
		live := runningPod(v)
		time.Sleep(time.Hour)
		for _, sub := range []string{"", "status"} {
			next := live.DeepCopy()
			if !v.fast[sub].Update(live, next, "agent") {
				t.Fatal("Update = false")
			}
			for i, e := range next.ManagedFields {
				if !e.Time.Equal(live.ManagedFields[i].Time) {
					t.Errorf("through %q the time of %s moved from %s to %s", sub, e.Manager, live.ManagedFields[i].Time, e.Time)
				}
			}
		}
	})
}

// TestMemoryIsBounded writes objects that share nothing.
func TestMemoryIsBounded(t *testing.T) {
	tracker, err := New(converter(), Options{SetBytes: 64 << 10, OutcomeBytes: 32 << 10})
	if err != nil {
		t.Fatal(err)
	}
	v := newViews(t, tracker, testKinds()[0])
	for i := range 2000 {
		pod := templatePod()
		pod.Labels = map[string]string{fmt.Sprint("label-", i/2): "x"} // twice, so that it is worth remembering
		if !v.fast[""].Update(testKinds()[0].empty(), pod, "controller") {
			t.Fatal("Update = false")
		}
	}
	check := func(what string, used, most, items int) {
		t.Helper()
		if used > most || items == 0 || used == 0 {
			t.Errorf("%s: %d items of %d bytes, want some and no more than %d bytes", what, items, used, most)
		}
	}
	check("sets", tracker.sets.cache.used, 64<<10, len(tracker.sets.cache.items))
	check("outcomes", tracker.outcomes.used, 32<<10, len(tracker.outcomes.items))
}

func TestCacheForgetsTheOldest(t *testing.T) {
	c := newCache[int](4 * (itemBytes + 1 + 8))
	for i := range 4 {
		c.put([]byte{byte(i)}, i, 8)
	}
	if got, ok := c.get([]byte{0}); !ok || got != 0 {
		t.Fatalf("get(0) = %d, %t; want 0, true", got, ok)
	}
	c.put([]byte{4}, 4, 8)
	if _, ok := c.get([]byte{1}); ok {
		t.Error("get(1) found what was not used for longest")
	}
	for _, key := range []byte{0, 2, 3, 4} {
		if got, ok := c.get([]byte{key}); !ok || got != int(key) {
			t.Errorf("get(%d) = %d, %t; want %d, true", key, got, ok, key)
		}
	}
	if got := c.put([]byte{0}, 9, 8); got != 0 {
		t.Errorf("put of a known key = %d, want what is kept, 0", got)
	}
	if c.put([]byte{9}, 9, 1<<20); len(c.items) != 4 {
		t.Errorf("there are %d items after one that is too large, want 4", len(c.items))
	}
}

// TestConcurrentViews shares everything between goroutines; the race detector judges.
func TestConcurrentViews(t *testing.T) {
	tracker := newTracker(t)
	v := newViews(t, tracker, testKinds()[0])
	live := runningPod(v)
	var group sync.WaitGroup
	for n := range 8 {
		group.Go(func() {
			other := testKinds()[n]
			view, err := tracker.View(other.gvk(), "", other.newObj(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			for i := range 200 {
				next := live.DeepCopy()
				next.Status = runningStatus(fmt.Sprintf("10.1.%d.%d", n%2, i), 2e9)
				if !v.fast["status"].Update(live, next, "agent") {
					t.Error("Update = false")
				}
				obj := other.empty()
				obj.SetLabels(map[string]string{fmt.Sprint(i): "x"})
				obj.SetUID(types.UID(""))
				if !view.Update(other.empty(), obj, "me") || len(obj.GetManagedFields()) != 1 {
					t.Errorf("%s has %d entries, want 1", other.gvk().Kind, len(obj.GetManagedFields()))
				}
			}
		})
	}
	group.Wait()
}
