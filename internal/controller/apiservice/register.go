package apiservice

import (
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"gantry.dev/gantry/internal/api/aggregate"
)

// The label that says how an APIService is kept, and its values.
const (
	managedLabel = "kube-aggregator.kubernetes.io/automanaged"
	onStart      = "onstart" // once at each start
	always       = "true"
)

// wanted is the APIService of a group version served here, nil for one that has none: apiregistration's own.
func wanted(gv schema.GroupVersion) *apiregistrationv1.APIService {
	if gv == metricsVersion() || gv == customMetricsVersion() {
		// Kept by whoever has it: a metrics-server that is installed changes it, and must find it so after a restart.
		return &apiregistrationv1.APIService{
			ObjectMeta: metav1.ObjectMeta{Name: gv.Version + "." + gv.Group},
			Spec:       apiregistrationv1.APIServiceSpec{Group: gv.Group, Version: gv.Version, GroupPriorityMinimum: 100, VersionPriority: 100},
		}
	}
	managed, group, version := onStart, int32(0), int32(0)
	var builtin bool
	if group, version, builtin = aggregate.Priority(gv); !builtin {
		if gv.Group == apiregistrationv1.GroupName {
			return nil
		}
		managed, group, version = always, aggregate.CustomGroupPriority, aggregate.CustomVersionPriority
	}
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: gv.Version + "." + gv.Group, Labels: map[string]string{managedLabel: managed}},
		Spec:       apiregistrationv1.APIServiceSpec{Group: gv.Group, Version: gv.Version, GroupPriorityMinimum: group, VersionPriority: version},
	}
}

// customMetricsVersion is what a metrics adapter serves, and this server while there is none.
func customMetricsVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: "custom.metrics.k8s.io", Version: "v1beta2"}
}

// metricsVersion is what metrics-server serves, and this server while there is none.
func metricsVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: "metrics.k8s.io", Version: "v1beta1"}
}

// step is what is to be done about one APIService.
type step uint8

const (
	nothing step = iota
	create
	update
	remove
)

// planRegistration decides as upstream's autoregistration does. Desired and current are nil where there is none;
// atStart says that current was there when this server started, done that this server has settled it once.
func planRegistration(desired, current *apiregistrationv1.APIService, atStart, done bool) step {
	switch {
	case desired == nil && current == nil:
		return nothing
	case desired != nil && desired.Labels[managedLabel] == onStart && done:
		return nothing
	case current == nil:
		return create
	}
	switch current.Labels[managedLabel] {
	case onStart:
		if !atStart || done {
			return nothing
		}
	case always:
	default:
		return nothing
	}
	switch {
	case desired == nil:
		return remove
	case reflect.DeepEqual(desired.Spec, current.Spec):
		return nothing
	}
	return update
}
