package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Options tunes the controllers of this package. The zero value suits production.
type Options struct {
	Workers      int           // objects reconciled at once; default 8
	WriteWorkers int           // pods written at once, over all Jobs; default 64
	Batch        time.Duration // wait for more pod events before a Job's status is written; default 100ms
	Log          *slog.Logger  // default: discard
}

func (o *Options) setDefaults() error {
	o.Workers = cmp.Or(o.Workers, 8)
	o.WriteWorkers = cmp.Or(o.WriteWorkers, 64)
	o.Batch = cmp.Or(o.Batch, 100*time.Millisecond)
	if o.WriteWorkers < 1 || o.WriteWorkers > 1024 || o.Batch < 0 {
		return fmt.Errorf("job: WriteWorkers is %d and Batch %v, want 1 to 1024 and at least 0", o.WriteWorkers, o.Batch)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// baseDelay is the wait after a first failure: most are conflicts, and the rest want patience.
const baseDelay = 50 * time.Millisecond

// Controller runs Jobs.
type Controller struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	jobs      *controller.Loop   // keys are Jobs
	orphans   controller.Orphans // pods
	strays    *controller.Loop   // keys are pods that may have a finalizer nobody will remove
	slots     chan struct{}      // one token a pod write under way

	mu        sync.Mutex // guards the fields below
	selectors map[controller.Key]labels.Selector
	gone      map[controller.Key][]types.UID
	backoffs  map[types.UID]backoff
}

// New checks opts and returns a controller that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*Controller, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	jc := &Controller{
		client: c, informers: informers, recorder: recorder, opts: opts, slots: make(chan struct{}, opts.WriteWorkers),
		selectors: map[controller.Key]labels.Selector{},
		gone:      map[controller.Key][]types.UID{}, backoffs: map[types.UID]backoff{},
	}
	loop := func(name string, reconcile func(context.Context, controller.Key) (time.Duration, error)) (*controller.Loop, error) {
		return controller.NewLoop(controller.LoopOptions{
			Name: name, Workers: opts.Workers, BaseDelay: baseDelay, Log: opts.Log, Reconcile: reconcile,
		})
	}
	var err1, err2 error
	jc.jobs, err1 = loop("job", jc.reconcile)
	jc.strays, err2 = loop("job-stray-pod", jc.reconcileStray)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	jc.jobs.Watch(&batchv1.Job{}, jc.onJob)
	jc.jobs.Watch(&corev1.Pod{}, jc.onPod)
	jc.strays.Watch(&corev1.Pod{}, jc.onStray)
	return jc, nil
}

// Run reconciles until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	return controller.RunAll(ctx, c.informers, c.jobs, c.strays)
}

// Stats returns the counts of the loop over Jobs.
func (c *Controller) Stats() controller.LoopStats { return c.jobs.Stats() }

func (c *Controller) onJob(old, current client.Object) {
	before, _ := old.(*batchv1.Job)
	after, _ := current.(*batchv1.Job)
	if after == nil {
		key := controller.KeyOf(before)
		c.mu.Lock()
		delete(c.selectors, key)
		delete(c.backoffs, before.UID)
		c.gone[key] = append(c.gone[key], before.UID)
		c.mu.Unlock()
		c.jobs.Add(key)
		return
	}
	key := controller.KeyOf(after)
	c.mu.Lock()
	if before != nil && before.UID != after.UID { // replaced; the deletion was not seen
		delete(c.backoffs, before.UID)
		c.gone[key] = append(c.gone[key], before.UID)
	}
	selector, err := metav1.LabelSelectorAsSelector(after.Spec.Selector)
	if err == nil && outcome(after) == nil {
		c.selectors[key] = selector
	} else {
		delete(c.selectors, key)
	}
	c.mu.Unlock()
	if before != nil && before.Generation == after.Generation && outcome(after) == nil {
		c.jobs.AddAfter(key, c.opts.Batch) // most likely a status of our own
	} else {
		c.jobs.Add(key)
	}
}

func (c *Controller) onPod(old, current client.Object) {
	c.orphans.Observe(old, current)
	for _, obj := range []client.Object{old, current} {
		if obj == nil {
			continue
		}
		if ref := metav1.GetControllerOfNoCopy(obj); ref != nil {
			if isJobRef(ref) {
				c.jobs.AddAfter(controller.Key{Namespace: obj.GetNamespace(), Name: ref.Name}, c.opts.Batch)
			}
		} else if obj == current {
			c.offer(obj)
		}
	}
}

// offer wakes the Jobs that might adopt an orphan.
func (c *Controller) offer(pod client.Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, selector := range c.selectors {
		if key.Namespace == pod.GetNamespace() && selector.Matches(labels.Set(pod.GetLabels())) {
			c.jobs.AddAfter(key, c.opts.Batch)
		}
	}
}

