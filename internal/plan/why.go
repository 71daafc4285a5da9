package plan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/scheduler"
)

// Answer says why a pod is where it is, or nowhere.
type Answer struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Node      string `json:"node,omitempty"`    // where it is
	Message   string `json:"message,omitempty"` // why no node takes it
	Best      string `json:"best,omitempty"`    // the node with the highest score now
	Nodes     []Node `json:"nodes"`
	// Cures are changes of which each alone makes the pod fit; they were tried.
	Cures   []string `json:"cures,omitempty"`
	Missing []string `json:"missing,omitempty"` // kinds that the user may not read
}

// Node is how one node does for the pod.
type Node struct {
	Name    string   `json:"name"`
	Filter  string   `json:"filter,omitempty"` // the plugin that rejects it
	Reasons []string `json:"reasons,omitempty"`
	// Evicting says that evicting pods of lower priority from the node could help.
	Evicting bool    `json:"evicting,omitempty"`
	Score    int64   `json:"score,omitempty"`
	Scores   []Score `json:"scores,omitempty"`
}

// Score is one scorer's part: Value is 0 to 100.
type Score struct {
	Plugin string `json:"plugin"`
	Value  int64  `json:"value"`
	Weight int64  `json:"weight"`
}

// Pod says why a pod is where it is. The error satisfies apierrors.IsNotFound if there is none.
func Pod(ctx context.Context, key types.NamespacedName, opts Options) (answer Answer, err error) {
	opts.setDefaults()
	real, err := connect(opts.Cluster)
	if err != nil {
		return Answer{}, err
	}
	if err := real.exists(ctx, key); err != nil {
		return Answer{}, err
	}
	opts.Progress("copying the cluster")
	d, err := real.newDouble(ctx, true)
	if err != nil {
		return Answer{}, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if _, err := d.settle(ctx, opts); err != nil {
		return Answer{}, err
	}
	var pod corev1.Pod
	if err := d.plane.Admin().Get(ctx, key, &pod); err != nil {
		return Answer{}, err
	}
	answer = explain(&pod, d.plane.Why)
	answer.Cures = d.cures(ctx, &pod, answer)
	answer.Missing = d.missing
	return answer, nil
}

func (c *cluster) exists(ctx context.Context, key types.NamespacedName) error {
	_, err := c.metadata.Resource(corev1.SchemeGroupVersion.WithResource("pods")).Namespace(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	return err
}

func explain(pod *corev1.Pod, why func(*corev1.Pod) scheduler.Diagnosis) Answer {
	diagnosis := why(pod)
	answer := Answer{Namespace: pod.Namespace, Pod: pod.Name, Node: pod.Spec.NodeName, Message: diagnosis.Message, Best: diagnosis.Chosen}
	for _, n := range diagnosis.Nodes {
		node := Node{Name: n.Node, Filter: n.Filter, Reasons: n.Reasons, Evicting: n.Resolvable, Score: n.Total}
		for _, score := range n.Scores {
			node.Scores = append(node.Scores, Score(score))
		}
		answer.Nodes = append(answer.Nodes, node)
	}
	switch {
	case len(pod.Spec.SchedulingGates) > 0:
		answer.Message = "it waits for its scheduling gates to be removed: " + gates(pod)
	case pod.Spec.NodeName == "" && answer.Best != "" && pod.Spec.SchedulerName != corev1.DefaultSchedulerName:
		answer.Message = fmt.Sprintf("it waits for the scheduler %q", pod.Spec.SchedulerName)
	}
	return answer
}

func gates(pod *corev1.Pod) string {
	names := make([]string, 0, len(pod.Spec.SchedulingGates))
	for _, gate := range pod.Spec.SchedulingGates {
		names = append(names, gate.Name)
	}
	return strings.Join(names, ", ")
}

// cures tries single changes of the pod, or of what it meets, and returns those that make it fit.
func (d *double) cures(ctx context.Context, pod *corev1.Pod, answer Answer) []string {
	if answer.Best != "" || pod.Spec.NodeName != "" {
		return nil
	}
	fits := func(change func(*corev1.Pod)) string {
		changed := pod.DeepCopy()
		change(changed)
		return d.plane.Why(changed).Chosen
	}
	var out []string
	for _, c := range changes(pod) {
		if node := fits(c.apply); node != "" {
			out = append(out, fmt.Sprintf("%s: then %s takes it", c.what, node))
		}
	}
	out = append(out, taintCures(d.taints(ctx), fits)...)
	for _, name := range requested(pod) {
		if text := resourceCure(pod, name, fits); text != "" {
			out = append(out, text)
		}
	}
	return out
}

// change is one thing that could be otherwise.
type change struct {
	what  string
	apply func(*corev1.Pod)
}

func changes(pod *corev1.Pod) []change {
	var out []change
	add := func(there bool, what string, apply func(*corev1.Pod)) {
		if there {
			out = append(out, change{what, apply})
		}
	}
	spec := &pod.Spec
	add(len(spec.NodeSelector) > 0, "drop spec.nodeSelector, or give a node its labels", func(p *corev1.Pod) { p.Spec.NodeSelector = nil })
	if a := spec.Affinity; a != nil {
		add(a.NodeAffinity != nil, "drop spec.affinity.nodeAffinity, or give a node labels that match it", func(p *corev1.Pod) { p.Spec.Affinity.NodeAffinity = nil })
		add(a.PodAffinity != nil, "drop spec.affinity.podAffinity", func(p *corev1.Pod) { p.Spec.Affinity.PodAffinity = nil })
		add(a.PodAntiAffinity != nil, "drop spec.affinity.podAntiAffinity, or add a node", func(p *corev1.Pod) { p.Spec.Affinity.PodAntiAffinity = nil })
	}
	add(len(spec.TopologySpreadConstraints) > 0, "drop spec.topologySpreadConstraints, or set whenUnsatisfiable: ScheduleAnyway",
		func(p *corev1.Pod) { p.Spec.TopologySpreadConstraints = nil })
	ports := slices.ContainsFunc(spec.Containers, func(c corev1.Container) bool {
		return slices.ContainsFunc(c.Ports, func(port corev1.ContainerPort) bool { return port.HostPort != 0 })
	})
	add(ports, "drop the containers' hostPort", func(p *corev1.Pod) {
		for i := range p.Spec.Containers {
			p.Spec.Containers[i].Ports = nil
		}
	})
	return out
}

// taints are those that keep pods away, each once, with the nodes that have them.
func (d *double) taints(ctx context.Context) map[corev1.Taint][]string {
	var nodes corev1.NodeList
	if err := d.plane.Admin().List(ctx, &nodes); err != nil {
		return nil
	}
	out := map[corev1.Taint][]string{}
	for i := range nodes.Items {
		for _, taint := range nodes.Items[i].Spec.Taints {
			if taint.Effect != corev1.TaintEffectPreferNoSchedule {
				key := corev1.Taint{Key: taint.Key, Value: taint.Value, Effect: taint.Effect}
				out[key] = append(out[key], nodes.Items[i].Name)
			}
		}
	}
	return out
}

func taintCures(taints map[corev1.Taint][]string, fits func(func(*corev1.Pod)) string) []string {
	var out []string
	for taint, nodes := range taints {
		node := fits(func(p *corev1.Pod) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{
				Key: taint.Key, Operator: corev1.TolerationOpEqual, Value: taint.Value, Effect: taint.Effect,
			})
		})
		switch {
		case node == "":
		case taint.Key == corev1.TaintNodeUnschedulable:
			out = append(out, fmt.Sprintf("kubectl uncordon %s: then %s takes it", strings.Join(nodes, " "), node))
		default:
			out = append(out, fmt.Sprintf("tolerate the taint %s, or remove it: then %s takes it", taint.ToString(), node))
		}
	}
	slices.Sort(out)
	return out
}

