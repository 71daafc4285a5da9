package scheduler

import (
	"cmp"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
)

// volumes is what claims and volumes have to say about a pod's node: kube-scheduler's plugins
// VolumeRestrictions, NodeVolumeLimits, VolumeBinding and VolumeZone. It is an outsideFilter
// (volumefilter.go) and a binder (volumebind.go). Its objects follow events; on top lies what
// was reserved here and is not yet seen in them.
type volumes struct {
	client client.Client
	state  *State
	mu     *sync.Mutex // the scheduler's; guards all below

	claims     map[types.NamespacedName]*corev1.PersistentVolumeClaim
	pvs        map[string]*corev1.PersistentVolume
	free       map[string]map[string]*corev1.PersistentVolume // by class, those that are not bound for good
	classes    map[string]*storagev1.StorageClass
	csiNodes   map[string]*storagev1.CSINode
	csiDrivers map[string]*storagev1.CSIDriver
	capacities map[types.NamespacedName]*storagev1.CSIStorageCapacity

	assumedClaims map[types.NamespacedName]*corev1.PersistentVolumeClaim
	assumedPVs    map[string]*corev1.PersistentVolume
	reserved      map[types.UID]*reservation

	changed chan struct{} // closed when a claim or a volume changes, and made anew
}

func newVolumes(c client.Client, state *State, mu *sync.Mutex) *volumes {
	return &volumes{
		client: c, state: state, mu: mu,
		claims: map[types.NamespacedName]*corev1.PersistentVolumeClaim{}, pvs: map[string]*corev1.PersistentVolume{},
		free: map[string]map[string]*corev1.PersistentVolume{}, classes: map[string]*storagev1.StorageClass{},
		csiNodes: map[string]*storagev1.CSINode{}, csiDrivers: map[string]*storagev1.CSIDriver{},
		capacities:    map[types.NamespacedName]*storagev1.CSIStorageCapacity{},
		assumedClaims: map[types.NamespacedName]*corev1.PersistentVolumeClaim{}, assumedPVs: map[string]*corev1.PersistentVolume{},
		reserved: map[types.UID]*reservation{}, changed: make(chan struct{}),
	}
}

// claimNames lists the claims that a pod uses.
func claimNames(pod *corev1.Pod) []string {
	var names []string
	for i := range pod.Spec.Volumes {
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			names = append(names, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			names = append(names, ephemeral.VolumeClaimName(pod, v))
		}
	}
	return names
}

// sameClaims says whether volumes ask the same of a node for both pods. Pods without claims
// cost a look at their volumes.
func sameClaims(a, b *corev1.Pod) bool {
	of := func(pod *corev1.Pod) *corev1.Volume {
		for i := range pod.Spec.Volumes {
			if v := &pod.Spec.Volumes[i]; v.PersistentVolumeClaim != nil || v.Ephemeral != nil || isDisk(v) {
				return v
			}
		}
		return nil
	}
	x, y := of(a), of(b)
	if x == nil || y == nil {
		return x == y
	}
	return a.Namespace == b.Namespace && slices.Equal(claimNames(a), claimNames(b)) && !isDisk(x) && !isDisk(y)
}

// claim is a claim as it will be when what is reserved is written.
func (v *volumes) claim(key types.NamespacedName) *corev1.PersistentVolumeClaim {
	if claim := v.assumedClaims[key]; claim != nil {
		return claim
	}
	return v.claims[key]
}

// volume is a volume as it will be when what is reserved is written.
func (v *volumes) volume(name string) *corev1.PersistentVolume {
	if pv := v.assumedPVs[name]; pv != nil {
		return pv
	}
	return v.pvs[name]
}

