package gc

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ownerState is what a fresh read of an owner said.
type ownerState uint8

const (
	solid      ownerState = iota // it is there
	dangling                     // it is gone, or another object has its name
	waiting                      // it is being deleted and waits for its dependents
	unreadable                   // its kind is not served (now)
)

// step is what to do with an object.
type step uint8

const (
	keep                  step = iota
	dropReferences             // its owners that are gone or wait do not matter, it has others
	deleteBackground           //
	deleteForeground           // after its own dependents
	deleteOrphan               // it asks for its own dependents to be released
	unblockThenForeground      // two foreground deletions would wait for each other
)

// decide says what becomes of an object with owners. states are those of its references
// in order; dependents are those the graph knows of it.
func decide(obj client.Object, states []ownerState, dependents []item) (step, []types.UID) {
	var drop []types.UID
	counts := map[ownerState]int{}
	for i, ref := range obj.GetOwnerReferences() {
		counts[states[i]]++
		if states[i] == dangling || states[i] == waiting {
			drop = append(drop, ref.UID)
		}
	}
	switch {
	case len(states) == 0 || counts[unreadable] > 0 && counts[solid] == 0:
		return keep, nil
	case counts[solid] > 0 && len(drop) == 0:
		return keep, nil
	case counts[solid] > 0:
		return dropReferences, drop
	case counts[waiting] > 0 && len(dependents) > 0:
		if slices.ContainsFunc(dependents, func(d item) bool { return d.foreground }) {
			return unblockThenForeground, nil
		}
		return deleteForeground, nil
	case slices.Contains(obj.GetFinalizers(), metav1.FinalizerOrphanDependents):
		return deleteOrphan, nil
	case slices.Contains(obj.GetFinalizers(), metav1.FinalizerDeleteDependents):
		return deleteForeground, nil
	}
	return deleteBackground, nil
}

// blocking returns the dependents that keep an owner from going in the foreground.
func blocking(owner types.UID, dependents []item) []item {
	return slices.DeleteFunc(slices.Clone(dependents), func(d item) bool {
		return !slices.ContainsFunc(d.owners, func(ref metav1.OwnerReference) bool { return ref.UID == owner && blocks(ref) })
	})
}
