package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
	_ "time/tzdata" // time zones on machines without a database of them

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// clockPeriod is how often the clock is checked for jumps: timers do not see them.
const clockPeriod = 10 * time.Second

// CronController runs CronJobs.
type CronController struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	loop      *controller.Loop

	mu   sync.Mutex // guards keys
	keys map[controller.Key]bool
}

// NewCronJobs checks opts and returns a controller that has started nothing; call Run.
func NewCronJobs(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*CronController, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	cc := &CronController{client: c, informers: informers, recorder: recorder, opts: opts, keys: map[controller.Key]bool{}}
	var err error
	cc.loop, err = controller.NewLoop(controller.LoopOptions{
		Name: "cronjob", Workers: opts.Workers, BaseDelay: baseDelay, Log: opts.Log, Reconcile: cc.reconcile,
	})
	if err != nil {
		return nil, err
	}
	cc.loop.Watch(&batchv1.CronJob{}, cc.onCronJob)
	cc.loop.Watch(&batchv1.Job{}, cc.onJob)
	return cc, nil
}

// Run reconciles until ctx ends.
func (c *CronController) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var clock sync.WaitGroup
	clock.Go(func() { c.watchClock(ctx) })
	err := c.loop.Run(ctx, c.informers)
	cancel()
	clock.Wait()
	return err
}

// Stats returns the counts of the controller's loop.
func (c *CronController) Stats() controller.LoopStats { return c.loop.Stats() }

// watchClock looks at all CronJobs when the clock has jumped: a timer that was set before would
// go off too late.
func (c *CronController) watchClock(ctx context.Context) {
	ticker := time.NewTicker(clockPeriod)
	defer ticker.Stop()
	before := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := time.Now()
		if clockJumped(before, now) {
			c.opts.Log.Info("the clock has jumped", "by", now.Round(0).Sub(before.Round(0))-now.Sub(before))
			c.lookAtAll()
		}
		before = now
	}
}

func (c *CronController) lookAtAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.keys {
		c.loop.Add(key)
	}
}

func (c *CronController) onCronJob(old, current client.Object) {
	before, _ := old.(*batchv1.CronJob)
	after, _ := current.(*batchv1.CronJob)
	c.mu.Lock()
	if after == nil {
		delete(c.keys, controller.KeyOf(before))
	} else {
		c.keys[controller.KeyOf(after)] = true
	}
	c.mu.Unlock()
	switch {
	case after == nil:
		return
	case before != nil && before.UID == after.UID && !sameSchedule(before, after):
		// A new schedule counts from now on: what it would have started before is not missed.
		schedule, err := parseSchedule(after)
		if err != nil {
			c.recorder.Event(after, corev1.EventTypeWarning, "UnParseableCronJobSchedule", "unparseable schedule for cronjob: "+after.Spec.Schedule)
			return
		}
		c.loop.AddAfter(controller.KeyOf(after), untilNext(after, time.Now(), schedule))
	default:
		c.loop.Add(controller.KeyOf(after))
	}
}

func sameSchedule(a, b *batchv1.CronJob) bool {
	zone := func(cj *batchv1.CronJob) string {
		if cj.Spec.TimeZone == nil {
			return ""
		}
		return *cj.Spec.TimeZone
	}
	return a.Spec.Schedule == b.Spec.Schedule && zone(a) == zone(b)
}

func (c *CronController) onJob(old, current client.Object) {
	for _, obj := range []client.Object{old, current} {
		if obj == nil {
			continue
		}
		if ref := metav1.GetControllerOfNoCopy(obj); ref != nil && ref.Kind == cronJobKind().Kind {
			c.loop.Add(controller.Key{Namespace: obj.GetNamespace(), Name: ref.Name})
		}
	}
}

func (c *CronController) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var shared batchv1.CronJob
	if err := c.client.Get(ctx, key, &shared); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	jobs, err := c.jobsOf(ctx, &shared)
	if err != nil {
		return 0, err
	}
	cj := shared.DeepCopy()
	changed := false
	for _, job := range planHistory(cj, jobs) {
		if c.deleteJob(ctx, cj, job.Namespace, job.Name, job.UID) == nil {
			changed = true
		}
	}
	again, more, syncErr := c.sync(ctx, cj, jobs)
	if changed || more {
		if err := c.client.Status().Update(ctx, cj); err != nil {
			return 0, client.IgnoreNotFound(fmt.Errorf("writing the status of cron job %s: %w", key, errors.Join(err, syncErr)))
		}
	}
	return again, syncErr
}

