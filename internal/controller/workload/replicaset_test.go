package workload

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func (w *world) rs(name string) *appsv1.ReplicaSet {
	w.t.Helper()
	var rs appsv1.ReplicaSet
	if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: name}, &rs); err != nil {
		w.t.Fatal(err)
	}
	return rs.DeepCopy()
}

func TestReplicaSetCreatesScalesAndHeals(t *testing.T) {
	inWorld(t, []client.Object{newRS("web", 700)}, func(w *world) {
		w.settle()
		status := w.rs("web").Status
		if status.Replicas != 700 || status.ReadyReplicas != 700 || status.AvailableReplicas != 700 || status.FullyLabeledReplicas != 700 ||
			status.ObservedGeneration != 1 || status.TerminatingReplicas == nil || *status.TerminatingReplicas != 0 {
			t.Errorf("status %+v, want 700 of all", status)
		}
		pod := w.pods()[0]
		ref := pod.OwnerReferences[0]
		if ref.Kind != "ReplicaSet" || ref.APIVersion != "apps/v1" || !*ref.Controller || !*ref.BlockOwnerDeletion || !strings.HasPrefix(pod.Name, "web-") {
			t.Errorf("pod %s has owner %+v", pod.Name, ref)
		}
		rs := w.rs("web")
		*rs.Spec.Replicas = 3
		if err := w.Update(context.Background(), rs); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if n := len(w.pods()); n != 3 {
			t.Errorf("%d pods after scaling to 3", n)
		}
		gone := w.pods()[0]
		if err := w.Delete(context.Background(), &gone); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if n := len(w.pods()); n != 3 {
			t.Errorf("%d pods after one was deleted, want 3", n)
		}
		if got := w.events.all()[0]; !strings.HasPrefix(got, "Normal SuccessfulCreate Created pod: web-") {
			t.Errorf("first event %q", got)
		}
	})
}

func TestReplicaSetAdoptsAndReleases(t *testing.T) {
	orphan := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "stray", Labels: map[string]string{"app": "web"}}}
	inWorld(t, []client.Object{newRS("web", 2), orphan}, func(w *world) {
		w.settle()
		if n := len(w.pods()); n != 2 {
			t.Fatalf("%d pods, want 2 with the adopted one", n)
		}
		var stray corev1.Pod
		if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: "stray"}, &stray); err != nil || metav1.GetControllerOf(&stray) == nil {
			t.Fatalf("stray not adopted: %v", err)
		}
		next := stray.DeepCopy()
		next.Labels = map[string]string{"app": "other"}
		if err := w.Update(context.Background(), next); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: "stray"}, &stray); err != nil || metav1.GetControllerOf(&stray) != nil {
			t.Errorf("stray not released: %v", err)
		}
		if n := len(w.pods()); n != 3 {
			t.Errorf("%d pods, want 2 and the released one", n)
		}
		// An orphan that appears later is adopted and one pod too many goes.
		late := orphan.DeepCopy()
		late.Name = "late"
		if err := w.Create(context.Background(), late); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if status := w.rs("web").Status; status.Replicas != 2 {
			t.Errorf("%d replicas, want 2", status.Replicas)
		}
	})
}

func TestReplicaSetFailure(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		refused := 0
		w.SetBeforeWrite(func(write controllertest.Write) error {
			if _, ok := write.Object.(*corev1.Pod); ok && write.Verb == "create" {
				refused++
				return errors.New("exceeded quota")
			}
			return nil
		})
		if err := w.Create(context.Background(), newRS("web", 100)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		want := []appsv1.ReplicaSetCondition{{Type: "ReplicaFailure", Status: "True", Reason: "FailedCreate", Message: "exceeded quota"}}
		got := w.rs("web").Status.Conditions
		if len(got) == 1 {
			got[0].LastTransitionTime = metav1.Time{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("conditions (-want +got):\n%s", diff)
		}
		if !slices.Contains(w.events.all(), "Warning FailedCreate Error creating: exceeded quota") {
			t.Errorf("events %q", w.events.all())
		}
		if refused > 12 {
			t.Errorf("%d creations tried in a second, want few", refused)
		}
		w.SetBeforeWrite(nil)
		time.Sleep(2 * time.Minute)
		w.settle()
		if status := w.rs("web").Status; len(status.Conditions) != 0 || status.AvailableReplicas != 100 {
			t.Errorf("status after the cure %+v", status)
		}
	})
}

func TestReplicaSetMinReady(t *testing.T) {
	rs := newRS("web", 1)
	rs.Spec.MinReadySeconds = 30
	inWorld(t, []client.Object{rs}, func(w *world) {
		w.settle()
		if status := w.rs("web").Status; status.ReadyReplicas != 1 || status.AvailableReplicas != 0 {
			t.Errorf("at first: %+v", status)
		}
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if status := w.rs("web").Status; status.AvailableReplicas != 1 {
			t.Errorf("after 31s: %+v", status)
		}
	})
}

func TestPodsToDelete(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	pod := func(name string, change ...func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}}
		p.Spec.NodeName = "n-" + name
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}}
		for _, f := range change {
			f(p)
		}
		return p
	}
	plain := pod("plain")
	for name, tc := range map[string]struct{ first, other *corev1.Pod }{
		"unassigned":  {pod("a", func(p *corev1.Pod) { p.Spec.NodeName = "" }), plain},
		"pending":     {pod("a", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }), plain},
		"not ready":   {pod("a", func(p *corev1.Pod) { p.Status.Conditions = nil }), plain},
		"lower cost":  {pod("a", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: "-5"} }), plain},
		"ready later": {pod("a", func(p *corev1.Pod) { p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(now.Add(-time.Minute)) }), plain},
		"restarts":    {pod("a", func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 2}} }), plain},
		"younger":     {pod("a", func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(-time.Minute)) }), plain},
		"invalid cost counts as 0": {
			pod("a", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: "+9"} }),
			pod("b", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: "1"} }),
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, pods := range [][]*corev1.Pod{{tc.first, tc.other}, {tc.other, tc.first}} {
				if got := podsToDelete(pods, pods, 1, now); got[0] != tc.first {
					t.Errorf("deletes %s, want %s", got[0].Name, tc.first.Name)
				}
			}
		})
	}
	t.Run("doubled up", func(t *testing.T) {
		onNode := func(p *corev1.Pod) { p.Spec.NodeName = "n" }
		a, b, c := pod("a", onNode), pod("b", onNode), pod("c")
		if got := podsToDelete([]*corev1.Pod{c, a}, []*corev1.Pod{a, b, c}, 1, now); got[0] != a {
			t.Errorf("deletes %s, want a", got[0].Name)
		}
	})
}

func BenchmarkReplicaSetCreate(b *testing.B) {
	for b.Loop() {
		c := controllertest.New(b, newRS("web", 500))
		rc, err := NewReplicaSets(c, c, &notes{}, Options{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := rc.reconcile(b.Context(), types.NamespacedName{Namespace: "default", Name: "web"}); err != nil {
			b.Fatal(err)
		}
	}
}
