package workload

import (
	"cmp"
	"slices"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// fit says what a DaemonSet wants of a node.
type fit uint8

const (
	fitNone fit = iota // no pod of it
	fitKeep            // a pod that is there may stay: a taint came that only keeps new ones away
	fitRun             // a pod
)

// nodeFit is a node and what a DaemonSet wants of it.
type nodeFit struct {
	name string
	fit  fit
}

// podRule says on which nodes the pods of a template run.
type podRule struct {
	nodeName    string
	affinity    nodeaffinity.RequiredNodeAffinity
	tolerations []corev1.Toleration
}

func ruleOf(template *corev1.PodTemplateSpec) podRule {
	return podRule{
		nodeName:    template.Spec.NodeName,
		affinity:    nodeaffinity.GetRequiredNodeAffinity(&corev1.Pod{Spec: template.Spec}),
		tolerations: daemonTolerations(&template.Spec),
	}
}

// of says what the rule means for a node.
func (r *podRule) of(node *corev1.Node) fit {
	if r.nodeName != "" && r.nodeName != node.Name {
		return fitNone
	}
	// A selector that cannot be read matches nothing; upstream does not complain either.
	if matches, _ := r.affinity.Match(node); !matches {
		return fitNone
	}
	answer := fitRun
	for i := range node.Spec.Taints {
		taint := &node.Spec.Taints[i]
		switch {
		case taint.Effect != corev1.TaintEffectNoSchedule && taint.Effect != corev1.TaintEffectNoExecute:
		case corev1helpers.TolerationsTolerateTaint(klog.Logger{}, r.tolerations, taint, false):
		case taint.Effect == corev1.TaintEffectNoExecute:
			return fitNone
		default:
			answer = fitKeep
		}
	}
	return answer
}

// daemonTolerations are a template's tolerations and those that every DaemonSet has: its
// pods stay on nodes with problems.
func daemonTolerations(spec *corev1.PodSpec) []corev1.Toleration {
	tolerations := slices.Clone(spec.Tolerations)
	add := func(key string, effect corev1.TaintEffect) {
		wanted := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect}
		found := false
		for i := range tolerations {
			if tolerations[i].MatchToleration(&wanted) {
				tolerations[i], found = wanted, true
			}
		}
		if !found {
			tolerations = append(tolerations, wanted)
		}
	}
	add(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	if spec.HostNetwork {
		add(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)
	}
	return tolerations
}

// targetNode is the node that a DaemonSet's pod is on, or was made for.
func targetNode(pod *corev1.Pod) (string, bool) {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName, true
	}
	affinity := pod.Spec.Affinity
	if affinity == nil || affinity.NodeAffinity == nil || affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return "", false
	}
	for _, term := range affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, field := range term.MatchFields {
			if field.Key == metav1.ObjectNameField && field.Operator == corev1.NodeSelectorOpIn {
				if len(field.Values) != 1 {
					return "", false
				}
				return field.Values[0], true
			}
		}
	}
	return "", false
}

// pinTo makes an affinity require one node, which replaces what it required of nodes: the
// node was chosen by that.
func pinTo(affinity *corev1.Affinity, node string) *corev1.Affinity {
	pinned := &corev1.Affinity{}
	if affinity != nil {
		*pinned = *affinity
	}
	onNode := &corev1.NodeAffinity{}
	if pinned.NodeAffinity != nil {
		*onNode = *pinned.NodeAffinity
	}
	onNode.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
	}}}
	pinned.NodeAffinity = onNode
	return pinned
}

// places knows the nodes and, for each DaemonSet, which of them it wants: a changed node is
// held against every DaemonSet once, and no pass looks at all nodes again.
type places struct {
	wake func(controller.Key) // for a DaemonSet of which a node's change concerns

	mu    sync.Mutex // guards the fields below
	nodes map[string]*corev1.Node
	sets  map[controller.Key]*setPlaces
}

// setPlaces is what one DaemonSet wants of each node.
type setPlaces struct {
	uid        types.UID
	generation int64
	rule       podRule
	fits       []nodeFit          // by name; never changed, since passes read it
	pending    map[string]nodeFit // not in fits yet; an empty name for a node that is gone
}

// onNode takes an event of a node.
func (p *places) onNode(old, current client.Object) {
	node, _ := current.(*corev1.Node)
	before, _ := old.(*corev1.Node)
	p.mu.Lock()
	defer p.mu.Unlock()
	if node == nil {
		delete(p.nodes, before.Name)
		for key, set := range p.sets {
			if set.put(before.Name, nodeFit{}) {
				p.wake(key)
			}
		}
		return
	}
	if p.nodes == nil {
		p.nodes = map[string]*corev1.Node{}
	}
	p.nodes[node.Name] = node
	if before != nil && apiequality.Semantic.DeepEqual(before.Labels, node.Labels) && apiequality.Semantic.DeepEqual(before.Spec.Taints, node.Spec.Taints) {
		return // nothing else matters here
	}
	for key, set := range p.sets {
		if set.put(node.Name, nodeFit{node.Name, set.rule.of(node)}) {
			p.wake(key)
		}
	}
}

// put notes what is wanted of a node now and says whether that is news for the pods.
func (s *setPlaces) put(name string, now nodeFit) bool {
	was, ok := s.pending[name]
	if !ok {
		if at, found := slices.BinarySearchFunc(s.fits, name, compareNode); found {
			was = s.fits[at]
		}
	}
	if was == now {
		return false
	}
	if s.pending == nil {
		s.pending = map[string]nodeFit{}
	}
	s.pending[name] = now
	return was.fit != now.fit
}

func compareNode(n nodeFit, name string) int { return cmp.Compare(n.name, name) }

// of returns all nodes, by name, with what a DaemonSet wants of each. The caller must not
// change the slice.
func (p *places) of(ds *appsv1.DaemonSet) []nodeFit {
	key := controller.KeyOf(ds)
	p.mu.Lock()
	defer p.mu.Unlock()
	set := p.sets[key]
	if set == nil || set.uid != ds.UID || set.generation != ds.Generation {
		set = &setPlaces{uid: ds.UID, generation: ds.Generation, rule: ruleOf(&ds.Spec.Template)}
		set.fits = make([]nodeFit, 0, len(p.nodes))
		for name, node := range p.nodes {
			set.fits = append(set.fits, nodeFit{name, set.rule.of(node)})
		}
		slices.SortFunc(set.fits, func(a, b nodeFit) int { return compareNode(a, b.name) })
		if p.sets == nil {
			p.sets = map[controller.Key]*setPlaces{}
		}
		p.sets[key] = set
		return set.fits
	}
	if len(set.pending) > 0 {
		set.fits = set.merged()
		set.pending = nil
	}
	return set.fits
}

// merged is fits with what is pending.
func (s *setPlaces) merged() []nodeFit {
	fits := make([]nodeFit, 0, len(s.fits)+len(s.pending))
	for _, n := range s.fits {
		if _, replaced := s.pending[n.name]; !replaced {
			fits = append(fits, n)
		}
	}
	for _, n := range s.pending {
		if n.name != "" {
			fits = append(fits, n)
		}
	}
	slices.SortFunc(fits, func(a, b nodeFit) int { return compareNode(a, b.name) })
	return fits
}

// forget drops what is known of a DaemonSet that is gone.
func (p *places) forget(key controller.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sets, key)
}
