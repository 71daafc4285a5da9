package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Ephemeral makes the claims of pods' generic ephemeral volumes. The garbage collector deletes
// them with the pod that owns them.
type Ephemeral struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	loop      *controller.Loop
}

// NewEphemeral checks opts and returns an Ephemeral that has started nothing; call Run.
func NewEphemeral(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*Ephemeral, error) {
	if c == nil || informers == nil || recorder == nil {
		return nil, errors.New("volume: a client, informers and a recorder are needed")
	}
	e := &Ephemeral{client: c, informers: informers, recorder: recorder}
	var err error
	e.loop, err = controller.NewLoop(controller.LoopOptions{Name: "ephemeral-volume", Workers: opts.Workers, Log: opts.Log, Reconcile: e.reconcile})
	if err != nil {
		return nil, err
	}
	e.loop.Watch(&corev1.Pod{}, func(old, current client.Object) {
		// A pod's volumes never change, so only a new pod is of interest.
		if pod, ok := current.(*corev1.Pod); ok && (old == nil || old.GetUID() != pod.UID) && hasEphemeral(pod) {
			e.loop.Add(controller.KeyOf(pod))
		}
	})
	e.loop.Watch(&corev1.PersistentVolumeClaim{}, func(old, current client.Object) {
		if current != nil || old == nil {
			return
		}
		if owner := metav1.GetControllerOf(old); owner != nil && owner.Kind == "Pod" {
			e.loop.Add(controller.Key{Namespace: old.GetNamespace(), Name: owner.Name})
		}
	})
	return e, nil
}

// Run reconciles until ctx ends.
func (e *Ephemeral) Run(ctx context.Context) error { return e.loop.Run(ctx, e.informers) }

func hasEphemeral(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Ephemeral != nil })
}

func (e *Ephemeral) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	pod := &corev1.Pod{}
	if err := e.client.Get(ctx, key, pod); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if pod.DeletionTimestamp != nil {
		return 0, nil
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Ephemeral == nil || v.Ephemeral.VolumeClaimTemplate == nil {
			continue
		}
		if err := e.ensure(ctx, pod, v); err != nil {
			note := fmt.Sprintf("ephemeral volume %s: %v", v.Name, err)
			e.recorder.Event(pod, corev1.EventTypeWarning, reasonFailedBinding, note)
			return 0, errors.New(note)
		}
	}
	return 0, nil
}

func (e *Ephemeral) ensure(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) error {
	claim := &corev1.PersistentVolumeClaim{}
	name := ephemeral.VolumeClaimName(pod, v)
	err := e.client.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: name}, claim)
	switch {
	case err == nil:
		return ephemeral.VolumeIsForPod(pod, claim)
	case !apierrors.IsNotFound(err):
		return err
	}
	if err := e.client.Create(ctx, claimFor(pod, v)); err != nil {
		return fmt.Errorf("create PVC %s: %w", name, err)
	}
	return nil
}

// claimFor is the claim of a pod's generic ephemeral volume.
func claimFor(pod *corev1.Pod, v *corev1.Volume) *corev1.PersistentVolumeClaim {
	template := v.Ephemeral.VolumeClaimTemplate.DeepCopy()
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: ephemeral.VolumeClaimName(pod, v),
			Labels: template.Labels, Annotations: template.Annotations,
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID, Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(true),
			}},
		},
		Spec: template.Spec,
	}
}
