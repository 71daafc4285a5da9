package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/app/render"
)

// annotationRendered is a digest of what an object was made from.
const annotationRendered = "gantry.dev/rendered"

// ownedKey names an object of an application.
type ownedKey struct{ kind, name string }

// keptKinds are what applications consist of. What is listed as kept is not removed with its cause.
func keptKinds(routing string) []client.ObjectList {
	out := []client.ObjectList{
		&corev1.ServiceAccountList{}, &corev1.PersistentVolumeClaimList{}, &appsv1.DeploymentList{}, &batchv1.CronJobList{}, &corev1.ServiceList{},
		&policyv1.PodDisruptionBudgetList{}, &autoscalingv2.HorizontalPodAutoscalerList{}, &networkingv1.IngressList{},
	}
	if routing == render.RouteGateway {
		out = append(out, &gatewayv1.HTTPRouteList{})
	}
	return out
}

// readOwned lists the objects of an application, others' with the same label left out.
func (c *Controller) readOwned(ctx context.Context, v *view) (map[ownedKey]client.Object, error) {
	out := map[ownedKey]client.Object{}
	for _, list := range keptKinds(v.platform.routing) {
		if err := c.client.List(ctx, list, client.InNamespace(v.app.Namespace), client.MatchingLabels{v1alpha1.LabelApp: v.app.Name}); err != nil {
			return nil, fmt.Errorf("reading objects of the application: %w", err)
		}
		err := meta.EachListItem(list, func(item runtime.Object) error {
			obj, ok := item.(client.Object)
			if !ok || obj.GetLabels()[render.LabelManagedBy] != render.ManagedBy || obj.GetLabels()[v1alpha1.LabelAddon] != "" {
				return nil
			}
			if _, claim := obj.(*corev1.PersistentVolumeClaim); claim || metav1.IsControlledBy(obj, v.app) {
				out[ownedKey{kindOf(obj), obj.GetName()}] = obj
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("reading objects of the application: %w", err)
		}
	}
	return out, nil
}

// kindOf is the kind of an object by its Go type.
func kindOf(obj client.Object) string { return reflect.TypeOf(obj).Elem().Name() }

// apply makes the objects of an application what they should be.
func (c *Controller) apply(ctx context.Context, v *view) error {
	in, err := c.input(ctx, v)
	if err != nil {
		return err
	}
	wanted := map[ownedKey]bool{}
	if v.history.last() != nil {
		for _, obj := range render.Objects(in) {
			key := ownedKey{kindOf(obj), obj.GetName()}
			wanted[key] = true
			if d, ok := obj.(*appsv1.Deployment); ok {
				keepAsleep(d, v)
			}
			if err := c.applyOne(ctx, v, key, obj); err != nil {
				return err
			}
		}
	}
	for key, obj := range v.owned {
		_, claim := obj.(*corev1.PersistentVolumeClaim)
		_, account := obj.(*corev1.ServiceAccount)
		if wanted[key] || claim || account || obj.GetDeletionTimestamp() != nil {
			continue
		}
		err := c.client.Delete(ctx, obj.DeepCopyObject().(client.Object), client.PropagationPolicy(metav1.DeletePropagationBackground))
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("deleting the %s %s: %w", key.kind, key.name, err)
		}
		delete(v.owned, key)
	}
	return nil
}

// keepAsleep carries a Deployment's sleep on, or ends it where pods are wanted.
func keepAsleep(d *appsv1.Deployment, v *view) {
	current := v.deployment(d.Name)
	if current == nil || *d.Spec.Replicas > 0 {
		return
	}
	if since, ok := current.Annotations[v1alpha1.AnnotationAsleep]; ok {
		metav1.SetMetaDataAnnotation(&d.ObjectMeta, v1alpha1.AnnotationAsleep, since)
	}
}

// applyOne makes one object what it should be.
func (c *Controller) applyOne(ctx context.Context, v *view, key ownedKey, obj client.Object) error {
	sum, err := digest(obj)
	if err != nil {
		return err
	}
	annotations := obj.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[annotationRendered] = sum
	obj.SetAnnotations(annotations)
	current := v.owned[key]
	if current == nil {
		err := c.client.Create(ctx, obj)
		if isAlreadyExists(err) {
			v.conflict = fmt.Sprintf("%s %s is there and does not belong to this application; rename or delete it", key.kind, key.name)
			return nil
		}
		if err != nil {
			return fmt.Errorf("making the %s %s: %w", key.kind, key.name, err)
		}
		v.owned[key] = obj
		return nil
	}
	next := overlay(current, obj)
	if next == nil {
		return nil
	}
	if err := c.client.Update(ctx, next); err != nil {
		return fmt.Errorf("changing the %s %s: %w", key.kind, key.name, err)
	}
	v.owned[key] = next
	return nil
}

// digest is one of what an object is made from, but for the number of its pods.
func digest(obj client.Object) (string, error) {
	if d, ok := obj.(*appsv1.Deployment); ok {
		d = d.DeepCopy()
		d.Spec.Replicas = nil
		delete(d.Annotations, v1alpha1.AnnotationAsleep)
		obj = d
	}
	text, err := json.Marshal(obj)
	if err != nil {
		return "", fmt.Errorf("encoding the %s %s: %w", kindOf(obj), obj.GetName(), err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8]), nil
}

// overlay is current changed to what is wanted, nil if it is that already. What others set stays where we say nothing.
func overlay(current, wanted client.Object) client.Object {
	next := current.DeepCopyObject().(client.Object)
	annotations := next.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	for _, key := range []string{annotationRendered, v1alpha1.AnnotationHold, v1alpha1.AnnotationAsleep, render.AnnotationIssuer} {
		if value, ok := wanted.GetAnnotations()[key]; ok {
			annotations[key] = value
		} else {
			delete(annotations, key)
		}
	}
	next.SetAnnotations(annotations)
	labels := next.GetLabels()
	for key, value := range wanted.GetLabels() {
		labels[key] = value
	}
	next.SetLabels(labels)
	same := equality.Semantic.DeepEqual(current.GetAnnotations(), annotations) && equality.Semantic.DeepEqual(current.GetLabels(), labels)
	if setSpec(next, wanted) || !same {
		return next
	}
	return nil
}

// setSpec makes the spec of next that of wanted, and says whether they differed in what wanted says.
func setSpec(next, wanted client.Object) bool {
	switch n := next.(type) {
	case *corev1.Service:
		w := wanted.(*corev1.Service)
		differs := !equality.Semantic.DeepDerivative(w.Spec, n.Spec)
		n.Spec.Type, n.Spec.Selector, n.Spec.Ports = w.Spec.Type, w.Spec.Selector, w.Spec.Ports
		return differs
	case *corev1.PersistentVolumeClaim:
		asked, has := wanted.(*corev1.PersistentVolumeClaim).Spec.Resources.Requests[corev1.ResourceStorage], n.Spec.Resources.Requests[corev1.ResourceStorage]
		if asked.Cmp(has) <= 0 { // a volume does not shrink
			return false
		}
		n.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: asked}
		return true
	case *corev1.ServiceAccount:
		differs := n.AutomountServiceAccountToken == nil || *n.AutomountServiceAccountToken
		n.AutomountServiceAccountToken = new(false)
		return differs
	}
	to, from := reflect.ValueOf(next).Elem().FieldByName("Spec"), reflect.ValueOf(wanted).Elem().FieldByName("Spec")
	differs := !equality.Semantic.DeepDerivative(from.Interface(), to.Interface())
	to.Set(from)
	return differs
}

