package app

import (
	"context"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/controller"
)

// wakePatch starts one pod and ends the sleep, in one write.
const wakePatch = `{"metadata":{"annotations":{"` + v1alpha1.AnnotationAsleep + `":null}},"spec":{"replicas":1}}`

// wake starts a process that sleeps because a request waits for it: two reads from memory and one write, beside
// everything else that is done for applications.
func (c *Controller) wake(ctx context.Context, key controller.Key) (time.Duration, error) {
	var service corev1.Service
	if err := c.client.Get(ctx, key, &service); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if service.Annotations[v1alpha1.AnnotationHold] == "" {
		return 0, nil // it does not sleep: it is suspended, or removed
	}
	var deployment appsv1.Deployment
	if err := c.client.Get(ctx, key, &deployment); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	since, asleep := deployment.Annotations[v1alpha1.AnnotationAsleep]
	if !asleep || since == service.Annotations[v1alpha1.AnnotationWake] {
		return 0, nil
	}
	return 0, c.client.Patch(ctx, deployment.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(wakePatch)))
}
