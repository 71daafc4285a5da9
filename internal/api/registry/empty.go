package registry

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"

	"gantry.dev/gantry/internal/store"
)

// dropEmpty sets slices to nil that are empty, as far as JSON shows the difference and validation
// allows it. Protobuf, in which objects are stored, knows no empty slices: what is read from etcd,
// by us after a restart or by upstream's server, has nil, and an object must not look otherwise
// while it is in memory.
func dropEmpty(obj store.Object) {
	switch o := obj.(type) {
	case *corev1.Pod:
		for i := range o.Spec.Volumes {
			if projected := o.Spec.Volumes[i].Projected; projected != nil {
				nilIfEmpty(&projected.Sources)
			}
		}
	case *corev1.Node:
		for i := range o.Status.Images {
			nilIfEmpty(&o.Status.Images[i].Names)
		}
	case *corev1.LimitRange:
		nilIfEmpty(&o.Spec.Limits)
	case *discoveryv1.EndpointSlice:
		nilIfEmpty(&o.Endpoints)
		nilIfEmpty(&o.Ports)
	case *rbacv1.Role:
		nilIfEmpty(&o.Rules)
	case *rbacv1.ClusterRole:
		nilIfEmpty(&o.Rules)
	case *storagev1.CSINode:
		nilIfEmpty(&o.Spec.Drivers)
		for i := range o.Spec.Drivers {
			nilIfEmpty(&o.Spec.Drivers[i].TopologyKeys)
		}
	case *autoscalingv2.HorizontalPodAutoscaler:
		nilIfEmpty(&o.Status.CurrentMetrics)
	case *resourcev1.ResourceClaim:
		nilIfEmpty(&o.Spec.Devices.Requests)
		for i := range o.Status.Devices {
			nilIfEmpty(&o.Status.Devices[i].Conditions)
		}
	case *resourcev1.ResourceClaimTemplate:
		nilIfEmpty(&o.Spec.Spec.Devices.Requests)
	}
}

func nilIfEmpty[T any](slice *[]T) {
	if len(*slice) == 0 {
		*slice = nil
	}
}
