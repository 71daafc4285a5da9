package scheduler

import (
	"hash/maphash"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Every node has these resources at these places of its vectors; others follow as they
// are first seen.
const (
	resCPU       = iota // millicores
	resMemory           // bytes
	resEphemeral        // bytes
	resPods             // pods
	resFixed
)

// none stands for "no node" where a slot is asked for.
const none int32 = -1

// State is what the scheduler knows of nodes and placed pods. It is not safe for
// concurrent use; its owner guards it.
//
// A node lives in a slot. Numbers that the hot path reads are in arrays indexed by slot;
// vectors of resources lie one after the other, width numbers each.
type State struct {
	resources map[corev1.ResourceName]int
	names     []corev1.ResourceName // by place
	width     int

	slots       map[string]int32 // by node name
	nodes       []nodeInfo
	free        []int32 // slots without a node
	allocatable []int64 // slot*width
	used        []int64 // slot*width, what pods ask for
	scored      []int64 // slot*2, CPU and memory asked for with defaults for what is not set
	order       []int32 // slots with a node, zones taking turns
	disordered  bool    // order is to be rebuilt before it is read
	start       int     // where in order the next search begins

	zones  map[string]int32 // region and zone to number
	images map[string]*imageState

	pods      map[types.UID]*placed
	spare     []placed // not in use yet
	nominees  map[types.UID]*nominee
	lost      map[string]map[*placed]struct{} // pods of nodes that there are not
	outside   []outsideFilter                 // volumes
	profiles  map[string]*Profile             // by schedulerName
	fallback  *Profile                        // of pods that no profile is for: they are placed by others
	seed      maphash.Seed                    // of the hashes of templates and shapes
	templates map[uint64][]*template
	shapes    map[uint64][]*shape
	shaped    uint64                            // counts shapes made
	spaces    map[string]map[*template]struct{} // by namespace
	holders   []*shape                          // those with terms about pods
	hot       []*shape                          // those with caches, the oldest first
	planned   []*template                       // those with plans, the oldest first

	topologies map[string]*topology // by label key
	layout     uint64               // counts changes of what is in which domain or scope
	views      map[string]*view     // those that templates may share
	spaceViews map[string][]*view   // views that only pods of one namespace count in
	wideViews  []*view              // views that pods of any namespace may count in
	heldViews  []*view              // views that only pods with terms count in

	namespaces      map[string]labels.Set
	wantsNamespaces bool                             // a term selects namespaces by label
	services        map[string]map[string]labels.Set // selectors by namespace and name
	owners          map[owner]labels.Selector

	freed        uint64 // counts changes that may make room for a pod
	added        uint64 // counts pods that came: company for those with affinity
	changes      uint32 // numbers versions of nodes
	imageChanges uint32 // counts changes of images

	scratch scratch
}

// nodeInfo is what is read less often than the vectors.
type nodeInfo struct {
	node    *corev1.Node // nil for a free slot
	version uint32       // changes when labels, taints or cordon change
	zone    int32        // number of the zone
	ports   map[hostPort]int32

	pods     []*placed
	nominees []*nominee
}

type imageState struct {
	bytes int64
	nodes map[int32]struct{}
}

type hostPort struct {
	ip       string
	protocol corev1.Protocol
	port     int32
}

// NewState returns a state without nodes.
func NewState() *State {
	s := &State{
		seed:      maphash.MakeSeed(),
		resources: map[corev1.ResourceName]int{},
		slots:     map[string]int32{}, zones: map[string]int32{}, images: map[string]*imageState{},
		pods: map[types.UID]*placed{}, nominees: map[types.UID]*nominee{}, lost: map[string]map[*placed]struct{}{}, fallback: DefaultProfile(""),
		templates: map[uint64][]*template{}, shapes: map[uint64][]*shape{}, spaces: map[string]map[*template]struct{}{},
		topologies: map[string]*topology{}, views: map[string]*view{}, spaceViews: map[string][]*view{},
		namespaces: map[string]labels.Set{}, services: map[string]map[string]labels.Set{}, owners: map[owner]labels.Selector{},
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourcePods} {
		s.place(name)
	}
	return s
}

// place returns the place of a resource in the vectors, adding it if it is new.
func (s *State) place(name corev1.ResourceName) int {
	if at, ok := s.resources[name]; ok {
		return at
	}
	at := len(s.names)
	s.resources[name] = at
	s.names = append(s.names, name)
	was := s.width
	s.width = len(s.names)
	s.allocatable = widen(s.allocatable, len(s.nodes), was, s.width)
	s.used = widen(s.used, len(s.nodes), was, s.width)
	return at
}

func widen(vectors []int64, count, was, width int) []int64 {
	out := make([]int64, count*width)
	for i := range count {
		copy(out[i*width:], vectors[i*was:(i+1)*was])
	}
	return out
}

// NodeCount is the number of nodes.
func (s *State) NodeCount() int { return len(s.slots) }

// SetNode adds a node or takes over its new state. It says whether that may make room
// for a pod that had none.
func (s *State) SetNode(node *corev1.Node) bool {
	slot, known := s.slots[node.Name]
	if !known {
		slot = s.newSlot(node.Name)
	}
	n := &s.nodes[slot]
	old := n.node
	n.node = node
	helps := s.setAllocatable(slot, node) || !known
	if old == nil || !sameStatic(old, node) {
		s.changes++
		n.version = s.changes
		if zone := s.zoneOf(node); zone != n.zone || !known {
			n.zone = zone
			s.disordered = true
		}
		s.replace(slot)
		helps = true
	}
	if old == nil || !apiequality.Semantic.DeepEqual(old.Status.Images, node.Status.Images) {
		s.setImages(slot, old, node)
	}
	if !known {
		for p := range s.lost[node.Name] {
			s.settle(p, slot)
		}
		delete(s.lost, node.Name)
		for _, w := range s.nominees {
			if w.node == node.Name {
				n := &s.nodes[slot]
				n.nominees = append(n.nominees, w)
			}
		}
	}
	if helps {
		s.freed++
	}
	return helps
}

// sameStatic compares what filters read of a node beside its resources.
func sameStatic(a, b *corev1.Node) bool {
	return a.Spec.Unschedulable == b.Spec.Unschedulable && mapsEqual(a.Labels, b.Labels) &&
		slices.Equal(a.Status.DeclaredFeatures, b.Status.DeclaredFeatures) &&
		slices.EqualFunc(a.Spec.Taints, b.Spec.Taints, func(x, y corev1.Taint) bool {
			return x.Key == y.Key && x.Value == y.Value && x.Effect == y.Effect
		})
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for key, value := range a {
		if other, ok := b[key]; !ok || other != value {
			return false
		}
	}
	return true
}

func (s *State) newSlot(name string) int32 {
	var slot int32
	if last := len(s.free) - 1; last >= 0 {
		slot = s.free[last]
		s.free = s.free[:last]
	} else {
		slot = int32(len(s.nodes))
		s.nodes = append(s.nodes, nodeInfo{})
		s.allocatable = append(s.allocatable, make([]int64, s.width)...)
		s.used = append(s.used, make([]int64, s.width)...)
		s.scored = append(s.scored, 0, 0)
	}
	s.nodes[slot] = nodeInfo{zone: none}
	s.slots[name] = slot
	return slot
}

// setAllocatable copies what a node offers and says whether any of it grew.
func (s *State) setAllocatable(slot int32, node *corev1.Node) bool {
	for name := range node.Status.Allocatable {
		s.place(name)
	}
	vector := s.allocatable[int(slot)*s.width : int(slot+1)*s.width]
	grew := false
	for at, name := range s.names {
		quantity := node.Status.Allocatable[name]
		value := quantity.Value()
		if at == resCPU {
			value = quantity.MilliValue()
		}
		grew = grew || value > vector[at]
		vector[at] = value
	}
	return grew
}

// zoneOf numbers the zones of regions; nodes without one are together, too.
func (s *State) zoneOf(node *corev1.Node) int32 {
	name := node.Labels[corev1.LabelTopologyRegion] + "/" + node.Labels[corev1.LabelTopologyZone]
	number, ok := s.zones[name]
	if !ok {
		number = int32(len(s.zones))
		s.zones[name] = number
	}
	return number
}

// reorder rebuilds the order of the search if nodes have changed: zones take turns, so that a search that
// stops early has seen them all.
func (s *State) reorder() {
	if !s.disordered {
		return
	}
	s.disordered = false
	byZone := map[int32][]int32{}
	var zones []int32
	for slot := range s.nodes {
		n := &s.nodes[slot]
		if n.node == nil {
			continue
		}
		if _, ok := byZone[n.zone]; !ok {
			zones = append(zones, n.zone)
		}
		byZone[n.zone] = append(byZone[n.zone], int32(slot))
	}
	s.order = s.order[:0]
	for turn, found := 0, true; found; turn++ {
		found = false
		for _, zone := range zones {
			if turn < len(byZone[zone]) {
				s.order = append(s.order, byZone[zone][turn])
				found = true
			}
		}
	}
	if s.start >= len(s.order) {
		s.start = 0
	}
}

func (s *State) setImages(slot int32, old, node *corev1.Node) {
	s.imageChanges++
	if old != nil {
		s.dropImages(slot, old)
	}
	for i := range node.Status.Images {
		image := &node.Status.Images[i]
		for _, name := range image.Names {
			state := s.images[name]
			if state == nil {
				state = &imageState{nodes: map[int32]struct{}{}}
				s.images[name] = state
			}
			state.bytes = image.SizeBytes
			state.nodes[slot] = struct{}{}
		}
	}
}

func (s *State) dropImages(slot int32, node *corev1.Node) {
	for i := range node.Status.Images {
		for _, name := range node.Status.Images[i].Names {
			if state := s.images[name]; state != nil {
				delete(state.nodes, slot)
				if len(state.nodes) == 0 {
					delete(s.images, name)
				}
			}
		}
	}
}

// RemoveNode forgets a node. Its pods stay known in case it comes back.
func (s *State) RemoveNode(name string) {
	slot, ok := s.slots[name]
	if !ok {
		return
	}
	for pods := s.nodes[slot].pods; len(pods) > 0; pods = s.nodes[slot].pods {
		last := pods[len(pods)-1]
		s.unsettle(last)
		s.lose(last)
	}
	s.dropImages(slot, s.nodes[slot].node)
	s.imageChanges++
	delete(s.slots, name)
	s.nodes[slot] = nodeInfo{zone: none}
	s.replace(slot)
	clear(s.allocatable[int(slot)*s.width : int(slot+1)*s.width])
	clear(s.used[int(slot)*s.width : int(slot+1)*s.width])
	s.scored[2*slot], s.scored[2*slot+1] = 0, 0
	s.free = append(s.free, slot)
	s.freed++ // what failed before would fail with other words now
	s.disordered = true
}

// normalImage gives an image name without a tag the tag it implies.
func normalImage(name string) string {
	if strings.LastIndex(name, ":") <= strings.LastIndex(name, "/") {
		return name + ":latest"
	}
	return name
}
