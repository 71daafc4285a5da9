package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// bindingPoll is how often a pod that waits for its volumes looks at them without an event.
const bindingPoll = 10 * time.Second

// reservation is what is to be written before a pod can be bound to a node.
type reservation struct {
	node   string
	pvs    []*corev1.PersistentVolume      // with a reference to a claim
	names  []types.NamespacedName          // the claims of pvs
	claims []*corev1.PersistentVolumeClaim // with the node on which they are to be provisioned
}

// reserve implements binder: it takes volumes for a pod on the node that was chosen.
func (v *volumes) reserve(pod *corev1.Pod, nodeName string) (wait bool, err error) {
	if len(claimNames(pod)) == 0 || v.state.profileOf(pod).Off.Has(VolumeBinding) {
		return false, nil
	}
	slot, ok := v.state.slots[nodeName]
	if !ok {
		return false, fmt.Errorf("node %q not found", nodeName)
	}
	claims, err := v.podClaims(pod)
	if err != nil {
		return false, err
	}
	if len(claims.match) == 0 && len(claims.chosen) == 0 {
		return false, nil
	}
	f := v.find(claims, v.state.nodes[slot].node)
	if len(f.reasons) > 0 {
		return false, errors.New(f.reasons[0])
	}
	r := &reservation{node: nodeName}
	for _, b := range f.static {
		pv, _, err := storagehelpers.GetBindVolumeToClaim(b.pv, b.claim)
		if err != nil {
			return false, fmt.Errorf("referring to a claim: %w", err)
		}
		r.pvs = append(r.pvs, pv)
		r.names = append(r.names, client.ObjectKeyFromObject(b.claim))
	}
	for _, claim := range f.provision {
		next := claim.DeepCopy()
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, storagehelpers.AnnSelectedNode, nodeName)
		r.claims = append(r.claims, next)
	}
	for _, pv := range r.pvs {
		v.assumedPVs[pv.Name] = pv
	}
	for _, claim := range r.claims {
		v.assumedClaims[client.ObjectKeyFromObject(claim)] = claim
	}
	v.reserved[pod.UID] = r
	return true, nil
}

// unreserve implements binder.
func (v *volumes) unreserve(pod *corev1.Pod, _ string) {
	r := v.reserved[pod.UID]
	if r == nil {
		return
	}
	delete(v.reserved, pod.UID)
	for _, pv := range r.pvs {
		if v.assumedPVs[pv.Name] == pv {
			delete(v.assumedPVs, pv.Name)
		}
	}
	for _, claim := range r.claims {
		if key := client.ObjectKeyFromObject(claim); v.assumedClaims[key] == claim {
			delete(v.assumedClaims, key)
		}
	}
}

// preBind implements binder: it writes what was reserved, and waits until the volume controller
// has bound the claims.
func (v *volumes) preBind(ctx context.Context, pod *corev1.Pod, node string) error {
	v.mu.Lock()
	r := v.reserved[pod.UID]
	timeout := v.state.profileOf(pod).VolumeBindTimeout
	v.mu.Unlock()
	if r == nil || r.node != node {
		return fmt.Errorf("no pod volume found for node %q", node)
	}
	// From here on the API knows, or the pod is placed anew.
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.reserved[pod.UID] == r {
			v.unreserve(pod, node)
		}
	}()
	written := reservation{node: node, names: r.names}
	for _, pv := range r.pvs {
		next := pv.DeepCopy()
		if err := v.client.Update(ctx, next); err != nil {
			return err
		}
		written.pvs = append(written.pvs, next)
	}
	for _, claim := range r.claims {
		next := claim.DeepCopy()
		if err := v.client.Update(ctx, next); err != nil {
			return err
		}
		written.claims = append(written.claims, next)
	}
	if timeout <= 0 {
		timeout = 10 * time.Minute // kube-scheduler's bindTimeoutSeconds
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := v.await(ctx, &written); err != nil {
		return fmt.Errorf("binding volumes: %w", err)
	}
	return nil
}

// await returns when all claims of a written reservation are bound, or cannot be any more.
func (v *volumes) await(ctx context.Context, r *reservation) error {
	for {
		v.mu.Lock()
		done, err := v.allBound(r)
		changed := v.changed
		v.mu.Unlock()
		if done || err != nil {
			return err
		}
		timer := time.NewTimer(bindingPoll)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// allBound says whether the claims of a written reservation are bound, as events tell. An error
// says that they will not be: the pod must be placed anew.
func (v *volumes) allBound(r *reservation) (bool, error) {
	slot, ok := v.state.slots[r.node]
	if !ok {
		return false, fmt.Errorf("failed to get node %q: not found", r.node)
	}
	has := v.state.nodes[slot].node.Labels
	for i, written := range r.pvs {
		pv, claim := v.pvs[written.Name], v.claims[r.names[i]]
		switch {
		case pv == nil || claim == nil:
			return false, fmt.Errorf("failed to check binding: volume %q or claim %q is gone", written.Name, r.names[i])
		case older(pv.ResourceVersion, written.ResourceVersion):
			return false, nil
		case storagehelpers.CheckNodeAffinity(pv, has) != nil:
			return false, fmt.Errorf("pv %q node affinity doesn't match node %q", pv.Name, r.node)
		case pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID == "":
			return false, fmt.Errorf("ClaimRef got reset for pv %q", pv.Name)
		case !fullyBound(claim):
			return false, nil
		}
	}
	for _, written := range r.claims {
		if done, err := v.provisioned(written, r.node, has); !done || err != nil {
			return false, err
		}
	}
	return true, nil
}

func (v *volumes) provisioned(written *corev1.PersistentVolumeClaim, node string, has map[string]string) (bool, error) {
	claim := v.claims[client.ObjectKeyFromObject(written)]
	switch {
	case claim == nil || claim.UID != written.UID:
		return false, fmt.Errorf("failed to check provisioning pvc: claim %q is gone", written.Name)
	case older(claim.ResourceVersion, written.ResourceVersion):
		return false, nil
	case claim.Annotations == nil:
		return false, fmt.Errorf("selectedNode annotation reset for PVC %q", claim.Name)
	case claim.Annotations[storagehelpers.AnnSelectedNode] != node:
		return false, fmt.Errorf("provisioning failed for PVC %q", claim.Name)
	case claim.Spec.VolumeName == "":
		return false, nil
	}
	pv := v.pvs[claim.Spec.VolumeName]
	switch {
	case pv == nil:
		return false, nil
	case storagehelpers.CheckNodeAffinity(pv, has) != nil:
		return false, fmt.Errorf("pv %q node affinity doesn't match node %q", pv.Name, node)
	}
	return fullyBound(claim), nil
}

// older compares resource versions; what is not a number is taken as it is.
func older(a, b string) bool {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	return errX == nil && errY == nil && x < y
}
