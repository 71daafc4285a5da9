package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/store"
)

var (
	coreEvents = corev1.SchemeGroupVersion.WithResource("events")
	newEvents  = eventsv1.SchemeGroupVersion.WithResource("events")
	hpasV1     = autoscalingv1.SchemeGroupVersion.WithResource("horizontalpodautoscalers")
	hpasV2     = autoscalingv2.SchemeGroupVersion.WithResource("horizontalpodautoscalers")
)

func testEvent(name string) *eventsv1.Event {
	return &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: name}, EventTime: metav1.NowMicro(),
		ReportingController: "test.example/controller", ReportingInstance: "test-1", Action: "Testing", Reason: "Because", Type: corev1.EventTypeNormal,
		Regarding: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "a", APIVersion: "v1"}, Note: "hello",
	}
}

func testAutoscaler(name string) *autoscalingv1.HorizontalPodAutoscaler {
	return &autoscalingv1.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv1.CrossVersionObjectReference{Kind: "Deployment", Name: "web", APIVersion: "apps/v1"},
			MaxReplicas:    5, TargetCPUUtilizationPercentage: ptr[int32](70),
		},
	}
}

func ptr[T any](v T) *T { return &v }

func get[T store.Object](t *testing.T, r *Resource, name string) T {
	t.Helper()
	e, err := r.Get(t.Context(), "default", name, "")
	if err != nil {
		t.Fatalf("Get %s: %v", name, err)
	}
	obj, ok := e.Object.(T)
	if !ok {
		t.Fatalf("Get %s is a %T", name, e.Object)
	}
	return obj
}

func TestEventsInTwoGroups(t *testing.T) {
	r := start(t, Options{})
	core, groups := r.Resource(coreEvents), r.Resource(newEvents)
	made := create(t, r, newEvents, testEvent("a"))
	if made.Note != "hello" || made.APIVersion != "events.k8s.io/v1" {
		t.Errorf("Create answers %+v", made)
	}
	old := get[*corev1.Event](t, core, "a")
	if old.Message != "hello" || old.InvolvedObject.Name != "a" || old.APIVersion != "v1" || old.ResourceVersion != made.ResourceVersion {
		t.Errorf("core/v1 shows %+v", old)
	}
	if got := old.ManagedFields; len(got) != 1 || got[0].APIVersion != "events.k8s.io/v1" || !strings.Contains(got[0].FieldsV1.String(), "f:note") {
		t.Errorf("managedFields are %v", got)
	}
	// Validation is that of the version asked: core/v1 takes an event without action, events.k8s.io does not.
	loose := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "b"}, InvolvedObject: corev1.ObjectReference{Namespace: "default", Name: "a", Kind: "Pod"}}
	create(t, r, coreEvents, loose)
	incomplete := testEvent("c")
	incomplete.Action = ""
	if _, err := groups.Create(t.Context(), "default", incomplete, "test", &metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("an event without action was taken: %v", err)
	}
	for field, resource := range map[string]*Resource{"regarding.name": groups, "involvedObject.name": core} {
		list, err := resource.List(t.Context(), "default", ListOptions{Fields: fields.OneTermEqualSelector(field, "a")})
		if err != nil || len(list.Entries) != 2 {
			t.Errorf("List by %s = %d, %v; want both", field, len(list.Entries), err)
		}
	}
	entry, err := groups.Get(t.Context(), "default", "a", "")
	if err != nil {
		t.Fatal(err)
	}
	if data, err := entry.JSON(); err != nil || !strings.HasPrefix(string(data), `{"kind":"Event","apiVersion":"events.k8s.io/v1"`) {
		t.Errorf("JSON = %.60s, %v", data, err)
	}
	raw, err := entry.Proto()
	var decoded eventsv1.Event
	if err != nil || decoded.Unmarshal(raw) != nil || decoded.Note != "hello" {
		t.Errorf("Proto = %d bytes (%+v), %v", len(raw), decoded, err)
	}
	if again, _ := groups.Get(t.Context(), "default", "a", ""); again != entry {
		t.Error("the converted entry was made twice")
	}
	if _, err := groups.Delete(t.Context(), "default", "a", &metav1.DeleteOptions{}); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if _, err := core.Get(t.Context(), "default", "a", ""); !apierrors.IsNotFound(err) {
		t.Errorf("after the delete: %v", err)
	}
}

