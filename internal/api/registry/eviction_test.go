package registry

import (
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var budgets = policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")

// createBudget makes a budget for the pods with label app=web and gives it a status.
func createBudget(t *testing.T, r *Registry, name string, always bool, status policyv1.PodDisruptionBudgetStatus) {
	t.Helper()
	one := intstr.FromInt32(1)
	budget := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
	}
	if always {
		policy := policyv1.AlwaysAllow
		budget.Spec.UnhealthyPodEvictionPolicy = &policy
	}
	made := create(t, r, budgets, budget).DeepCopyObject().(*policyv1.PodDisruptionBudget)
	made.Status = status
	if _, _, err := r.Resource(budgets).Update(t.Context(), "default", name, "status", made, "test", &metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// createRunning makes a pod that a budget counts.
func createRunning(t *testing.T, r *Registry, name string, phase corev1.PodPhase, ready corev1.ConditionStatus) {
	t.Helper()
	pod := testPod(name)
	pod.Labels, pod.Spec.NodeName = map[string]string{"app": "web"}, "n1"
	made := create(t, r, pods, pod).DeepCopyObject().(*corev1.Pod)
	made.Status.Phase, made.Status.Conditions = phase, []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
	if _, _, err := r.Resource(pods).Update(t.Context(), "default", name, "status", made, "test", &metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestEvictionKeepsTheBudget(t *testing.T) {
	status := func(allowed, healthy, desired int32) policyv1.PodDisruptionBudgetStatus {
		return policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, DisruptionsAllowed: allowed, CurrentHealthy: healthy, DesiredHealthy: desired, ExpectedPods: 3}
	}
	unseen := status(1, 3, 1)
	unseen.ObservedGeneration = 0
	for name, c := range map[string]struct {
		phase  corev1.PodPhase
		ready  corev1.ConditionStatus
		status policyv1.PodDisruptionBudgetStatus
		always bool
		second bool // a second budget covers the pod
		dryRun bool
		code   int32  // 0 is evicted
		cause  string // of the refusal
		left   int32  // disruptions allowed afterwards
	}{
		"allowed":                     {phase: corev1.PodRunning, ready: "True", status: status(2, 3, 1), left: 1},
		"the last":                    {phase: corev1.PodRunning, ready: "True", status: status(1, 3, 2)},
		"dry run":                     {phase: corev1.PodRunning, ready: "True", status: status(1, 3, 2), dryRun: true, left: 1},
		"none left":                   {phase: corev1.PodRunning, ready: "True", status: status(0, 1, 1), code: 429, cause: "The disruption budget b needs 1 healthy pods and has 1 currently"},
		"none left, for some reason":  {phase: corev1.PodRunning, ready: "True", status: status(0, 2, 1), code: 429, cause: "does not allow evicting pods currently"},
		"not seen by its controller":  {phase: corev1.PodRunning, ready: "True", status: unseen, code: 429, cause: "is still being processed by the server", left: 1},
		"pending needs none":          {phase: corev1.PodPending, ready: "False", status: status(0, 1, 1)},
		"over needs none":             {phase: corev1.PodSucceeded, ready: "False", status: status(0, 1, 1)},
		"unready, enough are healthy": {phase: corev1.PodRunning, ready: "False", status: status(0, 1, 1)},
		"unready, too few healthy":    {phase: corev1.PodRunning, ready: "False", status: status(0, 0, 1), code: 429, cause: "needs 1 healthy pods and has 0"},
		"unready, always allowed":     {phase: corev1.PodRunning, ready: "False", status: status(0, 0, 1), always: true},
		"two budgets":                 {phase: corev1.PodRunning, ready: "True", status: status(1, 3, 1), second: true, code: 500, left: 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, Options{})
			createBudget(t, r, "b", c.always, c.status)
			if c.second {
				createBudget(t, r, "c", false, c.status)
			}
			createRunning(t, r, "a", c.phase, c.ready)
			opts := &metav1.CreateOptions{}
			if c.dryRun {
				opts.DryRun = []string{metav1.DryRunAll}
			}
			_, err := r.Resource(pods).CreateSub(t.Context(), "default", "a", "eviction", &policyv1.Eviction{}, opts)
			checkRefusal(t, err, c.code, c.cause)
			entry, getErr := r.Resource(budgets).Get(t.Context(), "default", "b", "")
			if getErr != nil {
				t.Fatal(getErr)
			}
			if got := entry.Object.(*policyv1.PodDisruptionBudget).Status; got.DisruptionsAllowed != c.left {
				t.Errorf("%d disruptions allowed afterwards, want %d", got.DisruptionsAllowed, c.left)
			}
			pod, getErr := r.Resource(pods).Get(t.Context(), "default", "a", "")
			gone := apierrors.IsNotFound(getErr) || (getErr == nil && pod.Object.GetDeletionTimestamp() != nil)
			if gone != (c.code == 0 && !c.dryRun) {
				t.Errorf("the pod is gone: %v (%v), after %v", gone, getErr, err)
			}
		})
	}
}

func checkRefusal(t *testing.T, err error, code int32, cause string) {
	t.Helper()
	if code == 0 {
		if err != nil {
			t.Errorf("evict: %v", err)
		}
		return
	}
	status, ok := err.(apierrors.APIStatus)
	if !ok || status.Status().Code != code {
		t.Errorf("evict: %v, want a status with code %d", err, code)
		return
	}
	if cause != "" && (len(status.Status().Details.Causes) != 1 || !strings.Contains(status.Status().Details.Causes[0].Message, cause)) {
		t.Errorf("causes %v, want %q", status.Status().Details.Causes, cause)
	}
}

// However many ask at once, no more pods go than the budget allows.
func TestEvictionsShareABudget(t *testing.T) {
	r := start(t, Options{})
	createBudget(t, r, "b", false, policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, DisruptionsAllowed: 3, CurrentHealthy: 8, DesiredHealthy: 5, ExpectedPods: 8})
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	for _, name := range names {
		createRunning(t, r, name, corev1.PodRunning, corev1.ConditionTrue)
	}
	var group sync.WaitGroup
	errs := make([]error, len(names))
	for i, name := range names {
		group.Go(func() {
			_, errs[i] = r.Resource(pods).CreateSub(t.Context(), "default", name, "eviction", &policyv1.Eviction{}, &metav1.CreateOptions{})
		})
	}
	group.Wait()
	evicted := 0
	for i, err := range errs {
		switch {
		case err == nil:
			evicted++
		case !apierrors.IsTooManyRequests(err):
			t.Errorf("evicting %s: %v", names[i], err)
		}
	}
	if evicted != 3 {
		t.Errorf("%d pods were evicted, want 3", evicted)
	}
	entry, err := r.Resource(budgets).Get(t.Context(), "default", "b", "")
	if err != nil {
		t.Fatal(err)
	}
	got := entry.Object.(*policyv1.PodDisruptionBudget).Status
	if got.DisruptionsAllowed != 0 || len(got.DisruptedPods) != 3 || len(got.Conditions) != 1 || got.Conditions[0].Reason != policyv1.InsufficientPodsReason {
		t.Errorf("status of the budget: %+v", got)
	}
}

func TestEvictionOfOneRevision(t *testing.T) {
	r := start(t, Options{})
	createRunning(t, r, "a", corev1.PodRunning, corev1.ConditionTrue)
	old := "1"
	eviction := &policyv1.Eviction{DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &old}}}
	if _, err := r.Resource(pods).CreateSub(t.Context(), "default", "a", "eviction", eviction, &metav1.CreateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("evict at an old revision: %v, want a conflict", err)
	}
}
