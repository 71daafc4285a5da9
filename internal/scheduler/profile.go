package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	kubeconfig "k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/validation"
)

// Config is what is configured about placing pods.
type Config struct {
	Profiles []*Profile // a schedulerName each
	// InitialBackoff doubles with each failure of a pod, up to MaxBackoff.
	InitialBackoff, MaxBackoff time.Duration
}

// DefaultConfig is kube-scheduler's: one profile, for pods of "default-scheduler".
func DefaultConfig() *Config {
	return &Config{
		Profiles:       []*Profile{DefaultProfile(corev1.DefaultSchedulerName)},
		InitialBackoff: time.Second, MaxBackoff: 10 * time.Second,
	}
}

// ConfigError is a setting in a configuration that cannot be obeyed.
type ConfigError struct {
	Path    string // "profiles[0].plugins.score.enabled[1].name"
	Problem string
	Want    string // what would be right
}

// Error says all of it.
func (e *ConfigError) Error() string { return fmt.Sprintf("%s: %s; %s", e.Path, e.Problem, e.Want) }

// ParseConfig reads a KubeSchedulerConfiguration, version kubescheduler.config.k8s.io/v1, with upstream's
// defaults and validation. What this scheduler cannot do is an error. Settings of
// kube-scheduler's own process (leaderElection, clientConnection, profiling, parallelism,
// delayCacheUntilActive) mean nothing here and are not looked at.
func ParseConfig(data []byte) (*Config, error) {
	codecs := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict)
	obj, _, err := codecs.UniversalDecoder().Decode(data, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("reading a KubeSchedulerConfiguration: %w", err)
	}
	file, ok := obj.(*kubeconfig.KubeSchedulerConfiguration)
	if !ok {
		return nil, fmt.Errorf("reading a KubeSchedulerConfiguration: the file holds a %T", obj)
	}
	if err := validation.ValidateKubeSchedulerConfiguration(file); err != nil {
		return nil, fmt.Errorf("checking a KubeSchedulerConfiguration: %w", err)
	}
	if len(file.Extenders) > 0 {
		return nil, &ConfigError{Path: "extenders[0]", Problem: "extenders are not supported",
			Want: "remove them, or run kube-scheduler with them beside this scheduler, for pods of another schedulerName"}
	}
	c := &Config{
		InitialBackoff: time.Duration(file.PodInitialBackoffSeconds) * time.Second,
		MaxBackoff:     time.Duration(file.PodMaxBackoffSeconds) * time.Second,
	}
	for i := range file.Profiles {
		p, err := newProfile(fmt.Sprintf("profiles[%d]", i), file, &file.Profiles[i])
		if err != nil {
			return nil, err
		}
		c.Profiles = append(c.Profiles, p)
	}
	return c, nil
}

// points are the extension points at which each of kube-scheduler's plugins acts.
func points() map[string][]string {
	filter, score, both := []string{"preFilter", "filter"}, []string{"preScore", "score"}, []string{"preFilter", "filter", "preScore", "score"}
	return map[string][]string{
		"SchedulingGates": {"preEnqueue"}, "PrioritySort": {"queueSort"}, "DefaultBinder": {"bind"},
		"DefaultPreemption": {"preEnqueue", "postFilter"},
		"NodeUnschedulable": {"filter"}, "NodeName": {"filter"}, "TaintToleration": {"filter", "preScore", "score"},
		"NodeAffinity": both, "NodePorts": filter, "NodeResourcesFit": both, "VolumeRestrictions": filter, "NodeVolumeLimits": filter,
		"VolumeBinding": {"preFilter", "filter", "reserve", "preBind", "preScore", "score"}, "VolumeZone": filter,
		"PodTopologySpread": both, "InterPodAffinity": both, "NodeResourcesBalancedAllocation": score, "ImageLocality": {"score"},
		"NodeDeclaredFeatures": filter,
		"DynamicResources":     {"preEnqueue", "preFilter", "filter", "postFilter", "preScore", "score", "reserve", "preBind"},
	}
}

// needed are the plugins without which no pod would be placed.
func needed() map[string]string {
	return map[string]string{"SchedulingGates": "preEnqueue", "PrioritySort": "queueSort", "DefaultBinder": "bind"}
}

