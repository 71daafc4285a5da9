package app

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
)

// KeptRemoved is how long a removed application can be brought back.
const KeptRemoved = 7 * 24 * time.Hour

// endOf is when an application is deleted with everything; zero is never.
func endOf(app *v1alpha1.App) (at time.Time) {
	if app.Spec.Expires != nil {
		at = app.Spec.Expires.Time
	}
	if removed, err := time.Parse(time.RFC3339, app.Annotations[v1alpha1.AnnotationRemoved]); err == nil {
		if end := removed.Add(KeptRemoved); at.IsZero() || end.Before(at) {
			at = end
		}
	}
	return at
}

// expire deletes an application whose time is over: its data first, and last the App, whose deletion takes along what
// it owns. Until then it returns how long it has.
func (c *Controller) expire(ctx context.Context, app *v1alpha1.App) (until time.Duration, gone bool, err error) {
	end := endOf(app)
	if end.IsZero() {
		return 0, false, nil
	}
	if left := end.Sub(c.opts.Now()); left > 0 {
		return left, false, nil
	}
	var claims corev1.PersistentVolumeClaimList
	if err := c.client.List(ctx, &claims, client.InNamespace(app.Namespace), client.MatchingLabels{v1alpha1.LabelApp: app.Name}); err != nil {
		return 0, true, fmt.Errorf("listing the volumes of the application: %w", err)
	}
	doomed := []client.Object{&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: app.Namespace, Name: v1alpha1.SecretName(app.Name)}}}
	for i := range claims.Items {
		if claims.Items[i].DeletionTimestamp == nil {
			doomed = append(doomed, claims.Items[i].DeepCopy())
		}
	}
	for _, obj := range append(doomed, app.DeepCopy()) {
		if err := client.IgnoreNotFound(c.client.Delete(ctx, obj, client.PropagationPolicy(metav1.DeletePropagationBackground))); err != nil {
			return 0, true, fmt.Errorf("deleting the %s %s: %w", kindOf(obj), obj.GetName(), err)
		}
	}
	c.events.Event(app, corev1.EventTypeNormal, "Expired", "the application was deleted with its volumes and secrets")
	return 0, true, nil
}
