package registry

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/store"
)

// unstored is the strategy of a kind of cluster scope that nobody writes.
type unstored struct{ Strategy }

// NamespaceScoped implements Strategy.
func (unstored) NamespaceScoped() bool { return false }

// computedBy has the objects of a kind made when they are asked for: of a namespace, "" is all, and
// of a name, "" is all; what else is made does no harm. It has no table, and only get and list.
func (d *definition) computedBy(objects func(ctx context.Context, namespace, name string) ([]store.Object, error)) *definition {
	d.computed = objects
	d.info.Verbs = []string{"get", "list"}
	return d
}

// getComputed is Get of a kind without a table.
func (r *Resource) getComputed(ctx context.Context, namespace, name string) (*store.Entry, error) {
	objects, err := r.def.computed(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	for _, obj := range objects {
		if obj.GetName() == name && obj.GetNamespace() == namespace {
			return store.NewEntry(obj, r.def.served), nil
		}
	}
	return nil, apierrors.NewNotFound(r.Resource.GroupResource(), name)
}

// listComputed is List of a kind without a table.
func (r *Resource) listComputed(ctx context.Context, namespace string, sel selected) (List, error) {
	var list List
	objects, err := r.def.computed(ctx, namespace, sel.name)
	if err != nil {
		return list, err
	}
	for _, obj := range objects {
		entry := store.NewEntry(obj, r.def.served)
		if (namespace == "" || namespace == obj.GetNamespace()) && (sel.name == "" || sel.name == obj.GetName()) && (sel.filter == nil || sel.filter(entry)) {
			list.Entries = append(list.Entries, entry)
		}
	}
	return list, nil
}

// componentStatuses says how the parts of the control plane are. All but the store are in this
// process: they are as well as the server that answers.
func (r *Registry) componentStatuses(ctx context.Context, _, _ string) ([]store.Object, error) {
	etcd := corev1.ComponentCondition{Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"}
	if err := r.store.Sync(ctx); err != nil {
		etcd = corev1.ComponentCondition{Type: corev1.ComponentHealthy, Status: corev1.ConditionFalse, Error: err.Error()}
	}
	healthy := corev1.ComponentCondition{Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"}
	conditions := map[string]corev1.ComponentCondition{"controller-manager": healthy, "etcd-0": etcd, "scheduler": healthy}
	out := make([]store.Object, 0, len(conditions))
	for name, condition := range conditions {
		status := &corev1.ComponentStatus{ObjectMeta: metav1.ObjectMeta{Name: name}, Conditions: []corev1.ComponentCondition{condition}}
		status.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ComponentStatus"))
		out = append(out, status)
	}
	slices.SortFunc(out, func(a, b store.Object) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out, nil
}
