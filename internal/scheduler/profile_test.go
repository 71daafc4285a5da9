package scheduler

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
)

const header = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"

func TestParseConfigDefaults(t *testing.T) {
	got, err := ParseConfig([]byte(header))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	for _, p := range got.Profiles {
		// With system defaults the constraints are built in.
		if diff := cmp.Diff(want.Profiles[0], p, cmpopts.IgnoreUnexported(Profile{})); diff != "" {
			t.Errorf("profile (-want +got):\n%s", diff)
		}
	}
	if len(got.Profiles) != 1 || got.InitialBackoff != want.InitialBackoff || got.MaxBackoff != want.MaxBackoff {
		t.Errorf("ParseConfig = %+v", got)
	}
}

func TestParseConfigProfiles(t *testing.T) {
	got, err := ParseConfig([]byte(header + `
leaderElection: {leaderElect: false}
clientConnection: {kubeconfig: /etc/kubernetes/scheduler.conf}
percentageOfNodesToScore: 30
podInitialBackoffSeconds: 2
podMaxBackoffSeconds: 60
profiles:
- schedulerName: default-scheduler
- schedulerName: packed
  percentageOfNodesToScore: 100
  plugins:
    multiPoint:
      disabled: [{name: ImageLocality}]
    score:
      disabled: [{name: NodeResourcesBalancedAllocation}]
      enabled: [{name: NodeResourcesFit, weight: 5}]
    filter:
      disabled: [{name: TaintToleration}]
    postFilter:
      disabled: [{name: "*"}]
  pluginConfig:
  - name: NodeResourcesFit
    args:
      ignoredResources: [example.com/foo]
      ignoredResourceGroups: [example.org]
      scoringStrategy:
        type: RequestedToCapacityRatio
        resources: [{name: example.com/gpu, weight: 3}, {name: cpu}]
        requestedToCapacityRatio: {shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]}
  - name: PodTopologySpread
    args:
      defaultingType: List
      defaultConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]
  - name: InterPodAffinity
    args: {hardPodAffinityWeight: 7, ignorePreferredTermsOfExistingPods: true}
  - name: NodeAffinity
    args: {addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: fast, operator: Exists}]}]}}}
  - name: VolumeBinding
    args: {bindTimeoutSeconds: 5}
- schedulerName: rude
  pluginConfig:
  - name: DefaultPreemption
    args: {minCandidateNodesPercentage: 50, minCandidateNodesAbsolute: 3}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got.InitialBackoff != 2*time.Second || got.MaxBackoff != time.Minute || len(got.Profiles) != 3 {
		t.Fatalf("ParseConfig = %+v", got)
	}
	plain := DefaultProfile("default-scheduler")
	plain.PercentageOfNodesToScore = 30
	packed := DefaultProfile("packed")
	packed.PercentageOfNodesToScore = 100
	packed.Off = PluginsOf(TaintToleration, DefaultPreemption)
	packed.Weights[ImageLocality], packed.Weights[NodeResourcesBalancedAllocation], packed.Weights[NodeResourcesFit] = 0, 0, 5
	packed.Fit = ScoringStrategy{
		Type: RequestedToCapacityRatio, Resources: []ResourceWeight{{"example.com/gpu", 3}, {"cpu", 1}},
		Shape: []ShapePoint{{0, 0}, {100, 10}},
	}
	packed.Ignored, packed.IgnoredGroups = setOf([]string{"example.com/foo"}), setOf([]string{"example.org"})
	packed.SystemDefaulted = false
	packed.DefaultConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: corev1.ScheduleAnyway}}
	packed.HardPodAffinityWeight, packed.IgnorePreferredTermsOfExistingPods = 7, true
	packed.AddedAffinity = got.Profiles[1].AddedAffinity
	packed.VolumeBindTimeout = 5 * time.Second
	rude := DefaultProfile("rude")
	rude.PercentageOfNodesToScore = 30
	rude.MinCandidatePercent, rude.MinCandidateNodes = 50, 3
	if diff := cmp.Diff([]*Profile{plain, packed, rude}, got.Profiles, cmpopts.IgnoreUnexported(Profile{})); diff != "" {
		t.Errorf("profiles (-want +got):\n%s", diff)
	}
	if a := packed.AddedAffinity; a == nil || len(a.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms) != 1 {
		t.Errorf("added affinity %+v", a)
	}
}

func TestParseConfigRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ file, want string }{
		"another version":   {"apiVersion: kubescheduler.config.k8s.io/v1beta3\nkind: KubeSchedulerConfiguration\n", `no kind "KubeSchedulerConfiguration" is registered for version "kubescheduler.config.k8s.io/v1beta3"`},
		"another kind":      {"apiVersion: kubescheduler.config.k8s.io/v1\nkind: DefaultPreemptionArgs\n", "the file holds a *config.DefaultPreemptionArgs"},
		"an unknown field":  {header + "profile: []\n", `unknown field "profile"`},
		"two of one name":   {header + "profiles: [{schedulerName: a}, {schedulerName: a}]\n", "profiles[1].schedulerName: Duplicate value"},
		"an extender":       {header + "extenders: [{urlPrefix: http://x, filterVerb: f}]\n", "extenders[0]: extenders are not supported; remove them"},
		"an unknown plugin": {header + "profiles: [{schedulerName: a, plugins: {score: {enabled: [{name: ImageLocality}, {name: Mine}]}}}]\n", `profiles[0].plugins.score.enabled[1].name: there is no plugin "Mine"; known are DynamicResources, ImageLocality, `},
		"a wrong point":     {header + "profiles: [{schedulerName: a, plugins: {permit: {enabled: [{name: NodeName}]}}}]\n", "profiles[0].plugins.permit.enabled[0].name: NodeName does nothing at this point; leave it empty"},
		"half a plugin":     {header + "profiles: [{schedulerName: a, plugins: {preFilter: {disabled: [{name: InterPodAffinity}]}}}]\n", "profiles[0].plugins.preFilter: InterPodAffinity is enabled at filter but disabled at preFilter, which it needs; disable it at both"},
		"no binding":        {header + "profiles: [{schedulerName: a, plugins: {bind: {disabled: [{name: DefaultBinder}]}}}]\n", "profiles[0].plugins.bind: DefaultBinder is disabled; leave it enabled"},
		"wrong arguments":   {header + "profiles: [{schedulerName: a, pluginConfig: [{name: DefaultPreemption, args: {minCandidateNodesPercentage: 200}}]}]\n", "profiles[0].pluginConfig[0].args.minCandidateNodesPercentage: Invalid value: 200"},
		"whose arguments":   {header + "profiles: [{schedulerName: a, pluginConfig: [{name: Mine, args: {x: 1}}]}]\n", `profiles[0].pluginConfig[0].name: there are no arguments for a plugin "Mine"`},
		"a shape that falls": {header + "profiles: [{schedulerName: a, pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: RequestedToCapacityRatio, requestedToCapacityRatio: {shape: [{utilization: 90, score: 1}, {utilization: 10, score: 2}]}}}}]}]\n",
			"profiles[0].pluginConfig[0].args"},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := ParseConfig([]byte(tc.file))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("ParseConfig = %v, %v; want an error with %q", config, err, tc.want)
			}
		})
	}
}
