package managedfields

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// edit changes values of a configuration, one leaf in share; now and then its structure too.
func (g generator) edit(config any, share int) any {
	switch c := config.(type) {
	case map[string]any:
		for key, value := range c {
			switch {
			case key == "apiVersion" || key == "kind":
			case g.IntN(share*20) == 0:
				delete(c, key)
			case g.IntN(share*60) == 0:
				c["k"+g.word()] = g.word()
			case g.IntN(share*60) == 0:
				c[key] = nil
			default:
				c[key] = g.edit(value, share)
			}
		}
	case []any:
		for i := range c {
			c[i] = g.edit(c[i], share)
		}
		if len(c) > 1 && g.IntN(share*10) == 0 {
			i, j := g.IntN(len(c)), g.IntN(len(c))
			c[i], c[j] = c[j], c[i]
		}
	case string:
		if g.IntN(share) == 0 {
			return g.word()
		}
	case int64:
		if g.IntN(share) == 0 {
			return int64(g.IntN(4))
		}
	case bool:
		if g.IntN(share) == 0 {
			return !c
		}
	}
	return config
}

// applyHistory applies configurations to one object, between updates of others, and fails where View.Apply gives
// another result than upstream's manager. It returns how many applies there were, and how many of them View.Apply made.
func applyHistory(t *testing.T, tracker *Tracker, k testKind, seed uint64, writes int) (applies, made int) {
	t.Helper()
	g := generator{rand.New(rand.NewPCG(seed, 7))}
	v := newViews(t, tracker, k)
	live := k.empty()
	g.fill(reflect.ValueOf(live).Elem(), 0)
	live.SetManagedFields(nil)
	live.SetName("a")
	live.GetObjectKind().SetGroupVersionKind(k.gvk())
	live = v.upstream[""].UpdateNoErrors(k.empty(), live, "creator").(Object)
	live = sent(t, k, live)
	live.SetUID(types.UID("uid"))
	live.SetResourceVersion("1")
	var configs [2]map[string]any
	for i := range writes {
		time.Sleep(time.Duration(g.IntN(3)) * time.Second / 2)
		sub := v.names[g.IntN(len(v.names))]
		if g.chance(15) {
			next := g.next(k, live)
			next.SetUID(live.GetUID())
			live = sent(t, k, v.upstream[sub].UpdateNoErrors(live, next, fmt.Sprint("updater-", g.IntN(3))))
			continue
		}
		who := g.IntN(len(configs))
		if configs[who] == nil || g.chance(10) {
			configs[who] = g.document(live)
		} else if g.chance(85) {
			edited, _ := g.edit(runtime.DeepCopyJSON(configs[who]), [...]int{3, 20, 100}[g.IntN(3)]).(map[string]any)
			configs[who] = edited
		}
		if g.chance(70) {
			sub = "" // where most of a document counts
		}
		manager, force := [...]string{"kubectl", "applier"}[who], g.chance(60)
		config := configs[who]
		before, original := live.DeepCopyObject(), runtime.DeepCopyJSON(config)
		want, err := v.upstream[sub].Apply(live.DeepCopyObject(), &unstructured.Unstructured{Object: runtime.DeepCopyJSON(config)}, manager, force)
		applies++
		got, ok := v.fast[sub].Apply(live, config, manager)
		if !reflect.DeepEqual(live, before) || !reflect.DeepEqual(config, original) {
			t.Fatalf("%s seed %d write %d: the arguments were changed", k.gvk().Kind, seed, i)
		}
		if ok {
			made++
			if err != nil {
				t.Fatalf("%s seed %d write %d: upstream's error is %v", k.gvk().Kind, seed, i, err)
			}
			same(t, fmt.Sprintf("%s seed %d write %d by %s through %q of\n%s", k.gvk().Kind, seed, i, manager, sub, asJSON(t, config)), got, want, live)
		}
		if err == nil {
			live = want.(Object)
		}
	}
	return applies, made
}

// sent is obj as a server has it that got it from a client: there are no pointers to nothing, such as a time that is
// zero, which JSON shows as null.
func sent(t *testing.T, k testKind, obj runtime.Object) Object {
	t.Helper()
	out := k.newObj()
	if err := json.Unmarshal([]byte(asJSON(t, obj)), out); err != nil {
		t.Fatal(err)
	}
	out.GetObjectKind().SetGroupVersionKind(k.gvk())
	return out
}

