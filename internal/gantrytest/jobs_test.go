package gantrytest

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

func jobSpec(completions, parallelism int32) batchv1.JobSpec {
	return batchv1.JobSpec{
		Completions: &completions, Parallelism: &parallelism,
		Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "example.test/app:1"}},
		}},
	}
}

// finishPods ends all pods, as agents do (also those without a node: after hours without a heartbeat no node is ready), and removes those that are being deleted.
func finishPods(t *testing.T, c *Cluster, phase corev1.PodPhase) {
	t.Helper()
	var pods corev1.PodList
	if err := c.Client.List(t.Context(), &pods, ctrlclient.InNamespace("default")); err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp != nil {
			_ = c.Client.Delete(t.Context(), &pod, ctrlclient.GracePeriodSeconds(0))
			continue
		}
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		next := pod.DeepCopy()
		next.Status.Phase = phase
		next.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{ExitCode: int32(len(phase) - len("Succeeded")), FinishedAt: metav1.Now()},
		}}}
		_ = c.Client.Status().Update(t.Context(), next) // a conflict is for the next time
	}
}

func getJob(t *testing.T, c *Cluster, name string) *batchv1.Job {
	t.Helper()
	var job batchv1.Job
	if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: name}, &job); err != nil {
		t.Fatal(err)
	}
	return &job
}

func TestAJobRunsToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Options{Nodes: 2})
		defer c.Stop()
		indexed := batchv1.IndexedCompletion
		job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "sum"}, Spec: jobSpec(40, 15)}
		job.Spec.CompletionMode = &indexed
		ttl := int32(100)
		job.Spec.TTLSecondsAfterFinished = &ttl
		mustCreate(t, c, job)
		c.Eventually("the job completes", func() error {
			finishPods(t, c, corev1.PodSucceeded)
			if s := getJob(t, c, "sum").Status; s.CompletionTime == nil {
				return fmt.Errorf("status %+v", s)
			}
			return nil
		})
		s := getJob(t, c, "sum").Status
		if s.StartTime.Nanosecond() != 0 || s.CompletionTime.Nanosecond() != 0 || s.Conditions[0].LastTransitionTime.Nanosecond() != 0 {
			t.Errorf("times that no client reads: %+v", s)
		}
		if s.Succeeded != 40 || s.CompletedIndexes != "0-39" || s.Active != 0 || s.UncountedTerminatedPods != nil && len(s.UncountedTerminatedPods.Succeeded) != 0 {
			t.Errorf("status %+v", s)
		}
		<-time.After(3 * time.Minute)
		finishPods(t, c, corev1.PodSucceeded)
		<-time.After(time.Minute)
		var pods corev1.PodList
		err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: "sum"}, &batchv1.Job{})
		if err2 := c.Client.List(t.Context(), &pods); err2 != nil || !apierrors.IsNotFound(err) || len(pods.Items) != 0 {
			t.Errorf("after its time to live the job is there: %v, %v, %d pods", err, err2, len(pods.Items))
		}
	})
}

func TestADeletedJobLeavesNoPods(t *testing.T) {
	c := Start(t, Options{Nodes: 1})
	for _, policy := range []metav1.DeletionPropagation{metav1.DeletePropagationForeground, metav1.DeletePropagationBackground} {
		mustCreate(t, c, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "j"}, Spec: jobSpec(3, 3)})
		wantBound(t, c, 3)
		if err := c.Client.Delete(t.Context(), getJob(t, c, "j"), ctrlclient.PropagationPolicy(policy)); err != nil {
			t.Fatal(err)
		}
		c.Eventually("everything goes", func() error {
			finishPods(t, c, corev1.PodFailed)
			var pods corev1.PodList
			var jobs batchv1.JobList
			if err := count(t, c, &pods, "default", func() int { return len(pods.Items) }); err != nil {
				return err
			}
			return count(t, c, &jobs, "default", func() int { return len(jobs.Items) })
		})
	}
}

func TestADayOfCronJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Options{Nodes: 1})
		defer c.Stop()
		cj := &batchv1.CronJob{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hourly"},
			Spec:       batchv1.CronJobSpec{Schedule: "@hourly", ConcurrencyPolicy: batchv1.ForbidConcurrent, JobTemplate: batchv1.JobTemplateSpec{Spec: jobSpec(1, 1)}},
		}
		mustCreate(t, c, cj)
		begin := time.Now()
		seen := map[string]bool{}
		for time.Since(begin) < 24*time.Hour {
			<-time.After(10 * time.Minute)
			var jobs batchv1.JobList
			if err := c.Client.List(t.Context(), &jobs); err != nil {
				t.Fatal(err)
			}
			for _, job := range jobs.Items {
				seen[job.Name] = true
			}
			finishPods(t, c, corev1.PodSucceeded)
		}
		if len(seen) < 23 || len(seen) > 25 {
			t.Errorf("%d jobs in a day, want 24", len(seen))
		}
		var got batchv1.CronJob
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(cj), &got); err != nil || got.Status.LastSuccessfulTime == nil || got.Status.LastScheduleTime == nil {
			t.Errorf("status %+v, %v", got.Status, err)
		}
		var jobs batchv1.JobList
		var pods corev1.PodList
		if err := c.Client.List(t.Context(), &jobs); err != nil || len(jobs.Items) > 4 {
			t.Errorf("%d jobs are left, %v", len(jobs.Items), err)
		}
		if err := c.Client.List(t.Context(), &pods); err != nil || len(pods.Items) > 4 {
			t.Errorf("%d pods are left, %v", len(pods.Items), err)
		}
	})
}

