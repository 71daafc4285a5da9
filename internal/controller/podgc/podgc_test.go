package podgc

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func pod(name, node string, phase corev1.PodPhase, change ...func(*corev1.Pod)) corev1.Pod {
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0))},
		Spec:       corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase},
	}
	for _, f := range change {
		f(&p)
	}
	return p
}

func TestPlan(t *testing.T) {
	now := time.Unix(2e9, 0)
	terminating := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: now} }
	ready := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	off := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "off"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: corev1.TaintNodeOutOfService}}}}
	pods := []corev1.Pod{
		pod("runs", "n1", corev1.PodRunning),
		pod("lost", "n2", corev1.PodRunning),
		pod("just-lost", "n3", corev1.PodRunning),
		pod("never-placed", "", corev1.PodPending, terminating),
		pod("leaving", "n1", corev1.PodRunning, terminating),
		pod("stuck", "off", corev1.PodRunning, terminating),
		pod("old", "n1", corev1.PodSucceeded),
		pod("older", "n1", corev1.PodFailed, func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(time.Unix(5e8, 0)) }),
		pod("evicted", "n1", corev1.PodFailed, func(p *corev1.Pod) { p.Status.Reason = "Evicted" }),
	}
	gone := map[string]time.Time{"n2": now.Add(-time.Minute), "n9": now}
	var got []string
	for _, r := range plan(pods, []corev1.Node{ready, off}, gone, now, Options{Quarantine: 40 * time.Second, Threshold: 1}) {
		got = append(got, fmt.Sprintf("%s %t", r.pod.Name, r.condition != nil))
	}
	want := []string{"lost true", "never-placed false", "stuck false", "evicted false", "older false"}
	if !slices.Equal(got, want) {
		t.Errorf("plan = %q, want %q", got, want)
	}
	if _, ok := gone["n9"]; ok || gone["n3"] != now {
		t.Errorf("gone = %v", gone)
	}
}

func TestCollectsAfterQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := pod("lost", "n2", corev1.PodRunning)
		c := controllertest.New(t, &lost)
		pc, err := New(c, Options{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- pc.Run(ctx) }()
		for _, step := range []struct {
			wait  time.Duration
			there bool
		}{{30 * time.Second, true}, {30 * time.Second, false}} {
			time.Sleep(step.wait)
			synctest.Wait()
			err := c.Get(ctx, types.NamespacedName{Namespace: "default", Name: "lost"}, &corev1.Pod{})
			if (err == nil) != step.there {
				t.Errorf("after %v more: %v, want there %t", step.wait, err, step.there)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}
