package addon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// annotationRendered is a digest of what an object was made from.
const annotationRendered = "gantry.dev/rendered"

// kindOf is the kind of an object by its Go type.
func kindOf(obj client.Object) string { return reflect.TypeOf(obj).Elem().Name() }

// apply makes one object what it should be. An object of somebody else in its place is a problem.
func (c *Controller) apply(ctx context.Context, v *view, wanted client.Object) error {
	key := ownedKey{kindOf(wanted), wanted.GetName()}
	text, err := json.Marshal(wanted)
	if err != nil {
		return fmt.Errorf("encoding the %s %s: %w", key.kind, key.name, err)
	}
	sum := sha256.Sum256(text)
	annotations := maps.Clone(wanted.GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[annotationRendered] = hex.EncodeToString(sum[:8])
	wanted.SetAnnotations(annotations)
	current := v.owned[key]
	if current == nil {
		err := c.client.Create(ctx, wanted)
		if apierrors.IsAlreadyExists(err) {
			return problem(fmt.Sprintf("a %s %s is there that does not belong to it; rename or delete that", key.kind, key.name))
		}
		if err != nil {
			return fmt.Errorf("making the %s %s: %w", key.kind, key.name, err)
		}
		v.owned[key] = wanted
		return nil
	}
	next := overlay(current, wanted)
	if next == nil {
		return nil
	}
	if err := c.client.Update(ctx, next); err != nil {
		return fmt.Errorf("changing the %s %s: %w", key.kind, key.name, err)
	}
	v.owned[key] = next
	return nil
}

// overlay is current made what is wanted, nil if it is that already. What others set stays where we say nothing.
func overlay(current, wanted client.Object) client.Object {
	next := current.DeepCopyObject().(client.Object)
	differs := setContent(next, wanted)
	for _, part := range []struct {
		have, want map[string]string
		set        func(map[string]string)
	}{
		{next.GetLabels(), wanted.GetLabels(), next.SetLabels}, {next.GetAnnotations(), wanted.GetAnnotations(), next.SetAnnotations},
	} {
		merged := map[string]string{}
		maps.Copy(merged, part.have)
		maps.Copy(merged, part.want)
		if !maps.Equal(merged, part.have) {
			part.set(merged)
			differs = true
		}
	}
	if !differs {
		return nil
	}
	return next
}

// setContent makes what next holds that of wanted, and says whether they differed in what wanted says.
func setContent(next, wanted client.Object) bool {
	switch n := next.(type) {
	case *corev1.Secret:
		differs := false
		for key, value := range wanted.(*corev1.Secret).Data {
			if string(n.Data[key]) == string(value) {
				continue
			}
			if n.Data == nil {
				n.Data = map[string][]byte{}
			}
			n.Data[key], differs = value, true
		}
		return differs
	case *corev1.PersistentVolumeClaim:
		asked, has := wanted.(*corev1.PersistentVolumeClaim).Spec.Resources.Requests[corev1.ResourceStorage], n.Spec.Resources.Requests[corev1.ResourceStorage]
		if asked.Cmp(has) <= 0 { // a volume does not shrink
			return false
		}
		n.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: asked}
		return true
	case *corev1.Service:
		w := wanted.(*corev1.Service)
		differs := !equality.Semantic.DeepDerivative(w.Spec, n.Spec)
		n.Spec.Selector, n.Spec.Ports = w.Spec.Selector, w.Spec.Ports
		return differs
	case *appsv1.StatefulSet:
		// A cluster may drop fields that it does not know, so what it holds is no measure.
		w := wanted.(*appsv1.StatefulSet)
		differs := n.Annotations[annotationRendered] != w.Annotations[annotationRendered]
		n.Spec.Replicas, n.Spec.Template = w.Spec.Replicas, w.Spec.Template
		return differs
	case *batchv1.CronJob:
		w := wanted.(*batchv1.CronJob)
		differs := n.Annotations[annotationRendered] != w.Annotations[annotationRendered]
		n.Spec = w.Spec
		return differs
	}
	return false
}
