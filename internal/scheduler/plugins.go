package scheduler

import (
	"fmt"
	"math/bits"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Plugin is a part of the decision that kube-scheduler has a name for. The order is that of its default
// profile, in which filters are asked.
type Plugin uint8

// The plugins of the default profile that filter or score nodes, and those that hold pods back.
const (
	NodeUnschedulable Plugin = iota + 1
	NodeName
	TaintToleration
	NodeAffinity
	NodePorts
	NodeResourcesFit
	VolumeRestrictions
	NodeVolumeLimits
	VolumeBinding
	VolumeZone
	PodTopologySpread
	InterPodAffinity
	NodeDeclaredFeatures
	NodeResourcesBalancedAllocation
	ImageLocality
	SchedulingGates
	DefaultPreemption
	DynamicResources // is left out: it refuses all pods with resource claims
	pluginCount
)

// String is kube-scheduler's name of the plugin.
func (p Plugin) String() string {
	names := [pluginCount]string{
		"", "NodeUnschedulable", "NodeName", "TaintToleration", "NodeAffinity", "NodePorts", "NodeResourcesFit",
		"VolumeRestrictions", "NodeVolumeLimits", "VolumeBinding", "VolumeZone", "PodTopologySpread", "InterPodAffinity",
		"NodeDeclaredFeatures", "NodeResourcesBalancedAllocation", "ImageLocality", "SchedulingGates", "DefaultPreemption",
		"DynamicResources",
	}
	if p >= pluginCount {
		return ""
	}
	return names[p]
}

// PluginSet is a set of plugins.
type PluginSet uint32

// PluginsOf makes a set.
func PluginsOf(plugins ...Plugin) PluginSet {
	var set PluginSet
	for _, p := range plugins {
		set |= 1 << p
	}
	return set
}

// Has says whether a plugin is in the set.
func (s PluginSet) Has(p Plugin) bool { return s&(1<<p) != 0 }

// List is the set in order.
func (s PluginSet) List() []Plugin {
	var list []Plugin
	for ; s != 0; s &= s - 1 {
		list = append(list, Plugin(bits.TrailingZeros32(uint32(s))))
	}
	return list
}

// Profile is what is configured for the pods of one schedulerName. DefaultProfile has
// kube-scheduler's values; a Profile must not change once it is in use.
type Profile struct {
	Name    string             // schedulerName of the pods
	Off     PluginSet          // filters that are not asked
	Weights [pluginCount]int64 // of scores, by Plugin; 0 leaves the score out

	Fit      ScoringStrategy     // of NodeResourcesFit
	Balanced []ResourceWeight    // of NodeResourcesBalancedAllocation; weights are not read
	Ignored  map[string]struct{} // extended resources that NodeResourcesFit does not look at
	// IgnoredGroups are prefixes before the slash of such resources.
	IgnoredGroups map[string]struct{}

	HardPodAffinityWeight int64 // InterPodAffinity: what a required term of a placed pod counts
	// IgnorePreferredTermsOfExistingPods is InterPodAffinity's argument of that name.
	IgnorePreferredTermsOfExistingPods bool

	// DefaultConstraints spread pods that have no constraints of their own. SystemDefaulted
	// says that they are kube-scheduler's, for which nodes need not have every label.
	DefaultConstraints []corev1.TopologySpreadConstraint
	SystemDefaulted    bool

	AddedAffinity *corev1.NodeAffinity // of every pod, beside its own
	// PercentageOfNodesToScore says how many feasible nodes are enough; 0 adapts to the number of nodes.
	PercentageOfNodesToScore int32

	// Preemption compares so many nodes: a percentage of those on which it may help, at least
	// the absolute number.
	MinCandidatePercent, MinCandidateNodes int32

	VolumeBindTimeout time.Duration // how long a pod waits for its volumes to be bound

	added *addedAffinity // AddedAffinity, parsed
}

type addedAffinity struct {
	required  *nodeaffinity.NodeSelector
	preferred *nodeaffinity.PreferredSchedulingTerms
}

// prepare parses what is configured.
func (p *Profile) prepare() error {
	if p.AddedAffinity == nil {
		return nil
	}
	p.added = &addedAffinity{}
	var err error
	if required := p.AddedAffinity.RequiredDuringSchedulingIgnoredDuringExecution; required != nil {
		if p.added.required, err = nodeaffinity.NewNodeSelector(required); err != nil {
			return fmt.Errorf("profile %s: required affinity: %w", p.Name, err)
		}
	}
	if preferred := p.AddedAffinity.PreferredDuringSchedulingIgnoredDuringExecution; len(preferred) > 0 {
		if p.added.preferred, err = nodeaffinity.NewPreferredSchedulingTerms(preferred); err != nil {
			return fmt.Errorf("profile %s: preferred affinity: %w", p.Name, err)
		}
	}
	return nil
}

// StrategyType is how NodeResourcesFit scores.
type StrategyType uint8

// The strategies of NodeResourcesFit.
const (
	LeastAllocated StrategyType = iota
	MostAllocated
	RequestedToCapacityRatio
)

// ScoringStrategy is how NodeResourcesFit scores nodes.
type ScoringStrategy struct {
	Type      StrategyType
	Resources []ResourceWeight
	Shape     []ShapePoint // of RequestedToCapacityRatio, by rising utilization
}

// ResourceWeight is a resource and what it counts.
type ResourceWeight struct {
	Name   corev1.ResourceName
	Weight int64
}

// ShapePoint is a point of a broken line: Utilization is 0 to 100, Score 0 to 10.
type ShapePoint struct{ Utilization, Score int64 }

// DefaultProfile is kube-scheduler's default profile for pods of a schedulerName.
func DefaultProfile(name string) *Profile {
	p := &Profile{
		Name:                  name,
		Fit:                   ScoringStrategy{Resources: []ResourceWeight{{corev1.ResourceCPU, 1}, {corev1.ResourceMemory, 1}}},
		Balanced:              []ResourceWeight{{corev1.ResourceCPU, 1}, {corev1.ResourceMemory, 1}},
		HardPodAffinityWeight: 1,
		DefaultConstraints: []corev1.TopologySpreadConstraint{
			{TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway, MaxSkew: 3},
			{TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.ScheduleAnyway, MaxSkew: 5},
		},
		SystemDefaulted:     true,
		MinCandidatePercent: 10, MinCandidateNodes: 100,
		VolumeBindTimeout: 10 * time.Minute,
	}
	p.Weights[TaintToleration] = 3
	p.Weights[NodeAffinity] = 2
	p.Weights[NodeResourcesFit] = 1
	p.Weights[PodTopologySpread] = 2
	p.Weights[InterPodAffinity] = 2
	p.Weights[NodeResourcesBalancedAllocation] = 1
	p.Weights[ImageLocality] = 1
	return p
}

// ignores says whether filters do not look at an extended resource.
func (p *Profile) ignores(name corev1.ResourceName) bool {
	group, _, extended := strings.Cut(string(name), "/")
	if !extended || strings.Contains(string(name), "kubernetes.io/") {
		return false
	}
	if _, ok := p.Ignored[string(name)]; ok {
		return true
	}
	_, ok := p.IgnoredGroups[group]
	return ok
}
