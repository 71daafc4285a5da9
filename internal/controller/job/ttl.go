package job

import (
	"context"
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// TTLController deletes Jobs some time after they finished, as their ttlSecondsAfterFinished says.
type TTLController struct {
	client    client.Client
	informers controller.Informers
	loop      *controller.Loop
}

// NewTTL checks opts and returns a controller that has started nothing; call Run.
func NewTTL(c client.Client, informers controller.Informers, opts Options) (*TTLController, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	tc := &TTLController{client: c, informers: informers}
	var err error
	tc.loop, err = controller.NewLoop(controller.LoopOptions{
		Name: "ttl-after-finished", Workers: opts.Workers, BaseDelay: baseDelay, Log: opts.Log, Reconcile: tc.reconcile,
	})
	if err != nil {
		return nil, err
	}
	tc.loop.Watch(&batchv1.Job{}, func(_, current client.Object) {
		if job, ok := current.(*batchv1.Job); ok {
			if _, ok := expiry(job); ok {
				tc.loop.Add(controller.KeyOf(job))
			}
		}
	})
	return tc, nil
}

// Run reconciles until ctx ends.
func (c *TTLController) Run(ctx context.Context) error { return c.loop.Run(ctx, c.informers) }

// expiry is when a finished job is to go, if ever.
func expiry(job *batchv1.Job) (time.Time, bool) {
	over := outcome(job)
	if over == nil || job.Spec.TTLSecondsAfterFinished == nil || job.DeletionTimestamp != nil || over.LastTransitionTime.IsZero() {
		return time.Time{}, false
	}
	return over.LastTransitionTime.Add(time.Duration(*job.Spec.TTLSecondsAfterFinished) * time.Second), true
}

func (c *TTLController) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var job batchv1.Job
	if err := c.client.Get(ctx, key, &job); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	at, ok := expiry(&job)
	if !ok {
		return 0, nil
	}
	if left := time.Until(at); left > 0 {
		return left, nil
	}
	target := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: job.Namespace, Name: job.Name}}
	err := c.client.Delete(ctx, target, client.PropagationPolicy(metav1.DeletePropagationForeground),
		client.Preconditions{UID: &job.UID, ResourceVersion: &job.ResourceVersion})
	if err := client.IgnoreNotFound(err); err != nil {
		return 0, fmt.Errorf("deleting job %s, whose time to live is over: %w", key, err)
	}
	return 0, nil
}
