package parity

import (
	"fmt"
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	configv1 "k8s.io/kube-scheduler/config/v1"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"

	"gantry.dev/gantry/internal/scheduler"
)

// profileCase is one configuration, in kube-scheduler's types and in ours.
type profileCase struct {
	theirs func(*config.KubeSchedulerProfile)
	ours   func(*scheduler.Profile)
}

func argsOf[T any](p *config.KubeSchedulerProfile, name string) *T {
	for i := range p.PluginConfig {
		if p.PluginConfig[i].Name == name {
			return any(p.PluginConfig[i].Args).(*T)
		}
	}
	panic("no arguments of " + name)
}

func fitCase(kind config.ScoringStrategyType, ours scheduler.StrategyType) profileCase {
	return profileCase{
		func(p *config.KubeSchedulerProfile) {
			args := argsOf[config.NodeResourcesFitArgs](p, "NodeResourcesFit")
			args.ScoringStrategy.Type = kind
			args.ScoringStrategy.Resources = []config.ResourceSpec{{Name: "cpu", Weight: 3}, {Name: "memory", Weight: 1}, {Name: "example.com/gpu", Weight: 5}, {Name: "ephemeral-storage", Weight: 2}}
			if kind == config.RequestedToCapacityRatio {
				args.ScoringStrategy.RequestedToCapacityRatio = &config.RequestedToCapacityRatioParam{
					Shape: []config.UtilizationShapePoint{{Utilization: 0, Score: 0}, {Utilization: 40, Score: 9}, {Utilization: 100, Score: 3}},
				}
			}
		},
		func(p *scheduler.Profile) {
			p.Fit.Type = ours
			p.Fit.Resources = []scheduler.ResourceWeight{{Name: "cpu", Weight: 3}, {Name: "memory", Weight: 1}, {Name: "example.com/gpu", Weight: 5}, {Name: "ephemeral-storage", Weight: 2}}
			p.Fit.Shape = []scheduler.ShapePoint{{Utilization: 0, Score: 0}, {Utilization: 40, Score: 9}, {Utilization: 100, Score: 3}}
		},
	}
}

