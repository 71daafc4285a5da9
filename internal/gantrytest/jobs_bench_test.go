package gantrytest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
)

// BenchmarkJob runs a job of many pods, 500 at once, each of which ends as soon as it is there. The
// time a pod must not grow with their number.
func BenchmarkJob(b *testing.B) {
	for _, mode := range []batchv1.CompletionMode{batchv1.NonIndexedCompletion, batchv1.IndexedCompletion} {
		for _, completions := range []int32{1000, 4000, 10000} {
			b.Run(fmt.Sprintf("mode=%s/completions=%d", mode, completions), func(b *testing.B) {
				for b.Loop() {
					runJob(b, mode, completions)
				}
				b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(completions), "ns/pod")
			})
		}
	}
}

func runJob(b *testing.B, mode batchv1.CompletionMode, completions int32) {
	c := Start(b, Options{})
	defer c.Stop()
	_, informers, err := c.ControlPlane.As(&user.DefaultInfo{Name: "admin", Groups: []string{user.SystemPrivilegedGroup}}, "test")
	if err != nil {
		b.Fatal(err)
	}
	started := make(chan *corev1.Pod, completions*2)
	stop, err := informer.Listen(b.Context(), informers, informer.Subscription{Object: &corev1.Pod{}, OnEvent: func(old, current ctrlclient.Object) {
		if pod, ok := current.(*corev1.Pod); ok && old == nil {
			started <- pod
		}
	}})
	if err != nil {
		b.Fatal(err)
	}
	var agents sync.WaitGroup
	for range 8 {
		agents.Go(func() {
			for pod := range started {
				next := pod.DeepCopy()
				next.ResourceVersion = ""
				next.Status.Phase = corev1.PodSucceeded
				if err := c.Client.Status().Update(b.Context(), next); err != nil {
					b.Errorf("ending %s: %v", pod.Name, err)
				}
			}
		})
	}
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "j"}, Spec: jobSpec(completions, 500)}
	job.Spec.CompletionMode = &mode
	if err := c.Client.Create(b.Context(), job); err != nil {
		b.Fatal(err)
	}
	for job.Status.CompletionTime == nil {
		<-time.After(10 * time.Millisecond)
		if err := c.Client.Get(b.Context(), ctrlclient.ObjectKeyFromObject(job), job); err != nil {
			b.Fatal(err)
		}
	}
	stop()
	close(started)
	agents.Wait()
	if job.Status.Succeeded != completions {
		b.Fatalf("%d succeeded, want %d", job.Status.Succeeded, completions)
	}
}
