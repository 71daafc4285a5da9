package parity

import (
	"fmt"
	"math/rand/v2"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// source makes random objects.
type source struct {
	*rand.Rand
	nodes int
	made  int
	// nominated says that pods are nominated. kube-scheduler counts nominated pods, but not
	// placed ones, for a spread constraint whose selector is empty: such are left out then.
	nominated bool
}

func (r *source) chance(percent int) bool { return r.IntN(100) < percent }

func pick[T any](r *source, from ...T) T { return from[r.IntN(len(from))] }

func matching(set map[string]string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: set}
}

func quantity(format string, args ...any) resource.Quantity {
	return resource.MustParse(fmt.Sprintf(format, args...))
}

// cluster is nodes and what decides about pods on them.
func (r *source) cluster(nodes, pods int) []any {
	r.nodes = nodes
	var all []any
	for i := range 3 {
		all = append(all, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprint("ns", i), Labels: map[string]string{"team": pick(r, "x", "y")},
		}})
	}
	for i := range 4 {
		meta := metav1.ObjectMeta{Namespace: fmt.Sprint("ns", r.IntN(2)), Name: fmt.Sprint("o", i)}
		selector := map[string]string{"app": fmt.Sprint("a", r.IntN(3))}
		switch r.IntN(4) {
		case 0:
			all = append(all, &appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{Selector: matching(selector)}})
		case 1:
			all = append(all, &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Selector: matching(selector)}})
		case 2:
			all = append(all, &corev1.ReplicationController{ObjectMeta: meta, Spec: corev1.ReplicationControllerSpec{Selector: selector}})
		default:
			all = append(all, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Selector: selector}})
		}
	}
	for i := range nodes {
		all = append(all, r.node(i))
	}
	for range pods {
		pod := r.pod()
		pod.Spec.NodeName = fmt.Sprint("n", r.IntN(nodes))
		if r.chance(10) {
			now := metav1.Now()
			pod.DeletionTimestamp = &now
		}
		if r.chance(10) {
			r.resize(pod)
		}
		all = append(all, pod)
	}
	return all
}

func (r *source) node(i int) *corev1.Node {
	name := fmt.Sprint("n", i)
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: quantity("%dm", 1000+r.IntN(8000)), corev1.ResourceMemory: quantity("%dMi", 1000+r.IntN(16000)),
			corev1.ResourcePods: quantity("%d", pick(r, 4, 20, 110)), corev1.ResourceEphemeralStorage: quantity("10Gi"),
		}},
	}
	if r.chance(95) {
		node.Labels[corev1.LabelHostname] = name
	}
	if r.chance(80) {
		node.Labels[corev1.LabelTopologyZone] = fmt.Sprint("z", r.IntN(3))
	}
	if r.chance(70) {
		node.Labels["rack"] = fmt.Sprint("r", r.IntN(4))
	}
	if r.chance(50) {
		node.Labels["disk"] = pick(r, "ssd", "hdd")
	}
	if r.chance(30) {
		node.Labels["size"] = fmt.Sprint(r.IntN(9))
	}
	for range r.IntN(3) {
		if r.chance(30) {
			node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{
				Key: pick(r, "gpu", "old"), Value: pick(r, "", "v"),
				Effect: pick(r, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule),
			})
		}
	}
	node.Spec.Unschedulable = r.chance(5)
	if r.chance(30) {
		node.Status.Allocatable["example.com/gpu"] = quantity("%d", r.IntN(5))
	}
	if r.chance(20) {
		node.Status.Allocatable["hugepages-2Mi"] = quantity("%dMi", 2*r.IntN(50))
	}
	for i, size := range []int64{900 << 20, 300 << 20, 40 << 20} {
		if r.chance(40) {
			node.Status.Images = append(node.Status.Images, corev1.ContainerImage{Names: []string{fmt.Sprintf("app%d:latest", i)}, SizeBytes: size})
		}
	}
	if r.chance(50) {
		node.Status.DeclaredFeatures = []string{"RestartAllContainersOnContainerExits"}
	}
	return node
}