// input is what the objects of an application follow from.
func (c *Controller) input(ctx context.Context, v *view) (render.Input, error) {
	in := render.Input{
		App: v.app, Processes: assign(v.history, v.next), Replicas: map[string]int32{}, Stopped: v.stopped(), Routing: v.platform.routing,
		Hosts: v.platform.hosts, Redirects: v.platform.redirects, Listener: v.platform.listener, Hold: holdTime,
		IngressClass: v.platform.class, Issuer: v.platform.issuer,
	}
	if v.removed {
		in.Routing = render.RouteNone
	}
	rolling := v.history.next != nil && v.next.Phase == v1alpha1.ReleaseRolling
	for _, process := range render.Processes(&v.app.Spec) {
		scale := render.ScaleOf(process)
		v.needs = v.needs || process.Schedule == "" && (scale.Min == 0 || scale.Counted)
	}
	if v.needs && !in.Stopped {
		_, err := c.opts.Metrics.Counts(ctx, v.app.Namespace, v1alpha1.ObjectName(v.app.Name, v1alpha1.WebProcess))
		v.metrics = !errors.Is(err, ErrNoMetrics)
	}
	in.Metrics = v.metrics
	for name, version := range in.Processes {
		process, ok := render.Processes(version.Content)[name]
		if !ok || process.Schedule != "" {
			continue
		}
		if now, ok := render.Processes(&v.app.Spec)[name]; ok {
			process.Scale = now.Scale
		}
		replicas, err := c.replicas(ctx, v, name, process, rolling)
		if err != nil {
			return in, err
		}
		in.Replicas[name] = replicas
	}
	if at := v.next.Canary; v.history.next != nil && (v.next.Phase == v1alpha1.ReleaseCanary || rolling && at != nil) {
		coming := v.history.next.DeepCopy()
		coming.Status = v.next
		canary := &render.Canary{Version: version(coming)}
		steps := rolloutOf(v.app.Spec.Rollout).steps
		share := steps[0]
		if at != nil && !at.Since.IsZero() {
			canary.Weight, share = at.Weight, at.Weight
		}
		canary.Replicas = canaryReplicas(in.Replicas[v1alpha1.WebProcess], share)
		in.Canary = canary
	}
	return in, nil
}

func isAlreadyExists(err error) bool { return err != nil && client.IgnoreAlreadyExists(err) == nil }