func profileCases() map[string]profileCase {
	constraint := corev1.TopologySpreadConstraint{TopologyKey: "rack", MaxSkew: 2, WhenUnsatisfiable: corev1.DoNotSchedule}
	soft := corev1.TopologySpreadConstraint{TopologyKey: corev1.LabelTopologyZone, MaxSkew: 1, WhenUnsatisfiable: corev1.ScheduleAnyway}
	added := &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: corev1.NodeSelectorOpExists}}}}},
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 7, Preference: corev1.NodeSelectorTerm{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: corev1.NodeSelectorOpIn, Values: []string{"ssd"}}}}}},
	}
	return map[string]profileCase{
		"least": fitCase(config.LeastAllocated, scheduler.LeastAllocated),
		"most":  fitCase(config.MostAllocated, scheduler.MostAllocated),
		"ratio": fitCase(config.RequestedToCapacityRatio, scheduler.RequestedToCapacityRatio),
		"balanced over four": {
			func(p *config.KubeSchedulerProfile) {
				argsOf[config.NodeResourcesBalancedAllocationArgs](p, "NodeResourcesBalancedAllocation").Resources =
					[]config.ResourceSpec{{Name: "cpu", Weight: 1}, {Name: "memory", Weight: 1}, {Name: "example.com/gpu", Weight: 1}, {Name: "ephemeral-storage", Weight: 1}}
			},
			func(p *scheduler.Profile) {
				p.Balanced = []scheduler.ResourceWeight{{Name: "cpu", Weight: 1}, {Name: "memory", Weight: 1}, {Name: "example.com/gpu", Weight: 1}, {Name: "ephemeral-storage", Weight: 1}}
			},
		},
		"ignored resources": {
			func(p *config.KubeSchedulerProfile) {
				argsOf[config.NodeResourcesFitArgs](p, "NodeResourcesFit").IgnoredResourceGroups = []string{"example.com"}
			},
			func(p *scheduler.Profile) { p.IgnoredGroups = map[string]struct{}{"example.com": {}} },
		},
		"pod affinity": {
			func(p *config.KubeSchedulerProfile) {
				argsOf[config.InterPodAffinityArgs](p, "InterPodAffinity").HardPodAffinityWeight = 50
			},
			func(p *scheduler.Profile) { p.HardPodAffinityWeight = 50 },
		},
		"no preferences of others": {
			func(p *config.KubeSchedulerProfile) {
				argsOf[config.InterPodAffinityArgs](p, "InterPodAffinity").IgnorePreferredTermsOfExistingPods = true
			},
			func(p *scheduler.Profile) { p.IgnorePreferredTermsOfExistingPods = true },
		},
		"default constraints": {
			func(p *config.KubeSchedulerProfile) {
				args := argsOf[config.PodTopologySpreadArgs](p, "PodTopologySpread")
				args.DefaultingType, args.DefaultConstraints = config.ListDefaulting, []corev1.TopologySpreadConstraint{constraint, soft}
			},
			func(p *scheduler.Profile) {
				p.SystemDefaulted, p.DefaultConstraints = false, []corev1.TopologySpreadConstraint{constraint, soft}
			},
		},
		"added affinity": {
			func(p *config.KubeSchedulerProfile) {
				argsOf[config.NodeAffinityArgs](p, "NodeAffinity").AddedAffinity = added
			},
			func(p *scheduler.Profile) { p.AddedAffinity = added },
		},
		"weights": {
			func(p *config.KubeSchedulerProfile) {
				for i := range p.Plugins.MultiPoint.Enabled {
					switch e := &p.Plugins.MultiPoint.Enabled[i]; e.Name {
					case "ImageLocality":
						e.Weight = 9
					case "PodTopologySpread":
						e.Weight = 4
					}
				}
			},
			func(p *scheduler.Profile) {
				p.Weights[scheduler.ImageLocality] = 9
				p.Weights[scheduler.PodTopologySpread] = 4
			},
		},
	}
}

// defaultProfile is kube-scheduler's default profile in full.
func defaultProfile(t testing.TB) config.KubeSchedulerProfile {
	t.Helper()
	var versioned configv1.KubeSchedulerConfiguration
	versioned.TypeMeta = metav1.TypeMeta{APIVersion: configv1.SchemeGroupVersion.String(), Kind: "KubeSchedulerConfiguration"}
	scheme.Scheme.Default(&versioned)
	var c config.KubeSchedulerConfiguration
	if err := scheme.Scheme.Convert(&versioned, &c, nil); err != nil {
		t.Fatal(err)
	}
	return c.Profiles[0]
}

// TestSameDecisionsByProfile is TestSameDecisions with configured profiles.
func TestSameDecisionsByProfile(t *testing.T) {
	p := flags()
	for name, tc := range profileCases() {
		for i := range max(1, p.rounds/10) {
			seed := p.seed + uint64(i)
			t.Run(fmt.Sprint(name, "/seed=", seed), func(t *testing.T) {
				theirs, ours := defaultProfile(t), scheduler.DefaultProfile("default-scheduler")
				tc.theirs(&theirs)
				tc.ours(ours)
				r := &source{Rand: rand.New(rand.NewPCG(seed, 1))}
				nodes := 1 + r.IntN(30)
				objects := r.cluster(nodes, r.IntN(3*nodes))
				k, s := newKube(t, theirs), scheduler.NewState()
				if err := s.SetProfiles(ours); err != nil {
					t.Fatal(err)
				}
				k.add(t, objects...)
				fill(s, objects...)
				for range 20 {
					compare(t, k, s, r.pod())
				}
				if t.Failed() {
					t.Fatalf("repeat with -parity.rounds=1 -parity.seed=%d", seed)
				}
			})
		}
	}
}