func (r *source) pod() *corev1.Pod {
	r.made++
	name := fmt.Sprint("p", r.made)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("ns", r.IntN(3)), Name: name, UID: types.UID(name), Labels: map[string]string{}},
		Spec:       corev1.PodSpec{SchedulerName: "default-scheduler"},
	}
	if r.chance(90) {
		pod.Labels["app"] = fmt.Sprint("a", r.IntN(3))
	}
	if r.chance(50) {
		pod.Labels["version"] = fmt.Sprint("v", r.IntN(2))
	}
	for i := range 1 + r.IntN(2) {
		pod.Spec.Containers = append(pod.Spec.Containers, r.container(fmt.Sprint("c", i)))
	}
	always := corev1.ContainerRestartPolicyAlways
	if r.chance(20) {
		c := r.container("init")
		if r.chance(50) {
			c.RestartPolicy = &always
		}
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, c)
	}
	if r.chance(10) {
		pod.Spec.Overhead = corev1.ResourceList{corev1.ResourceCPU: quantity("50m")}
	}
	if r.chance(10) {
		requests := pick(r, corev1.ResourceList{corev1.ResourceCPU: quantity("1500m")}, corev1.ResourceList{corev1.ResourceMemory: quantity("2Gi")})
		pod.Spec.Resources = &corev1.ResourceRequirements{Requests: requests}
	}
	if r.chance(3) {
		pod.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestartAllContainers}}
	}
	yes := true
	if r.chance(40) {
		pod.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: pick(r, "apps/v1", "apps/v1", "v1"), Kind: pick(r, "ReplicaSet", "StatefulSet", "ReplicationController", "Job"),
			Name: fmt.Sprint("o", r.IntN(4)), UID: types.UID(fmt.Sprint("o", r.IntN(4))), Controller: &yes,
		}}
	}
	for range r.IntN(3) {
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
			Key: pick(r, "gpu", "old", ""), Operator: corev1.TolerationOpExists,
			Effect: pick(r, "", corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule),
		})
	}
	if r.chance(20) {
		pod.Spec.NodeSelector = map[string]string{"disk": pick(r, "ssd", "hdd")}
	}
	r.affinities(pod)
	for range r.IntN(3) {
		if r.chance(40) {
			pod.Spec.TopologySpreadConstraints = append(pod.Spec.TopologySpreadConstraints, r.spread())
		}
	}
	if r.chance(20) {
		priority := int32(r.IntN(3))
		pod.Spec.Priority = &priority
	}
	return pod
}

// resize makes a placed pod hold more than it asks for.
func (r *source) resize(pod *corev1.Pod) {
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: "c0", Resources: &corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: quantity("%dm", r.IntN(900))}},
		AllocatedResources: corev1.ResourceList{corev1.ResourceCPU: quantity("%dm", r.IntN(900))},
	}}
	if r.chance(30) {
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodResizePending, Reason: corev1.PodReasonInfeasible}}
	}
}

func (r *source) container(name string) corev1.Container {
	c := corev1.Container{Name: name, Image: pick(r, "app0", "app1:latest", "app2", "other")}
	c.Resources.Requests = corev1.ResourceList{}
	if r.chance(80) {
		c.Resources.Requests[corev1.ResourceCPU] = quantity("%dm", 50*r.IntN(30))
	}
	if r.chance(80) {
		c.Resources.Requests[corev1.ResourceMemory] = quantity("%dMi", 50*r.IntN(30))
	}
	if r.chance(10) {
		c.Resources.Requests["example.com/gpu"] = quantity("%d", r.IntN(3))
	}
	if r.chance(5) {
		c.Resources.Requests["hugepages-2Mi"] = quantity("%dMi", 2*r.IntN(20))
	}
	if r.chance(5) {
		c.Resources.Requests[corev1.ResourceEphemeralStorage] = quantity("%dMi", r.IntN(5000))
	}
	if r.chance(10) {
		c.Ports = []corev1.ContainerPort{{
			HostPort: pick(r, int32(80), 81), ContainerPort: 80, HostIP: pick(r, "", "0.0.0.0", "10.0.0.1"), Protocol: pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP),
		}}
	}
	return c
}

func (r *source) selector() *metav1.LabelSelector {
	switch r.IntN(10) {
	case 0:
		return nil
	case 1:
		return &metav1.LabelSelector{}
	case 2:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "version", Operator: pick(r, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}}}
	case 3:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"a0"}}}}
	}
	return matching(map[string]string{"app": fmt.Sprint("a", r.IntN(3))})
}

func (r *source) term() corev1.PodAffinityTerm {
	term := corev1.PodAffinityTerm{
		TopologyKey:   pick(r, corev1.LabelHostname, corev1.LabelTopologyZone, "rack"),
		LabelSelector: r.selector(),
	}
	switch r.IntN(6) {
	case 0:
		term.Namespaces = []string{fmt.Sprint("ns", r.IntN(3))}
	case 1:
		term.NamespaceSelector = matching(map[string]string{"team": "x"})
	case 2:
		term.NamespaceSelector = &metav1.LabelSelector{}
	}
	return term
}

