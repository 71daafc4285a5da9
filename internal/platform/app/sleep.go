package app

import (
	"context"
	"errors"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/app/render"
)

const (
	// holdTime is for how long a gateway keeps a request that waits for a process to wake.
	holdTime = "60s"
	// quietPeriod is how often a process that may sleep is asked whether somebody used it.
	quietPeriod = 15 * time.Second
)

// replicas is how many pods a process has. It puts one to sleep that nobody asked for long enough.
func (c *Controller) replicas(ctx context.Context, v *view, name string, process v1alpha1.Process, rolling bool) (int32, error) {
	scale := render.ScaleOf(process)
	objectName := v1alpha1.ObjectName(v.app.Name, name)
	current := v.deployment(objectName)
	wake := ""
	if service := v.service(objectName); service != nil {
		wake = service.Annotations[v1alpha1.AnnotationWake]
	}
	_, scaled := v.owned[ownedKey{"HorizontalPodAutoscaler", objectName}]
	asleep := isAsleep(current, wake)
	sleepy := scale.Min == 0 && current != nil && !asleep && !rolling && !v.stopped() && desired(current) > 0
	if !sleepy {
		return replicasFor(scale, current, scaled, asleep, rolling), nil
	}
	counts, err := c.opts.Metrics.Counts(ctx, v.app.Namespace, objectName)
	if err != nil {
		if !errors.Is(err, ErrNoMetrics) {
			c.opts.Log.Debug("reading counts of a process", "namespace", v.app.Namespace, "name", objectName, "error", err)
		}
		v.soon(time.Minute)
		return replicasFor(scale, current, scaled, false, rolling), nil
	}
	c.mu.Lock()
	next, quietLong := c.quiet[current.UID].observe(counts, v.now, scale.Idle)
	c.quiet[current.UID] = next
	c.mu.Unlock()
	if !quietLong {
		v.soon(min(quietPeriod, max(scale.Idle/4, time.Second)))
		return replicasFor(scale, current, scaled, false, rolling), nil
	}
	// The mark goes in with the number of pods: the object that replicas of 0 are written to has it.
	marked := current.DeepCopy()
	metav1.SetMetaDataAnnotation(&marked.ObjectMeta, v1alpha1.AnnotationAsleep, orNoWake(wake))
	marked.Spec.Replicas = new(int32)
	if err := c.client.Update(ctx, marked); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	v.owned[ownedKey{"Deployment", objectName}] = marked
	c.mu.Lock()
	delete(c.quiet, current.UID)
	c.mu.Unlock()
	return 0, nil
}
