package volume

import (
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/volume/local"
)

// index is what events tell about volumes, claims and nodes, so that a look at one claim does
// not read all volumes. What it returns may be older than the API: a write that rests on it
// carries a resource version, and every event leads to another look.
type index struct {
	mu      sync.Mutex // guards the fields below
	free    map[string]*corev1.PersistentVolume
	byClaim map[controller.Key]map[string]*corev1.PersistentVolume // volumes that refer to a claim
	pending map[controller.Key]string                              // class of claims without a volume
	nodes   map[string]*nodeEntry
	told    map[types.UID]toldEvent
}

type nodeEntry struct {
	there   bool
	labels  map[string]string
	dir     string
	fit     bool
	removed []string
	volumes map[string]bool // ours on the node, by name; true if the folder is to go
	folders map[string]string
}

type toldEvent struct {
	event event
	at    time.Time
}

func newIndex() *index {
	return &index{
		free: map[string]*corev1.PersistentVolume{}, byClaim: map[controller.Key]map[string]*corev1.PersistentVolume{},
		pending: map[controller.Key]string{}, nodes: map[string]*nodeEntry{}, told: map[types.UID]toldEvent{},
	}
}

func claimKey(pv *corev1.PersistentVolume) controller.Key {
	if pv.Spec.ClaimRef == nil {
		return controller.Key{}
	}
	return controller.Key{Namespace: pv.Spec.ClaimRef.Namespace, Name: pv.Spec.ClaimRef.Name}
}

// setVolume takes in a volume's event and returns the keys to look at.
func (x *index) setVolume(old, current *corev1.PersistentVolume) []controller.Key {
	x.mu.Lock()
	defer x.mu.Unlock()
	var keys []controller.Key
	if old != nil {
		delete(x.free, old.Name)
		if key := claimKey(old); key.Name != "" {
			delete(x.byClaim[key], old.Name)
			if len(x.byClaim[key]) == 0 {
				delete(x.byClaim, key)
			}
			keys = append(keys, key)
		}
		keys = append(keys, x.leaveNode(old)...)
	}
	if current == nil {
		delete(x.told, old.UID)
		return keys
	}
	keys = append(keys, controller.Key{Name: current.Name})
	if key := claimKey(current); key.Name != "" {
		if x.byClaim[key] == nil {
			x.byClaim[key] = map[string]*corev1.PersistentVolume{}
		}
		x.byClaim[key][current.Name] = current
		keys = append(keys, key)
	} else if current.Status.Phase == corev1.VolumeAvailable {
		x.free[current.Name] = current
		class := storagehelpers.GetPersistentVolumeClass(current)
		for claim, wanted := range x.pending {
			if wanted == class {
				keys = append(keys, claim)
			}
		}
	}
	return append(keys, x.joinNode(current)...)
}

func (x *index) leaveNode(pv *corev1.PersistentVolume) []controller.Key {
	node := pv.Annotations[local.NodeAnnotation]
	n := x.nodes[node]
	if n == nil {
		return nil
	}
	was := n.volumes[pv.Name]
	delete(n.volumes, pv.Name)
	delete(n.folders, pv.Name)
	if !n.there && len(n.volumes) == 0 {
		delete(x.nodes, node)
	}
	if was {
		return []controller.Key{nodeKey(node)}
	}
	return nil
}

func (x *index) joinNode(pv *corev1.PersistentVolume) []controller.Key {
	node, folder := pv.Annotations[local.NodeAnnotation], local.Folder(pv)
	if node == "" || folder == "" {
		return nil
	}
	n := x.node(node)
	n.volumes[pv.Name] = ordered(pv)
	n.folders[pv.Name] = folder
	if n.volumes[pv.Name] {
		return []controller.Key{nodeKey(node)}
	}
	return nil
}

// node returns a node's entry, making it. x.mu is held.
func (x *index) node(name string) *nodeEntry {
	n := x.nodes[name]
	if n == nil {
		n = &nodeEntry{volumes: map[string]bool{}, folders: map[string]string{}}
		x.nodes[name] = n
	}
	return n
}