// requested are the resources that the pod's containers ask for.
func requested(pod *corev1.Pod) []corev1.ResourceName {
	var out []corev1.ResourceName
	for i := range pod.Spec.Containers {
		for name := range pod.Spec.Containers[i].Resources.Requests {
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// resourceCure finds the most of a resource with which the pod fits.
func resourceCure(pod *corev1.Pod, name corev1.ResourceName, fits func(func(*corev1.Pod)) string) string {
	var asked resource.Quantity
	for i := range pod.Spec.Containers {
		asked.Add(pod.Spec.Containers[i].Resources.Requests[name])
	}
	all := units(name, asked)
	with := func(most int64) string {
		return fits(func(p *corev1.Pod) {
			for i := range p.Spec.Containers {
				requests := p.Spec.Containers[i].Resources.Requests
				if amount, ok := requests[name]; ok {
					share := float64(units(name, amount)) / float64(all)
					requests[name] = quantity(name, int64(share*float64(most)), amount.Format)
				}
			}
		})
	}
	if all == 0 || with(0) == "" {
		return ""
	}
	low, high := int64(0), all // it fits with low, not with high
	for high-low > 1 {
		if middle := low + (high-low)/2; with(middle) != "" {
			low = middle
		} else {
			high = middle
		}
	}
	if low == 0 {
		return fmt.Sprintf("ask for no %s, or free some on a node (the containers ask for %s)", name, asked.String())
	}
	most := quantity(name, low, asked.Format)
	return fmt.Sprintf("ask for at most %s of %s, or free some on a node (the containers ask for %s): then %s takes it", most.String(), name, asked.String(), with(low))
}

// units counts a resource in the smallest steps that matter: thousandths of a CPU, mebibytes of what is counted in bytes.
func units(name corev1.ResourceName, amount resource.Quantity) int64 {
	switch {
	case name == corev1.ResourceCPU:
		return amount.MilliValue()
	case inBytes(name):
		return amount.Value() >> 20
	}
	return amount.Value()
}

// quantity is units back as an amount.
func quantity(name corev1.ResourceName, n int64, format resource.Format) resource.Quantity {
	switch {
	case name == corev1.ResourceCPU:
		return *resource.NewMilliQuantity(n, format)
	case inBytes(name):
		return *resource.NewQuantity(n<<20, format)
	}
	return *resource.NewQuantity(n, format)
}

func inBytes(name corev1.ResourceName) bool {
	return name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage
}
