package workload

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// replicaKind is a kind whose objects keep a number of pods: ReplicaSet, and
// ReplicationController, which is looked at as if it were one.
type replicaKind struct {
	gvk    schema.GroupVersionKind
	name   string // of the loop
	object func() client.Object
	// view shows an object as a ReplicaSet; it shares its insides with it.
	view func(client.Object) *appsv1.ReplicaSet
	// withStatus is a copy of an object with another status.
	withStatus func(client.Object, appsv1.ReplicaSetStatus) client.Object
	list       lister[*appsv1.ReplicaSet]
	leaving    bool // the status has terminatingReplicas
}

// replicaSetKind is what owner references to a ReplicaSet say.
func replicaSetKind() schema.GroupVersionKind {
	return appsv1.SchemeGroupVersion.WithKind("ReplicaSet")
}

func replicaSets() replicaKind {
	return replicaKind{
		gvk: replicaSetKind(), name: "replicaset", leaving: true,
		object: func() client.Object { return &appsv1.ReplicaSet{} },
		view: func(obj client.Object) *appsv1.ReplicaSet {
			rs, _ := obj.(*appsv1.ReplicaSet)
			return rs
		},
		withStatus: func(obj client.Object, status appsv1.ReplicaSetStatus) client.Object {
			rs := obj.(*appsv1.ReplicaSet).DeepCopy()
			rs.Status = status
			return rs
		},
		list: listReplicaSets,
	}
}

func replicationControllers() replicaKind {
	return replicaKind{
		gvk: corev1.SchemeGroupVersion.WithKind("ReplicationController"), name: "replicationcontroller",
		object: func() client.Object { return &corev1.ReplicationController{} },
		view: func(obj client.Object) *appsv1.ReplicaSet {
			if rc, ok := obj.(*corev1.ReplicationController); ok {
				return asReplicaSet(rc)
			}
			return nil
		},
		withStatus: func(obj client.Object, status appsv1.ReplicaSetStatus) client.Object {
			rc := obj.(*corev1.ReplicationController).DeepCopy()
			rc.Status = corev1.ReplicationControllerStatus{
				Replicas: status.Replicas, FullyLabeledReplicas: status.FullyLabeledReplicas, ReadyReplicas: status.ReadyReplicas,
				AvailableReplicas: status.AvailableReplicas, ObservedGeneration: status.ObservedGeneration,
			}
			for _, c := range status.Conditions {
				rc.Status.Conditions = append(rc.Status.Conditions, corev1.ReplicationControllerCondition{
					Type: corev1.ReplicationControllerConditionType(c.Type), Status: c.Status,
					LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
				})
			}
			return rc
		},
		list: func(ctx context.Context, c client.Client, opts ...client.ListOption) ([]*appsv1.ReplicaSet, error) {
			var list corev1.ReplicationControllerList
			if err := c.List(ctx, &list, opts...); err != nil {
				return nil, fmt.Errorf("listing replication controllers: %w", err)
			}
			views := make([]*appsv1.ReplicaSet, len(list.Items))
			for i := range list.Items {
				views[i] = asReplicaSet(&list.Items[i])
			}
			return views, nil
		},
	}
}

// asReplicaSet shows a ReplicationController as the ReplicaSet that would do the same.
func asReplicaSet(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{
		ObjectMeta: rc.ObjectMeta,
		Spec:       appsv1.ReplicaSetSpec{Replicas: rc.Spec.Replicas, MinReadySeconds: rc.Spec.MinReadySeconds},
		Status: appsv1.ReplicaSetStatus{
			Replicas: rc.Status.Replicas, FullyLabeledReplicas: rc.Status.FullyLabeledReplicas, ReadyReplicas: rc.Status.ReadyReplicas,
			AvailableReplicas: rc.Status.AvailableReplicas, ObservedGeneration: rc.Status.ObservedGeneration,
		},
	}
	if rc.Spec.Selector != nil {
		rs.Spec.Selector = &metav1.LabelSelector{MatchLabels: rc.Spec.Selector}
	}
	if rc.Spec.Template != nil {
		rs.Spec.Template = *rc.Spec.Template
	}
	for _, c := range rc.Status.Conditions {
		rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status,
			LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
	return rs
}