func (r *source) terms() []corev1.PodAffinityTerm {
	terms := []corev1.PodAffinityTerm{r.term()}
	if r.chance(30) {
		terms = append(terms, r.term())
	}
	return terms
}

func (r *source) weighted() (terms []corev1.WeightedPodAffinityTerm) {
	for range 1 + r.IntN(2) {
		terms = append(terms, corev1.WeightedPodAffinityTerm{Weight: int32(1 + r.IntN(100)), PodAffinityTerm: r.term()})
	}
	return terms
}

func (r *source) affinities(pod *corev1.Pod) {
	a := &corev1.Affinity{}
	if r.chance(10) {
		a.PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: r.terms()}
	}
	if r.chance(10) {
		if a.PodAffinity == nil {
			a.PodAffinity = &corev1.PodAffinity{}
		}
		a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution = r.weighted()
	}
	if r.chance(6) {
		a.PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: r.terms()}
	}
	if r.chance(10) {
		if a.PodAntiAffinity == nil {
			a.PodAntiAffinity = &corev1.PodAntiAffinity{}
		}
		a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution = r.weighted()
	}
	if r.chance(25) {
		a.NodeAffinity = r.nodeAffinity()
	}
	if a.PodAffinity != nil || a.PodAntiAffinity != nil || a.NodeAffinity != nil {
		pod.Spec.Affinity = a
	}
}

func (r *source) nodeTerm() corev1.NodeSelectorTerm {
	var term corev1.NodeSelectorTerm
	if r.chance(80) {
		term.MatchExpressions = []corev1.NodeSelectorRequirement{pick(r,
			corev1.NodeSelectorRequirement{Key: "disk", Operator: corev1.NodeSelectorOpIn, Values: []string{"ssd"}},
			corev1.NodeSelectorRequirement{Key: "rack", Operator: corev1.NodeSelectorOpNotIn, Values: []string{"r1", "r2"}},
			corev1.NodeSelectorRequirement{Key: "size", Operator: corev1.NodeSelectorOpGt, Values: []string{"3"}},
			corev1.NodeSelectorRequirement{Key: "disk", Operator: corev1.NodeSelectorOpExists},
		)}
	}
	if r.chance(25) {
		for range 1 + r.IntN(2) {
			term.MatchFields = append(term.MatchFields, corev1.NodeSelectorRequirement{
				Key: "metadata.name", Operator: pick(r, corev1.NodeSelectorOpIn, corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn),
				Values: []string{fmt.Sprint("n", r.IntN(r.nodes+2))},
			})
		}
	}
	return term
}

func (r *source) nodeAffinity() *corev1.NodeAffinity {
	a := &corev1.NodeAffinity{}
	if r.chance(60) {
		required := &corev1.NodeSelector{}
		for range 1 + r.IntN(2) {
			required.NodeSelectorTerms = append(required.NodeSelectorTerms, r.nodeTerm())
		}
		a.RequiredDuringSchedulingIgnoredDuringExecution = required
	}
	if r.chance(60) {
		for range 1 + r.IntN(3) {
			a.PreferredDuringSchedulingIgnoredDuringExecution = append(a.PreferredDuringSchedulingIgnoredDuringExecution,
				corev1.PreferredSchedulingTerm{Weight: int32(1 + r.IntN(100)), Preference: r.nodeTerm()})
		}
	}
	return a
}

func (r *source) spread() corev1.TopologySpreadConstraint {
	c := corev1.TopologySpreadConstraint{
		TopologyKey: pick(r, corev1.LabelHostname, corev1.LabelTopologyZone, "rack"), MaxSkew: int32(1 + r.IntN(3)),
		WhenUnsatisfiable: pick(r, corev1.DoNotSchedule, corev1.ScheduleAnyway), LabelSelector: r.selector(),
	}
	if c.WhenUnsatisfiable == corev1.DoNotSchedule && r.chance(30) {
		domains := int32(1 + r.IntN(5))
		c.MinDomains = &domains
	}
	if s := c.LabelSelector; r.nominated && s != nil && len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		c.LabelSelector = nil
	}
	policies := []corev1.NodeInclusionPolicy{corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore}
	if r.chance(40) {
		c.NodeAffinityPolicy = &policies[r.IntN(2)]
	}
	if r.chance(40) {
		c.NodeTaintsPolicy = &policies[r.IntN(2)]
	}
	if r.chance(20) && c.LabelSelector != nil {
		c.MatchLabelKeys = []string{"version"}
	}
	return c
}