// markReady makes all pods with a node ready.
func markReady(t *testing.T, c *Cluster) {
	t.Helper()
	var pods corev1.PodList
	if err := c.Client.List(t.Context(), &pods, ctrlclient.InNamespace("default")); err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodRunning || pod.DeletionTimestamp != nil {
			continue
		}
		next := pod.DeepCopy()
		next.Status.Phase = corev1.PodRunning
		next.Status.Conditions = append(next.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
		_ = c.Client.Status().Update(t.Context(), next)
	}
}

func budgetStatus(t *testing.T, c *Cluster, name string) policyv1.PodDisruptionBudgetStatus {
	t.Helper()
	var pdb policyv1.PodDisruptionBudget
	if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: name}, &pdb); err != nil {
		t.Fatal(err)
	}
	return pdb.Status
}

func newBudget(name string, least intstr.IntOrString) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &least, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}},
	}
}

func TestEvictionsStayWithinTheBudget(t *testing.T) {
	c := Start(t, Options{Nodes: 2})
	mustCreate(t, c, deployment("web", 4), newBudget("web", intstr.FromString("50%")))
	wantBound(t, c, 4)
	c.Eventually("the budget counts", func() error {
		markReady(t, c)
		if s := budgetStatus(t, c, "web"); s.DisruptionsAllowed != 2 || s.ExpectedPods != 4 || s.CurrentHealthy != 4 || s.DesiredHealthy != 2 {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
	var pods corev1.PodList
	if err := c.Client.List(t.Context(), &pods, ctrlclient.InNamespace("default")); err != nil {
		t.Fatal(err)
	}
	evicted := 0
	for _, pod := range pods.Items {
		err := c.Client.SubResource("eviction").Create(t.Context(), &pod, &policyv1.Eviction{})
		switch {
		case err == nil:
			evicted++
		case !apierrors.IsTooManyRequests(err):
			t.Errorf("evicting %s: %v", pod.Name, err)
		}
	}
	if evicted != 2 {
		t.Errorf("%d pods evicted, want 2", evicted)
	}
}

// TestBudgetOfACustomResource asks for the scale of owners that only a CRD describes.
func TestBudgetOfACustomResource(t *testing.T) {
	c := Start(t, Options{Nodes: 1})
	for _, kind := range []string{"Scaled", "Plain"} {
		plural := strings.ToLower(kind) + "s"
		version := map[string]any{
			"name": "v1", "served": true, "storage": true,
			"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
		}
		if kind == "Scaled" {
			version["subresources"] = map[string]any{"scale": map[string]any{"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}}
		}
		crd := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": plural + ".example.test"},
			"spec": map[string]any{
				"group": "example.test", "scope": "Namespaced", "versions": []any{version},
				"names": map[string]any{"plural": plural, "singular": strings.ToLower(kind), "kind": kind, "listKind": kind + "List"},
			},
		}}
		mustCreate(t, c, crd)
		owner := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "example.test/v1", "kind": kind, "metadata": map[string]any{"name": "o", "namespace": "default"}, "spec": map[string]any{"replicas": int64(5)},
		}}
		c.Eventually("the resource is served", func() error { return c.Client.Create(t.Context(), owner.DeepCopy()) })
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(owner), owner); err != nil {
			t.Fatal(err)
		}
		gvk := schema.GroupVersionKind{Group: "example.test", Version: "v1", Kind: kind}
		mustCreate(t, c, newBudget(plural, intstr.FromString("40%")), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "default", Name: plural, Labels: map[string]string{"app": plural}, OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, gvk)},
			},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		})
	}
	c.Eventually("the budgets are counted", func() error {
		scaled, plain := budgetStatus(t, c, "scaleds"), budgetStatus(t, c, "plains")
		if scaled.ExpectedPods != 5 || scaled.DesiredHealthy != 2 {
			return fmt.Errorf("of a scale: %+v", scaled)
		}
		if len(plain.Conditions) != 1 || plain.Conditions[0].Reason != policyv1.SyncFailedReason || plain.Conditions[0].Message != "plains.example.test does not implement the scale subresource" {
			return fmt.Errorf("without a scale: %+v", plain)
		}
		return nil
	})
}
