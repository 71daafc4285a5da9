package job

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

// notes collects events.
type notes struct {
	mu   sync.Mutex
	list []string
}

func (n *notes) Event(_ runtime.Object, kind, reason, note string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, kind+" "+reason+" "+note)
}

// about returns the events that are not of single pods.
func (n *notes) about() (out []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, text := range n.list {
		if !strings.Contains(text, " pod: ") {
			out = append(out, text)
		}
	}
	return out
}

// runner is a controller.
type runner interface {
	Run(ctx context.Context) error
}

// world is an API with controllers and a node that runs every pod at once.
type world struct {
	*controllertest.Cluster
	t      *testing.T
	events *notes
	make   func(w *world) []runner

	// ending says how a running pod ends: an exit code, or -1 to go on.
	ending func(pod *corev1.Pod) int32
	// check is called after each step of the node.
	check func()
	// succeeded are the pods that have ever succeeded.
	succeeded map[types.UID]bool
	// keep leaves pods that are being deleted as they are.
	keep bool
}

func jobControllers(w *world) []runner {
	c, err := New(w, w, w.events, Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	return []runner{c}
}

// inWorld runs f beside the controllers in a bubble of virtual time.
func inWorld(t *testing.T, objs []client.Object, f func(w *world)) {
	t.Helper()
	inWorldOf(t, jobControllers, objs, f)
}

func inWorldOf(t *testing.T, controllers func(*world) []runner, objs []client.Object, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, controllers, objs)
		ctx, cancel := context.WithCancel(t.Context())
		wait := w.start(ctx)
		f(w)
		cancel()
		wait()
	})
}

func newWorld(t *testing.T, controllers func(*world) []runner, objs []client.Object) *world {
	return &world{
		Cluster: controllertest.New(t, objs...), t: t, events: &notes{}, make: controllers, succeeded: map[types.UID]bool{},
		ending: func(*corev1.Pod) int32 { return 0 },
	}
}

// start runs the controllers until ctx ends; what it returns waits for that.
func (w *world) start(ctx context.Context) (wait func()) {
	var running sync.WaitGroup
	for _, r := range w.make(w) {
		running.Go(func() {
			if err := r.Run(ctx); err != nil {
				w.t.Errorf("Run = %v", err)
			}
		})
	}
	return running.Wait
}

func (w *world) pods() []corev1.Pod {
	w.t.Helper()
	var list corev1.PodList
	if err := w.List(context.Background(), &list, client.InNamespace("default")); err != nil {
		w.t.Fatal(err)
	}
	return list.Items
}

func (w *world) job(name string) *batchv1.Job {
	w.t.Helper()
	var job batchv1.Job
	if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: name}, &job); err != nil {
		w.t.Fatal(err)
	}
	return job.DeepCopy()
}

func (w *world) change(name string, f func(job *batchv1.Job)) {
	w.t.Helper()
	job := w.job(name)
	f(job)
	if err := w.Update(context.Background(), job); err != nil {
		w.t.Fatal(err)
	}
}

// step lets the node act once, and time pass.
func (w *world) step() {
	w.t.Helper()
	nodeStep(w)
	time.Sleep(time.Second)
	synctest.Wait()
	if w.check != nil {
		w.check()
	}
}

// nodeStep lets the node act once.
func nodeStep(w *world) {
	w.t.Helper()
	ctx := context.Background()
	for _, pod := range w.pods() {
		next := pod.DeepCopy()
		switch {
		case pod.DeletionTimestamp != nil && w.keep:
		case pod.DeletionTimestamp != nil:
			if !ended(&pod) {
				end(next, 143)
				_ = w.Status().Update(ctx, next)
			}
			none := int64(0)
			_ = w.Delete(ctx, &pod, &client.DeleteOptions{GracePeriodSeconds: &none})
		case ended(&pod):
		case pod.Spec.NodeName == "":
			_ = w.SubResource("binding").Create(ctx, next, &corev1.Binding{Target: corev1.ObjectReference{Name: "n"}})
		case pod.Status.Phase != corev1.PodRunning:
			next.Status.Phase = corev1.PodRunning
			next.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
			_ = w.Status().Update(ctx, next)
		default:
			if code := w.ending(&pod); code >= 0 {
				end(next, code)
				_ = w.Status().Update(ctx, next)
				if code == 0 {
					w.succeeded[pod.UID] = true
				}
			}
		}
	}
}

// end makes a pod's containers over.
func end(pod *corev1.Pod, code int32) {
	pod.Status.Phase = corev1.PodSucceeded
	if code != 0 {
		pod.Status.Phase = corev1.PodFailed
	}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.Now()},
	}}}
}

// steps calls step for a time.
func (w *world) steps(d time.Duration) {
	w.t.Helper()
	for until := time.Now().Add(d); time.Now().Before(until); {
		w.step()
	}
}

// summary is what matters of a job's status.
func summary(job *batchv1.Job) string {
	s := &job.Status
	var b strings.Builder
	fmt.Fprintf(&b, "active %d succeeded %d failed %d", s.Active, s.Succeeded, s.Failed)
	if s.Ready != nil && *s.Ready != 0 {
		fmt.Fprintf(&b, " ready %d", *s.Ready)
	}
	if s.Terminating != nil && *s.Terminating != 0 {
		fmt.Fprintf(&b, " terminating %d", *s.Terminating)
	}
	if s.CompletedIndexes != "" {
		fmt.Fprintf(&b, " completed %s", s.CompletedIndexes)
	}
	if s.FailedIndexes != nil {
		fmt.Fprintf(&b, " failed indexes %q", *s.FailedIndexes)
	}
	if u := s.UncountedTerminatedPods; u != nil && len(u.Succeeded)+len(u.Failed) > 0 {
		fmt.Fprintf(&b, " uncounted %d+%d", len(u.Succeeded), len(u.Failed))
	}
	for _, c := range s.Conditions {
		fmt.Fprintf(&b, "; %s=%s %s", c.Type, c.Status, c.Reason)
	}
	return b.String()
}

func (w *world) want(name, want string) {
	w.t.Helper()
	if got := summary(w.job(name)); got != want {
		w.t.Errorf("status of %s:\n got %s\nwant %s", name, got, want)
	}
}

func ptr[T any](v T) *T { return &v }

// newJob is a job as the API's defaults make it.
func newJob(name string, completions, parallelism int32, change ...func(*batchv1.Job)) *batchv1.Job {
	labels := map[string]string{batchv1.ControllerUidLabel: name, batchv1.JobNameLabel: name}
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: batchv1.JobSpec{
			Completions: &completions, Parallelism: &parallelism, BackoffLimit: ptr(int32(6)), CompletionMode: ptr(batchv1.NonIndexedCompletion),
			Suspend: ptr(false), PodReplacementPolicy: ptr(batchv1.TerminatingOrFailed), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{batchv1.ControllerUidLabel: name}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
			},
		},
	}
	for _, f := range change {
		f(job)
	}
	return job
}

func indexed(job *batchv1.Job)   { job.Spec.CompletionMode = ptr(batchv1.IndexedCompletion) }
func suspended(job *batchv1.Job) { job.Spec.Suspend = ptr(true) }