// same compares two results as they are stored and served.
func same(t *testing.T, what string, got, want, live runtime.Object) {
	t.Helper()
	want = want.DeepCopyObject()
	for _, obj := range []runtime.Object{got, want} {
		obj.GetObjectKind().SetGroupVersionKind(live.GetObjectKind().GroupVersionKind())
		legacyscheme.Scheme.Default(obj)
	}
	if a, b := asJSON(t, got), asJSON(t, want); a != b {
		t.Fatalf("%s:\n%s\nwant\n%s\nlive\n%s", what, a, b, asJSON(t, live))
	}
	type message interface{ Marshal() ([]byte, error) }
	a, aErr := got.(message).Marshal()
	b, bErr := want.(message).Marshal()
	if aErr != nil || bErr != nil || len(a) != len(b) { // maps have no order in protobuf
		t.Fatalf("%s: as protobuf %d bytes, %v; want %d, %v", what, len(a), aErr, len(b), bErr)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestApplySameAsUpstream takes every kind through thousands of applies.
func TestApplySameAsUpstream(t *testing.T) {
	quiet()
	tracker := newTracker(t)
	all, fast := 0, 0
	for _, k := range testKinds() {
		t.Run(k.gvk().GroupKind().String()+"/"+k.gvk().Version, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				applies, made := 0, 0
				for seed := range *histories {
					a, m := applyHistory(t, tracker, k, seed, 24)
					applies, made = applies+a, made+m
				}
				t.Logf("%d of %d applies were quick", made, applies)
				all, fast = all+applies, fast+made
			})
		})
	}
	if fast*20 < all {
		t.Errorf("%d of %d applies were quick: the test shows little", fast, all)
	}
	t.Logf("%d of %d applies were quick", fast, all)
}

func FuzzApplySameAsUpstream(f *testing.F) {
	quiet()
	tracker := newTracker(f)
	for i := range testKinds() {
		f.Add(uint64(1000+i), uint8(i), uint8(10))
	}
	f.Fuzz(func(t *testing.T, seed uint64, kind, writes uint8) {
		synctest.Test(t, func(t *testing.T) {
			applyHistory(t, tracker, testKinds()[int(kind)%len(testKinds())], seed, int(writes%60))
		})
	})
}

// podConfig is a pod as a user applies it.
func podConfig(revision int) map[string]any {
	pod := templatePod()
	pod.Name, pod.GenerateName, pod.OwnerReferences = "a", "", nil
	pod.Annotations = map[string]string{"revision": fmt.Sprint(revision)}
	config, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pod)
	if err != nil {
		panic(err)
	}
	delete(config, "status")
	config["spec"].(map[string]any)["securityContext"] = map[string]any{}
	return config
}

// TestApplyAgainIsQuick makes sure that the usual case does not need upstream.
func TestApplyAgainIsQuick(t *testing.T) {
	v := newViews(t, newTracker(t), testKinds()[0])
	live, err := v.upstream[""].Apply(testKinds()[0].empty(), &unstructured.Unstructured{Object: podConfig(1)}, "kubectl", false)
	if err != nil {
		t.Fatal(err)
	}
	live.(*corev1.Pod).UID = "uid"
	for _, revision := range []int{1, 2} {
		got, ok := v.fast[""].Apply(live.(Object), podConfig(revision), "kubectl")
		if !ok || got.GetAnnotations()["revision"] != fmt.Sprint(revision) {
			t.Errorf("revision %d: Apply = %v, %v", revision, got, ok)
		}
		if _, ok := v.fast[""].Apply(live.(Object), podConfig(revision), "another"); ok {
			t.Error("a new manager was not left to upstream")
		}
	}
}

func BenchmarkApply(b *testing.B) {
	v := newViews(b, newTracker(b), testKinds()[0])
	live, err := v.upstream[""].Apply(testKinds()[0].empty(), &unstructured.Unstructured{Object: podConfig(1)}, "applier", false)
	if err != nil {
		b.Fatal(err)
	}
	config := podConfig(2)
	b.Run("gantry", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := v.fast[""].Apply(live.(Object), config, "applier"); !ok {
				b.Fatal("refused")
			}
		}
	})
	b.Run("upstream", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := v.upstream[""].Apply(live, &unstructured.Unstructured{Object: config}, "applier", false); err != nil {
				b.Fatal(err)
			}
		}
	})
}
