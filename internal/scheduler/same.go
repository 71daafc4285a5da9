package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pods of one controller have equal affinities and constraints that are not the same
// objects. They are compared with every pod that comes, so reflection is too slow for them.

func sameNodeAffinity(a, b *corev1.NodeAffinity) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := a.RequiredDuringSchedulingIgnoredDuringExecution, b.RequiredDuringSchedulingIgnoredDuringExecution
	if (x == nil) != (y == nil) || (x != nil && !slices.EqualFunc(x.NodeSelectorTerms, y.NodeSelectorTerms, sameNodeTerm)) {
		return false
	}
	return slices.EqualFunc(a.PreferredDuringSchedulingIgnoredDuringExecution, b.PreferredDuringSchedulingIgnoredDuringExecution,
		func(p, q corev1.PreferredSchedulingTerm) bool {
			return p.Weight == q.Weight && sameNodeTerm(p.Preference, q.Preference)
		})
}

func sameNodeTerm(a, b corev1.NodeSelectorTerm) bool {
	same := func(p, q corev1.NodeSelectorRequirement) bool {
		return p.Key == q.Key && p.Operator == q.Operator && slices.Equal(p.Values, q.Values)
	}
	return slices.EqualFunc(a.MatchExpressions, b.MatchExpressions, same) && slices.EqualFunc(a.MatchFields, b.MatchFields, same)
}

func samePodAffinity(a, b *corev1.PodAffinity) bool {
	if a == nil || b == nil {
		return a == b
	}
	return sameTerms(a.RequiredDuringSchedulingIgnoredDuringExecution, b.RequiredDuringSchedulingIgnoredDuringExecution) &&
		sameWeighted(a.PreferredDuringSchedulingIgnoredDuringExecution, b.PreferredDuringSchedulingIgnoredDuringExecution)
}

func samePodAntiAffinity(a, b *corev1.PodAntiAffinity) bool {
	if a == nil || b == nil {
		return a == b
	}
	return sameTerms(a.RequiredDuringSchedulingIgnoredDuringExecution, b.RequiredDuringSchedulingIgnoredDuringExecution) &&
		sameWeighted(a.PreferredDuringSchedulingIgnoredDuringExecution, b.PreferredDuringSchedulingIgnoredDuringExecution)
}

func sameWeighted(a, b []corev1.WeightedPodAffinityTerm) bool {
	return slices.EqualFunc(a, b, func(p, q corev1.WeightedPodAffinityTerm) bool {
		return p.Weight == q.Weight && sameTerm(&p.PodAffinityTerm, &q.PodAffinityTerm)
	})
}

func sameTerms(a, b []corev1.PodAffinityTerm) bool {
	return slices.EqualFunc(a, b, func(p, q corev1.PodAffinityTerm) bool { return sameTerm(&p, &q) })
}

// sameTerm leaves out the keys of labels to match, which are in the selector.
func sameTerm(a, b *corev1.PodAffinityTerm) bool {
	return a.TopologyKey == b.TopologyKey && slices.Equal(a.Namespaces, b.Namespaces) &&
		sameSelector(a.LabelSelector, b.LabelSelector) && sameSelector(a.NamespaceSelector, b.NamespaceSelector)
}

func sameSelector(a, b *metav1.LabelSelector) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a == b || mapsEqual(a.MatchLabels, b.MatchLabels) &&
		slices.EqualFunc(a.MatchExpressions, b.MatchExpressions, func(p, q metav1.LabelSelectorRequirement) bool {
			return p.Key == q.Key && p.Operator == q.Operator && slices.Equal(p.Values, q.Values)
		})
}

func sameConstraints(a, b []corev1.TopologySpreadConstraint) bool {
	return slices.EqualFunc(a, b, func(p, q corev1.TopologySpreadConstraint) bool {
		return p.MaxSkew == q.MaxSkew && p.TopologyKey == q.TopologyKey && p.WhenUnsatisfiable == q.WhenUnsatisfiable &&
			sameValue(p.MinDomains, q.MinDomains) && sameValue(p.NodeAffinityPolicy, q.NodeAffinityPolicy) &&
			sameValue(p.NodeTaintsPolicy, q.NodeTaintsPolicy) && slices.Equal(p.MatchLabelKeys, q.MatchLabelKeys) &&
			sameSelector(p.LabelSelector, q.LabelSelector)
	})
}

func sameValue[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
