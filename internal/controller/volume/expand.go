package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/volume/local"
)

// Expander acknowledges larger requests of claims that have local volumes: a folder has no size
// of its own. Volumes of others wait for their resizer.
type Expander struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	loop      *controller.Loop
}

// NewExpander checks opts and returns an Expander that has started nothing; call Run.
func NewExpander(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*Expander, error) {
	if c == nil || informers == nil || recorder == nil {
		return nil, errors.New("volume: a client, informers and a recorder are needed")
	}
	e := &Expander{client: c, informers: informers, recorder: recorder}
	var err error
	e.loop, err = controller.NewLoop(controller.LoopOptions{Name: "expand", Workers: opts.Workers, Log: opts.Log, Reconcile: e.reconcile})
	if err != nil {
		return nil, err
	}
	e.loop.Watch(&corev1.PersistentVolumeClaim{}, func(old, current client.Object) {
		claim, ok := current.(*corev1.PersistentVolumeClaim)
		if !ok || !wantsMore(claim) {
			return
		}
		if was, ok := old.(*corev1.PersistentVolumeClaim); !ok || !wantsMore(was) || was.Spec.Resources.Requests.Storage().Cmp(*claim.Spec.Resources.Requests.Storage()) != 0 {
			e.loop.Add(controller.KeyOf(claim))
		}
	})
	return e, nil
}

// Run reconciles until ctx ends.
func (e *Expander) Run(ctx context.Context) error { return e.loop.Run(ctx, e.informers) }

// wantsMore says whether a bound claim asks for more than it has.
func wantsMore(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Status.Phase == corev1.ClaimBound && claim.Spec.Resources.Requests.Storage().Cmp(*claim.Status.Capacity.Storage()) > 0
}

func (e *Expander) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	claim := &corev1.PersistentVolumeClaim{}
	if err := e.client.Get(ctx, key, claim); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if !wantsMore(claim) {
		return 0, nil
	}
	pv := &corev1.PersistentVolume{}
	if err := e.client.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, pv); err != nil {
		return 0, fmt.Errorf("reading a claim's volume: %w", err)
	}
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != claim.UID {
		return 0, fmt.Errorf("persistent Volume is not bound to PVC being updated : %s", key)
	}
	want := *claim.Spec.Resources.Requests.Storage()
	if !local.Ours(pv) {
		kind := corev1.EventTypeWarning
		if pv.Spec.CSI != nil {
			kind = corev1.EventTypeNormal
		}
		e.recorder.Event(claim, kind, reasonExternalExpanding, "waiting for an external controller to expand this PVC")
		return 0, nil
	}
	if pv.Spec.Capacity.Storage().Cmp(want) < 0 {
		next := pv.DeepCopy()
		next.Spec.Capacity[corev1.ResourceStorage] = want
		if err := e.client.Update(ctx, next); err != nil {
			return 0, fmt.Errorf("enlarging a volume: %w", err)
		}
	}
	if err := e.client.Status().Update(ctx, expanded(claim, want)); err != nil {
		return 0, fmt.Errorf("writing a claim's status: %w", err)
	}
	e.recorder.Event(claim, corev1.EventTypeNormal, "VolumeResizeSuccessful", fmt.Sprintf("ExpandVolume succeeded for volume %s", key))
	return 0, nil
}

// expanded is a claim whose volume now has the size that it asks for.
func expanded(claim *corev1.PersistentVolumeClaim, size resource.Quantity) *corev1.PersistentVolumeClaim {
	next := claim.DeepCopy()
	s := &next.Status
	if s.Capacity == nil {
		s.Capacity = corev1.ResourceList{}
	}
	if s.AllocatedResources == nil {
		s.AllocatedResources = corev1.ResourceList{}
	}
	s.Capacity[corev1.ResourceStorage], s.AllocatedResources[corev1.ResourceStorage] = size, size
	delete(s.AllocatedResourceStatuses, corev1.ResourceStorage)
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
		return c.Type == corev1.PersistentVolumeClaimResizing || c.Type == corev1.PersistentVolumeClaimFileSystemResizePending ||
			c.Type == corev1.PersistentVolumeClaimControllerResizeError || c.Type == corev1.PersistentVolumeClaimNodeResizeError
	})
	return next
}