// freeOf lists the volumes of a class that a claim may be bound to, by name.
func (v *volumes) freeOf(class string) []*corev1.PersistentVolume {
	list := make([]*corev1.PersistentVolume, 0, len(v.free[class]))
	for name := range v.free[class] {
		list = append(list, v.volume(name))
	}
	slices.SortFunc(list, func(a, b *corev1.PersistentVolume) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

func (v *volumes) setVolume(old, current *corev1.PersistentVolume) {
	if old != nil {
		delete(v.pvs, old.Name)
		class := storagehelpers.GetPersistentVolumeClass(old)
		if delete(v.free[class], old.Name); len(v.free[class]) == 0 {
			delete(v.free, class)
		}
	}
	if current != nil {
		v.pvs[current.Name] = current
		if current.Status.Phase != corev1.VolumeBound {
			class := storagehelpers.GetPersistentVolumeClass(current)
			if v.free[class] == nil {
				v.free[class] = map[string]*corev1.PersistentVolume{}
			}
			v.free[class][current.Name] = current
		}
	}
	// What was assumed was assumed of the object as it then was.
	if old != nil && (current == nil || old.ResourceVersion != current.ResourceVersion) {
		delete(v.assumedPVs, old.Name)
	}
	v.wake()
}

func (v *volumes) setClaim(old, current *corev1.PersistentVolumeClaim) {
	if old != nil {
		key := client.ObjectKeyFromObject(old)
		delete(v.claims, key)
		if current == nil || old.ResourceVersion != current.ResourceVersion {
			delete(v.assumedClaims, key)
		}
	}
	if current != nil {
		v.claims[client.ObjectKeyFromObject(current)] = current
	}
	v.wake()
}

// wake has those look again who wait for a binding.
func (v *volumes) wake() {
	close(v.changed)
	v.changed = make(chan struct{})
}

// set keeps a map of objects by key as their events say.
func set[K comparable, T client.Object](objects map[K]T, key func(client.Object) K, old, current client.Object) {
	if old != nil {
		delete(objects, key(old))
	}
	if object, ok := current.(T); ok {
		objects[key(current)] = object
	}
}

func nameOf(o client.Object) string { return o.GetName() }

// volumeSubscriptions are the kinds that volumes follow. Every event has those pods retried
// that it may help, by kube-scheduler's queueing hints.
func (s *Scheduler) volumeSubscriptions() []informer.Subscription {
	locked := func(f func(old, current client.Object)) func(old, current client.Object) {
		return func(old, current client.Object) {
			s.mu.Lock()
			defer s.mu.Unlock()
			f(old, current)
		}
	}
	return []informer.Subscription{
		{Object: &corev1.PersistentVolumeClaim{}, OnEvent: locked(s.onClaim)},
		{Object: &corev1.PersistentVolume{}, OnEvent: locked(func(old, current client.Object) {
			was, _ := old.(*corev1.PersistentVolume)
			is, _ := current.(*corev1.PersistentVolume)
			s.volumes.setVolume(was, is)
			if is != nil {
				s.retryRejectedBy(PluginsOf(VolumeBinding, VolumeZone, NodeVolumeLimits), nil)
			}
		})},
		{Object: &storagev1.StorageClass{}, OnEvent: locked(func(old, current client.Object) {
			set(s.volumes.classes, nameOf, old, current)
			is, _ := current.(*storagev1.StorageClass)
			if was, known := old.(*storagev1.StorageClass); is != nil &&
				(!known || !apiequality.Semantic.DeepEqual(was.AllowedTopologies, is.AllowedTopologies)) {
				s.retryRejectedBy(PluginsOf(VolumeBinding, VolumeZone), nil)
			}
		})},
		{Object: &storagev1.CSINode{}, OnEvent: locked(func(old, current client.Object) {
			set(s.volumes.csiNodes, nameOf, old, current)
			s.retryRejectedBy(PluginsOf(NodeVolumeLimits), nil) // without it there is no limit
		})},
		{Object: &storagev1.CSIDriver{}, OnEvent: locked(func(old, current client.Object) {
			set(s.volumes.csiDrivers, nameOf, old, current)
			s.retryRejectedBy(PluginsOf(VolumeBinding), nil)
		})},
		{Object: &storagev1.CSIStorageCapacity{}, OnEvent: locked(func(old, current client.Object) {
			set(s.volumes.capacities, client.ObjectKeyFromObject, old, current)
			if current != nil {
				s.retryRejectedBy(PluginsOf(VolumeBinding), nil)
			}
		})},
	}
}

func (s *Scheduler) onClaim(old, current client.Object) {
	was, _ := old.(*corev1.PersistentVolumeClaim)
	is, _ := current.(*corev1.PersistentVolumeClaim)
	s.volumes.setClaim(was, is)
	if is == nil {
		return
	}
	s.retryRejectedBy(PluginsOf(VolumeRestrictions, VolumeBinding, VolumeZone, NodeVolumeLimits), func(pod *corev1.Pod) bool {
		return pod.Namespace == is.Namespace && slices.Contains(claimNames(pod), is.Name)
	})
}

// claimsFreed has the pods retried that a pod kept from a volume which only one may use.
func (s *Scheduler) claimsFreed(gone *corev1.Pod) {
	names := claimNames(gone)
	if len(names) == 0 {
		return
	}
	s.retryRejectedBy(PluginsOf(VolumeRestrictions), func(pod *corev1.Pod) bool {
		return pod.Namespace == gone.Namespace && slices.ContainsFunc(claimNames(pod), func(name string) bool { return slices.Contains(names, name) })
	})
}