func TestAutoscalersInTwoVersions(t *testing.T) {
	r := start(t, Options{})
	v1, v2 := r.Resource(hpasV1), r.Resource(hpasV2)
	w, err := v1.Watch(t.Context(), "default", ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	made := create(t, r, hpasV1, testAutoscaler("web"))
	stored := get[*autoscalingv2.HorizontalPodAutoscaler](t, v2, "web")
	if m := stored.Spec.Metrics; len(m) != 1 || *m[0].Resource.Target.AverageUtilization != 70 || *stored.Spec.MinReplicas != 1 {
		t.Fatalf("v2 shows %+v", stored.Spec)
	}
	if e, err := r.store.Get("horizontalpodautoscalers.autoscaling", "default/web"); err != nil || e.Object.(*autoscalingv2.HorizontalPodAutoscaler).APIVersion != "autoscaling/v2" {
		t.Errorf("stored is %v, %v", e, err)
	}

	// An update through v2 is seen through v1, and the other way round.
	next := stored.DeepCopy()
	next.Spec.MaxReplicas = 7
	if _, _, err := v2.Update(t.Context(), "default", "web", "", next, "two", &metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	first := get[*autoscalingv1.HorizontalPodAutoscaler](t, v1, "web").DeepCopy()
	if first.Spec.MaxReplicas != 7 || *first.Spec.TargetCPUUtilizationPercentage != 70 {
		t.Errorf("v1 shows %+v", first.Spec)
	}
	stale := made.DeepCopy()
	if _, _, err := v1.Update(t.Context(), "default", "web", "", stale, "one", &metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an update of an old revision: %v", err)
	}
	first.Spec.TargetCPUUtilizationPercentage = ptr[int32](80)
	entry, _, err := v1.Update(t.Context(), "default", "web", "", first, "one", &metav1.UpdateOptions{})
	if err != nil || entry.Object.(*autoscalingv1.HorizontalPodAutoscaler).APIVersion != "autoscaling/v1" {
		t.Fatalf("Update through v1 = %v, %v", entry, err)
	}
	if got := managersOf(entry.Object); !slices.Equal(got, []string{"one Update autoscaling/v1", "test Update autoscaling/v1", "two Update autoscaling/v2"}) {
		t.Errorf("managers are %v", got)
	}
	status := first.DeepCopy()
	status.ResourceVersion = ""
	status.Status.CurrentReplicas = 3
	if _, _, err := v1.Update(t.Context(), "default", "web", "status", status, "one", &metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if now := get[*autoscalingv2.HorizontalPodAutoscaler](t, v2, "web"); now.Status.CurrentReplicas != 3 || *now.Spec.Metrics[0].Resource.Target.AverageUtilization != 80 {
		t.Errorf("v2 shows %+v", now)
	}
	// No change through another version is no write.
	same, _, err := v1.Patch(t.Context(), "default", "web", "", PatchRequest{Type: types.MergePatchType, Data: []byte(`{"spec":{"maxReplicas":7}}`), Manager: "one"})
	if err != nil || same.Object.GetResourceVersion() != get[*autoscalingv2.HorizontalPodAutoscaler](t, v2, "web").ResourceVersion {
		t.Errorf("a patch that changes nothing: %v", err)
	}
	seen := collect(t, w, 4)
	for i, event := range seen {
		hpa, ok := event.Entry.Object.(*autoscalingv1.HorizontalPodAutoscaler)
		if !ok || hpa.Name != "web" {
			t.Errorf("event %d is of a %T", i, event.Entry.Object)
		}
	}
	if last := seen[len(seen)-1].Entry.Object.(*autoscalingv1.HorizontalPodAutoscaler); last.Status.CurrentReplicas != 3 {
		t.Errorf("the last event shows %+v", last.Status)
	}
}

func managersOf(obj store.Object) []string {
	var out []string
	for _, e := range obj.GetManagedFields() {
		out = append(out, fmt.Sprintf("%s %s %s", e.Manager, e.Operation, e.APIVersion))
	}
	slices.Sort(out)
	return out
}

func collect(t *testing.T, w *store.Watch, count int) []store.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out []store.Event
	for len(out) < count {
		events, _, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("after %d events: %v", len(out), err)
		}
		out = append(out, events...)
	}
	return out
}

func TestPatchAndApplyThroughAnotherVersion(t *testing.T) {
	r := start(t, Options{})
	v1, v2 := r.Resource(hpasV1), r.Resource(hpasV2)
	create(t, r, hpasV2, &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{Kind: "Deployment", Name: "web", APIVersion: "apps/v1"}, MaxReplicas: 5,
		},
	})
	patch := func(r *Resource, kind types.PatchType, data string) error {
		_, _, err := r.Patch(t.Context(), "default", "web", "", PatchRequest{Type: kind, Data: []byte(data), Manager: "patcher"})
		return err
	}
	for _, tc := range []struct {
		kind types.PatchType
		data string
		want int32
	}{
		{types.MergePatchType, `{"spec":{"targetCPUUtilizationPercentage":61}}`, 61},
		{types.StrategicMergePatchType, `{"spec":{"targetCPUUtilizationPercentage":62}}`, 62},
		{types.JSONPatchType, `[{"op":"replace","path":"/spec/targetCPUUtilizationPercentage","value":63}]`, 63},
	} {
		if err := patch(v1, tc.kind, tc.data); err != nil {
			t.Fatalf("%s: %v", tc.kind, err)
		}
		if got := get[*autoscalingv2.HorizontalPodAutoscaler](t, v2, "web").Spec.Metrics; len(got) != 1 || *got[0].Resource.Target.AverageUtilization != tc.want {
			t.Errorf("%s: metrics are %+v", tc.kind, got)
		}
	}
	apply := func(r *Resource, manager string, force bool, spec string) (store.Object, error) {
		config, err := json.Marshal(map[string]any{"apiVersion": r.Kind.GroupVersion().String(), "kind": r.Kind.Kind, "metadata": map[string]any{"name": "web"}, "spec": json.RawMessage(spec)})
		if err != nil {
			t.Fatal(err)
		}
		e, _, err := r.Patch(t.Context(), "default", "web", "", PatchRequest{
			Type: types.ApplyPatchType, Data: config, Manager: manager, Options: metav1.PatchOptions{Force: &force},
		})
		if err != nil {
			return nil, err
		}
		return e.Object, nil
	}
	if _, err := apply(v1, "ann", true, `{"maxReplicas":9}`); err != nil {
		t.Fatal(err)
	}
	// The owner wrote through v1; the conflict is found through v2.
	if _, err := apply(v2, "bob", false, `{"maxReplicas":10}`); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "ann") {
		t.Errorf("bob took ann's field: %v", err)
	}
	obj, err := apply(v2, "bob", true, `{"maxReplicas":10}`)
	if err != nil || obj.(*autoscalingv2.HorizontalPodAutoscaler).Spec.MaxReplicas != 10 {
		t.Fatalf("by force: %v, %v", obj, err)
	}
	if got := managersOf(obj); slices.Contains(got, "ann Apply autoscaling/v1") {
		t.Errorf("ann lost her only field and is still there: %v", got)
	}
	created, err := func() (runtime.Object, error) {
		config := `{"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler","metadata":{"name":"new"},"spec":{"maxReplicas":3,"scaleTargetRef":{"apiVersion":"apps/v1","kind":"Deployment","name":"x"}}}`
		e, made, err := v1.Patch(t.Context(), "default", "new", "", PatchRequest{Type: types.ApplyPatchType, Data: []byte(config), Manager: "ann"})
		if err != nil || !made {
			return nil, fmt.Errorf("created %v: %w", made, err)
		}
		return e.Object, nil
	}()
	if _, ok := created.(*autoscalingv1.HorizontalPodAutoscaler); err != nil || !ok {
		t.Errorf("an apply that creates = %T, %v", created, err)
	}
	if get[*autoscalingv2.HorizontalPodAutoscaler](t, v2, "new").Spec.MaxReplicas != 3 {
		t.Error("v2 does not show what was applied through v1")
	}
}