// newProfile makes a profile of one in a file, which has upstream's defaults in it.
func newProfile(path string, file *kubeconfig.KubeSchedulerConfiguration, in *kubeconfig.KubeSchedulerProfile) (*Profile, error) {
	p := DefaultProfile(in.SchedulerName)
	enabled, err := expand(path+".plugins", in.Plugins)
	if err != nil {
		return nil, err
	}
	for name, point := range needed() {
		if _, ok := enabled[point][name]; !ok {
			return nil, &ConfigError{path + ".plugins." + point, name + " is disabled", "leave it enabled: without it no pod can be placed"}
		}
	}
	p.Weights = [pluginCount]int64{}
	for plugin := Plugin(1); plugin < pluginCount; plugin++ {
		name := plugin.String()
		acts := points()[name]
		for _, pair := range [][2]string{{"filter", "preFilter"}, {"score", "preScore"}} {
			_, main := enabled[pair[0]][name]
			_, before := enabled[pair[1]][name]
			if main && !before && slices.Contains(acts, pair[1]) {
				return nil, &ConfigError{fmt.Sprintf("%s.plugins.%s", path, pair[1]),
					fmt.Sprintf("%s is enabled at %s but disabled at %s, which it needs", name, pair[0], pair[1]), "disable it at both, or at none"}
			}
		}
		judges := slices.Contains(acts, "filter") || slices.Contains(acts, "postFilter")
		_, filters := enabled["filter"][name]
		_, evicts := enabled["postFilter"][name]
		if judges && !filters && !evicts {
			p.Off |= PluginsOf(plugin)
		}
		if weight, ok := enabled["score"][name]; ok && plugin != VolumeBinding && plugin != DynamicResources {
			p.Weights[plugin] = int64(max(weight, 1))
		}
	}
	p.PercentageOfNodesToScore = *percentage(file, in)
	for i := range in.PluginConfig {
		if err := p.setArgs(fmt.Sprintf("%s.pluginConfig[%d]", path, i), &in.PluginConfig[i]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func percentage(file *kubeconfig.KubeSchedulerConfiguration, in *kubeconfig.KubeSchedulerProfile) *int32 {
	for _, value := range []*int32{in.PercentageOfNodesToScore, file.PercentageOfNodesToScore} {
		if value != nil {
			return value
		}
	}
	return new(int32)
}

// expand returns the plugins enabled at each extension point, with their weights. Source: kube-scheduler's
// expandMultiPointPlugins; the order of plugins does not matter here.
func expand(path string, in *kubeconfig.Plugins) (map[string]map[string]int32, error) {
	sets := map[string]kubeconfig.PluginSet{
		"preEnqueue": in.PreEnqueue, "queueSort": in.QueueSort, "preFilter": in.PreFilter, "filter": in.Filter, "postFilter": in.PostFilter,
		"preScore": in.PreScore, "score": in.Score, "reserve": in.Reserve, "permit": in.Permit, "preBind": in.PreBind, "bind": in.Bind,
		"postBind": in.PostBind, "placementGenerate": in.PlacementGenerate, "placementScore": in.PlacementScore,
	}
	known := points()
	if err := checkNames(path+".multiPoint", "", in.MultiPoint.Enabled, known); err != nil {
		return nil, err
	}
	enabled := map[string]map[string]int32{}
	for point, set := range sets {
		if err := checkNames(path+"."+point, point, set.Enabled, known); err != nil {
			return nil, err
		}
		here := map[string]int32{}
		enabled[point] = here
		for _, plugin := range set.Enabled {
			here[plugin.Name] = plugin.Weight
		}
		off := func(name string) bool {
			return slices.ContainsFunc(set.Disabled, func(d kubeconfig.Plugin) bool { return d.Name == name || d.Name == "*" })
		}
		for _, plugin := range in.MultiPoint.Enabled {
			if _, own := here[plugin.Name]; !own && !off(plugin.Name) && slices.Contains(known[plugin.Name], point) {
				here[plugin.Name] = plugin.Weight
			}
		}
	}
	return enabled, nil
}

// checkNames refuses plugins that are not there, or that do nothing at a point.
func checkNames(path, point string, plugins []kubeconfig.Plugin, known map[string][]string) error {
	names := make([]string, 0, len(known))
	for name := range known {
		if point == "" || slices.Contains(known[name], point) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	want := "known are " + strings.Join(names, ", ")
	if len(names) == 0 {
		want = "leave it empty"
	}
	for i, plugin := range plugins {
		switch acts, ok := known[plugin.Name]; {
		case !ok:
			return &ConfigError{fmt.Sprintf("%s.enabled[%d].name", path, i), fmt.Sprintf("there is no plugin %q", plugin.Name), want}
		case point != "" && !slices.Contains(acts, point):
			return &ConfigError{fmt.Sprintf("%s.enabled[%d].name", path, i), fmt.Sprintf("%s does nothing at this point", plugin.Name), want}
		}
	}
	return nil
}

// setArgs takes over the arguments of a plugin.
func (p *Profile) setArgs(path string, in *kubeconfig.PluginConfig) error {
	switch args := in.Args.(type) {
	case *kubeconfig.DefaultPreemptionArgs:
		p.MinCandidatePercent, p.MinCandidateNodes = args.MinCandidateNodesPercentage, args.MinCandidateNodesAbsolute
	case *kubeconfig.InterPodAffinityArgs:
		p.HardPodAffinityWeight = int64(args.HardPodAffinityWeight)
		p.IgnorePreferredTermsOfExistingPods = args.IgnorePreferredTermsOfExistingPods
	case *kubeconfig.NodeAffinityArgs:
		p.AddedAffinity = args.AddedAffinity
	case *kubeconfig.NodeResourcesBalancedAllocationArgs:
		p.Balanced = weightsOf(args.Resources)
	case *kubeconfig.NodeResourcesFitArgs:
		return p.setFit(path, args)
	case *kubeconfig.PodTopologySpreadArgs:
		p.SystemDefaulted = args.DefaultingType == kubeconfig.SystemDefaulting
		if !p.SystemDefaulted {
			p.DefaultConstraints = args.DefaultConstraints
		}
	case *kubeconfig.VolumeBindingArgs:
		p.VolumeBindTimeout = time.Duration(args.BindTimeoutSeconds) * time.Second
	case *kubeconfig.DynamicResourcesArgs: // no device is ever claimed here
	default:
		return &ConfigError{path + ".name", fmt.Sprintf("there are no arguments for a plugin %q", in.Name), "remove it"}
	}
	return nil
}

func (p *Profile) setFit(path string, args *kubeconfig.NodeResourcesFitArgs) error {
	if err := validation.ValidateNodeResourcesFitArgs(nil, args); err != nil {
		return fmt.Errorf("%s.args: %w", path, err)
	}
	p.Ignored, p.IgnoredGroups = setOf(args.IgnoredResources), setOf(args.IgnoredResourceGroups)
	strategy := args.ScoringStrategy
	if strategy == nil {
		return nil
	}
	p.Fit = ScoringStrategy{Resources: weightsOf(strategy.Resources)}
	switch strategy.Type {
	case kubeconfig.MostAllocated:
		p.Fit.Type = MostAllocated
	case kubeconfig.RequestedToCapacityRatio:
		p.Fit.Type = RequestedToCapacityRatio
		if strategy.RequestedToCapacityRatio != nil {
			for _, point := range strategy.RequestedToCapacityRatio.Shape {
				p.Fit.Shape = append(p.Fit.Shape, ShapePoint{Utilization: int64(point.Utilization), Score: int64(point.Score)})
			}
		}
	}
	return nil
}

func weightsOf(in []kubeconfig.ResourceSpec) []ResourceWeight {
	out := make([]ResourceWeight, 0, len(in))
	for _, r := range in {
		out = append(out, ResourceWeight{Name: corev1.ResourceName(r.Name), Weight: r.Weight})
	}
	return out
}

func setOf(names []string) map[string]struct{} {
	if len(names) == 0 {
		return nil
	}
	set := map[string]struct{}{}
	for _, name := range names {
		set[name] = struct{}{}
	}
	return set
}