// setNode takes in a node's event and returns the keys to look at.
func (x *index) setNode(old, current *corev1.Node) []controller.Key {
	x.mu.Lock()
	defer x.mu.Unlock()
	if current == nil {
		n := x.nodes[old.Name]
		if n == nil {
			return nil
		}
		n.there, n.dir, n.fit, n.removed, n.labels = false, "", false, nil, nil
		keys := n.leaving()
		if len(n.volumes) == 0 {
			delete(x.nodes, old.Name)
		}
		return keys
	}
	n := x.node(current.Name)
	news := !n.there || n.dir != current.Annotations[local.DirAnnotation] || n.fit != nodeFit(current)
	n.there, n.labels, n.dir, n.fit = true, current.Labels, current.Annotations[local.DirAnnotation], nodeFit(current)
	removed := local.Split(current.Annotations[local.RemovedAnnotation])
	var keys []controller.Key
	if !slices.Equal(removed, n.removed) {
		n.removed = removed
		keys = n.leaving()
	}
	if old == nil || old.Annotations[local.RemoveAnnotation] != current.Annotations[local.RemoveAnnotation] {
		keys = append(keys, nodeKey(current.Name))
	}
	if news { // what found no node may find one now
		for claim := range x.pending {
			keys = append(keys, claim)
		}
	}
	return keys
}

// leaving lists the keys of the node's volumes that are being deleted.
func (n *nodeEntry) leaving() []controller.Key {
	var keys []controller.Key
	for name, goes := range n.volumes {
		if goes {
			keys = append(keys, controller.Key{Name: name})
		}
	}
	return keys
}

func nodeFit(node *corev1.Node) bool {
	return !node.Spec.Unschedulable && slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// setClaim takes in a claim's event and returns the keys to look at.
func (x *index) setClaim(old, current *corev1.PersistentVolumeClaim) []controller.Key {
	x.mu.Lock()
	defer x.mu.Unlock()
	claim := current
	if claim == nil {
		claim = old
		delete(x.told, old.UID)
	}
	key := controller.KeyOf(claim)
	keys := make([]controller.Key, 0, 2)
	if _, bound := claim.Annotations[storagehelpers.AnnBindCompleted]; current == nil || bound || claim.Spec.VolumeName != "" {
		delete(x.pending, key)
	} else {
		x.pending[key] = storagehelpers.GetPersistentVolumeClaimClass(claim)
	}
	if current != nil {
		keys = append(keys, key)
	}
	if current == nil || old != nil && (old.UID != current.UID || old.Spec.VolumeName != current.Spec.VolumeName) {
		for name := range x.byClaim[key] {
			keys = append(keys, controller.Key{Name: name})
		}
	}
	return keys
}

// waitingFor lists the claims without a volume whose class is one of names.
func (x *index) waitingFor(names ...string) []controller.Key {
	x.mu.Lock()
	defer x.mu.Unlock()
	var keys []controller.Key
	for claim, class := range x.pending {
		if slices.Contains(names, class) {
			keys = append(keys, claim)
		}
	}
	return keys
}

// candidates lists the volumes that a claim could be bound to.
func (x *index) candidates(claim *corev1.PersistentVolumeClaim) []*corev1.PersistentVolume {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := make([]*corev1.PersistentVolume, 0, len(x.free)+1)
	for _, pv := range x.byClaim[controller.KeyOf(claim)] {
		list = append(list, pv)
	}
	for _, pv := range x.free {
		list = append(list, pv)
	}
	return list
}

// localNodes lists the nodes as the provisioner sees them.
func (x *index) localNodes() []localNode {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := make([]localNode, 0, len(x.nodes))
	for name, n := range x.nodes {
		if n.there {
			list = append(list, localNode{name: name, labels: n.labels, dir: n.dir, fit: n.fit, count: len(n.volumes)})
		}
	}
	return list
}

// nodeOf tells about the node that has a volume's folder.
func (x *index) nodeOf(pv *corev1.PersistentVolume) nodeFacts {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.nodes[pv.Annotations[local.NodeAnnotation]]
	if n == nil {
		return nodeFacts{}
	}
	return nodeFacts{exists: n.there, removed: slices.Contains(n.removed, local.Folder(pv))}
}

// orders is what a node is to be told to remove.
func (x *index) orders(node string) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.nodes[node]
	if n == nil {
		return ""
	}
	var folders []string
	for name, goes := range n.volumes {
		if goes {
			folders = append(folders, n.folders[name])
		}
	}
	return local.Join(folders)
}

// news says whether an event about an object was not told lately, and remembers it.
func (x *index) news(uid types.UID, e event, now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if last := x.told[uid]; last.event == e && now.Sub(last.at) < repeatEvents {
		return false
	}
	x.told[uid] = toldEvent{e, now}
	return true
}

// quiet forgets what was told about an object.
func (x *index) quiet(uid types.UID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.told, uid)
}