// onStray looks at pods that are on their way out, or that nobody owns, with the finalizer still there.
func (c *Controller) onStray(old, current client.Object) {
	pod, ok := current.(*corev1.Pod)
	if !ok || !isTracked(pod) {
		return
	}
	if old == nil || pod.DeletionTimestamp != nil || metav1.GetControllerOfNoCopy(pod) == nil {
		c.strays.Add(controller.KeyOf(pod))
	}
}

func (c *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	if err := c.sweepGone(ctx, key); err != nil {
		return 0, err
	}
	var shared batchv1.Job
	if err := c.client.Get(ctx, key, &shared); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if foreignManager(&shared) != "" {
		return 0, nil
	}
	if outcome(&shared) != nil {
		c.remember(shared.UID, backoff{})
		return 0, c.sweep(ctx, shared.Namespace, shared.UID)
	}
	if mode := shared.Spec.CompletionMode; mode != nil && *mode != batchv1.NonIndexedCompletion && *mode != batchv1.IndexedCompletion {
		c.recorder.Event(&shared, corev1.EventTypeWarning, "UnknownCompletionMode", "Skipped Job sync because completion mode is unknown")
		return 0, nil
	}
	pods, err := c.claimed(ctx, &shared)
	if err != nil {
		return 0, err
	}
	p := observe(shared.DeepCopy(), pods, c.backoffOf(shared.UID), time.Now())
	p.judge()
	w, writeErr := c.writePods(ctx, p, p.planPods())
	p.settle(w)
	err = c.account(ctx, p)
	if apierrors.IsNotFound(err) {
		return 0, nil // the job went meanwhile
	}
	if err := cmp.Or(err, writeErr); err != nil {
		return 0, err
	}
	if p.wait > 0 {
		return max(p.wait, c.opts.Batch), nil
	}
	return 0, nil
}

// account counts the pods that have ended: their names are written down, their finalizers go, and
// then they become numbers.
func (c *Controller) account(ctx context.Context, p *pass) error {
	release := p.track()
	if p.flush {
		if err := c.writeStatus(ctx, p); err != nil {
			return err
		}
		c.remember(p.job.UID, p.backoff)
		c.tell(p.job, p.events)
	}
	released, releaseErr := c.release(ctx, release)
	moved := p.count(p.tracked(released))
	finished := releaseErr == nil && p.finish()
	if moved || finished {
		if err := c.writeStatus(ctx, p); err != nil {
			return errors.Join(err, releaseErr)
		}
	}
	if finished {
		c.tell(p.job, p.finishEvents())
	}
	return releaseErr
}

// writeStatus writes the status on the revision that was looked at.
func (c *Controller) writeStatus(ctx context.Context, p *pass) error {
	if err := c.client.Status().Update(ctx, p.job); err != nil {
		return fmt.Errorf("writing the status of job %s/%s: %w", p.job.Namespace, p.job.Name, err)
	}
	p.job = p.job.DeepCopy() // the answer is shared
	return nil
}

func (c *Controller) tell(job *batchv1.Job, events []event) {
	for _, e := range events {
		c.recorder.Event(job, e.kind, e.reason, e.note)
	}
}

func (c *Controller) backoffOf(job types.UID) backoff {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.backoffs[job]
}

func (c *Controller) remember(job types.UID, b backoff) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b == (backoff{}) {
		delete(c.backoffs, job)
	} else {
		c.backoffs[job] = b
	}
}

// sweepGone takes the finalizer off the pods of deleted Jobs that had the key's name.
func (c *Controller) sweepGone(ctx context.Context, key controller.Key) error {
	c.mu.Lock()
	gone := c.gone[key]
	delete(c.gone, key)
	c.mu.Unlock()
	for i, uid := range gone {
		if err := c.sweep(ctx, key.Namespace, uid); err != nil {
			c.mu.Lock()
			c.gone[key] = append(c.gone[key], gone[i:]...)
			c.mu.Unlock()
			return err
		}
	}
	return nil
}

// sweep takes the finalizer off all pods of a Job that is over or gone.
func (c *Controller) sweep(ctx context.Context, namespace string, job types.UID) error {
	pods, err := c.podsOf(ctx, namespace, job)
	if err != nil {
		return err
	}
	_, err = c.release(ctx, pods)
	return err
}

// reconcileStray takes the finalizer off a pod that no running Job will count.
func (c *Controller) reconcileStray(ctx context.Context, key controller.Key) (time.Duration, error) {
	var pod corev1.Pod
	if err := c.client.Get(ctx, key, &pod); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if !isTracked(&pod) {
		return 0, nil
	}
	if ref := metav1.GetControllerOfNoCopy(&pod); ref != nil {
		if !isJobRef(ref) {
			return 0, nil
		}
		var job batchv1.Job
		err := c.client.Get(ctx, types.NamespacedName{Namespace: key.Namespace, Name: ref.Name}, &job)
		if client.IgnoreNotFound(err) != nil {
			return 0, err
		}
		if err == nil && job.UID == ref.UID && (foreignManager(&job) != "" || outcome(&job) == nil) {
			return 0, nil
		}
	}
	_, err := c.release(ctx, []*corev1.Pod{&pod})
	return 0, err
}