// jobsOf lists the jobs that a CronJob owns.
func (c *CronController) jobsOf(ctx context.Context, cj *batchv1.CronJob) ([]*batchv1.Job, error) {
	var list batchv1.JobList
	err := c.client.List(ctx, &list, client.InNamespace(cj.Namespace), client.MatchingFields{indexOwnerUID: string(cj.UID)})
	if err != nil {
		return nil, fmt.Errorf("listing jobs of cron job %s/%s: %w", cj.Namespace, cj.Name, err)
	}
	jobs := make([]*batchv1.Job, len(list.Items))
	for i := range list.Items {
		jobs[i] = &list.Items[i]
	}
	return jobs, nil
}

// sync brings the status of cj, a copy, up to date and starts a job if one is due. changed says
// that the status must be written, also when there is an error.
func (c *CronController) sync(ctx context.Context, cj *batchv1.CronJob, jobs []*batchv1.Job) (again time.Duration, changed bool, err error) {
	changed, events, err := planActive(cj, jobs, func(ref corev1.ObjectReference) (bool, error) {
		var job batchv1.Job
		err := c.client.Get(ctx, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, &job)
		return apierrors.IsNotFound(err) || (err == nil && job.UID != ref.UID), client.IgnoreNotFound(err)
	})
	c.tell(cj, events)
	if err != nil {
		return 0, changed, err
	}
	s := planStart(cj, time.Now())
	c.tell(cj, s.events)
	if !s.due {
		return s.again, changed, nil
	}
	if cj.Spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent {
		for _, ref := range slices.Clone(cj.Status.Active) {
			if err := c.deleteJob(ctx, cj, ref.Namespace, ref.Name, ref.UID); err != nil {
				return 0, changed, fmt.Errorf("could not replace job %s/%s: %w", ref.Namespace, ref.Name, err)
			}
			changed = true
		}
	}
	started, err := c.startJob(ctx, cj, s.at)
	if err != nil {
		return 0, changed, err
	}
	if started != nil {
		cj.Status.Active = append(cj.Status.Active, refTo(started))
		cj.Status.LastScheduleTime = &metav1.Time{Time: s.at}
		changed = true
	}
	return s.again, changed, nil
}

// startJob makes the job for a time. It returns the one that a pass before a crash has made, and
// nil if somebody else has the name.
func (c *CronController) startJob(ctx context.Context, cj *batchv1.CronJob, at time.Time) (*batchv1.Job, error) {
	job, err := newScheduledJob(cj, at)
	if err != nil {
		return nil, err
	}
	err = c.client.Create(ctx, job)
	switch {
	case err == nil:
		c.recorder.Event(cj, corev1.EventTypeNormal, "SuccessfulCreate", "Created job "+job.Name)
		return job, nil
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil, nil // nothing can be created there any more
	case apierrors.IsAlreadyExists(err):
		var there batchv1.Job
		if err := c.client.Get(ctx, client.ObjectKeyFromObject(job), &there); err != nil {
			return nil, fmt.Errorf("getting the job that is there: %w", err)
		}
		if !metav1.IsControlledBy(&there, cj) || isListed(cj, there.UID) {
			return nil, nil
		}
		return &there, nil
	}
	c.recorder.Event(cj, corev1.EventTypeWarning, "FailedCreate", fmt.Sprintf("Error creating job: %v", err))
	return nil, err
}

// deleteJob deletes a job with its pods and takes it out of the list of active ones.
func (c *CronController) deleteJob(ctx context.Context, cj *batchv1.CronJob, namespace, name string, uid types.UID) error {
	target := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	err := c.client.Delete(ctx, target, client.PropagationPolicy(metav1.DeletePropagationBackground), client.Preconditions{UID: &uid})
	if client.IgnoreNotFound(err) != nil {
		c.recorder.Event(cj, corev1.EventTypeWarning, "FailedDelete", fmt.Sprintf("Deleted job: %v", err))
		return err
	}
	unlist(cj, uid)
	c.recorder.Event(cj, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job "+name)
	return nil
}

func (c *CronController) tell(cj *batchv1.CronJob, events []event) {
	for _, e := range events {
		c.recorder.Event(cj, e.kind, e.reason, e.note)
	}
}
