package compile

import (
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/network/gateway"
)

// Diff is what makes the table next of before; nil if they are the same.
func Diff(before, next *gateway.Table) *gateway.Delta {
	d := &gateway.Delta{}
	if !reflect.DeepEqual(before.Settings, next.Settings) {
		d.Settings = &next.Settings
	}
	if !reflect.DeepEqual(before.Listeners, next.Listeners) {
		d.Listeners = &next.Listeners
	}
	d.Certificates = changed(before.Certificates, next.Certificates)
	d.Services = changed(before.Services, next.Services)
	d.TLSChallenges = changed(before.TLSChallenges, next.TLSChallenges)
	for owner, routes := range next.Routes {
		if !reflect.DeepEqual(before.Routes[owner], routes) {
			set(&d.Routes, owner, routes)
		}
	}
	for owner := range before.Routes {
		if _, there := next.Routes[owner]; !there {
			set(&d.Routes, owner, nil)
		}
	}
	for token, answer := range next.Challenges {
		if before.Challenges[token] != answer {
			set(&d.Challenges, token, answer)
		}
	}
	for token := range before.Challenges {
		if _, there := next.Challenges[token]; !there {
			set(&d.Challenges, token, "")
		}
	}
	if reflect.DeepEqual(d, &gateway.Delta{}) {
		return nil
	}
	return d
}

func set[V any](m *map[string]V, key string, v V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[key] = v
}

// changed has what is new or different, and nil for what is gone.
func changed[V any](before, next map[string]V) map[string]*V {
	var out map[string]*V
	for key, v := range next {
		if old, there := before[key]; !there || !reflect.DeepEqual(old, v) {
			set(&out, key, &v)
		}
	}
	for key := range before {
		if _, there := next[key]; !there {
			set(&out, key, nil)
		}
	}
	return out
}

// Matters reports whether a change of an object may change what Compile made last. last may be nil.
func Matters(last *Result, old, current client.Object) bool {
	obj := current
	if obj == nil {
		obj = old
	}
	key := client.ObjectKeyFromObject(obj)
	switch obj := obj.(type) {
	case *corev1.Secret:
		return last == nil || last.Secrets.Has(key) ||
			key.Namespace == Namespace && (obj.Labels[LabelCertificate] != "" || key.Name == ChallengeSecret)
	case *corev1.Service:
		if last != nil && !last.ServiceRefs.Has(key) {
			return false
		}
		before, ok1 := old.(*corev1.Service)
		after, ok2 := current.(*corev1.Service)
		return !ok1 || !ok2 || before == nil || after == nil || !equality.Semantic.DeepEqual(before.Spec, after.Spec) ||
			before.Annotations[AnnotationHold] != after.Annotations[AnnotationHold] || !maps.Equal(before.Labels, after.Labels)
	case *corev1.Node:
		before, ok1 := old.(*corev1.Node)
		after, ok2 := current.(*corev1.Node)
		return !ok1 || !ok2 || before == nil || after == nil || !slices.Equal(before.Status.Addresses, after.Status.Addresses) ||
			before.Annotations[AnnotationPorts] != after.Annotations[AnnotationPorts]
	case *corev1.Namespace:
		return old == nil || current == nil || !maps.Equal(old.GetLabels(), current.GetLabels())
	}
	return old == nil || current == nil || old.GetGeneration() != current.GetGeneration() ||
		!maps.Equal(old.GetAnnotations(), current.GetAnnotations())
}
