package namespace

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// remains is what one pass over a namespace's content found.
type remains struct {
	resources  map[string]int // instances left by "resource.group"
	finalizers map[string]int // instances that wait for a finalizer
	failures   []string       // kinds that could not be deleted or listed
	discovery  error          // the kinds are not all known
}

func (r *remains) empty() bool {
	return len(r.resources) == 0 && len(r.failures) == 0 && r.discovery == nil
}

// conditionsFor are the conditions that tell of remains, in upstream's order and words.
func conditionsFor(r *remains, now time.Time) []corev1.NamespaceCondition {
	at := metav1.NewTime(now)
	say := func(kind corev1.NamespaceConditionType, bad bool, badReason, badText, okReason, okText string) corev1.NamespaceCondition {
		if bad {
			return corev1.NamespaceCondition{Type: kind, Status: corev1.ConditionTrue, Reason: badReason, Message: badText, LastTransitionTime: at}
		}
		return corev1.NamespaceCondition{Type: kind, Status: corev1.ConditionFalse, Reason: okReason, Message: okText, LastTransitionTime: at}
	}
	discovery := ""
	if r.discovery != nil {
		discovery = r.discovery.Error()
	}
	failures := slices.Sorted(slices.Values(r.failures))
	return []corev1.NamespaceCondition{
		say(corev1.NamespaceDeletionDiscoveryFailure, r.discovery != nil, "DiscoveryFailed", discovery,
			"ResourcesDiscovered", "All resources successfully discovered"),
		say(corev1.NamespaceDeletionGVParsingFailure, false, "", "",
			"ParsedGroupVersions", "All legacy kube types successfully parsed"),
		say(corev1.NamespaceDeletionContentFailure, len(failures) > 0, "ContentDeletionFailed",
			fmt.Sprintf("Failed to delete all resource types, %d remaining: %s", len(failures), strings.Join(failures, ", ")),
			"ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
		say(corev1.NamespaceContentRemaining, len(r.resources) > 0, "SomeResourcesRemain",
			"Some resources are remaining: "+lines(r.resources, "%s has %d resource instances"),
			"ContentRemoved", "All content successfully removed"),
		say(corev1.NamespaceFinalizersRemaining, len(r.finalizers) > 0, "SomeFinalizersRemain",
			"Some content in the namespace has finalizers remaining: "+lines(r.finalizers, "%s in %d resource instances"),
			"ContentHasNoFinalizers", "All content-preserving finalizers finished"),
	}
}

func lines(counts map[string]int, format string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, fmt.Sprintf(format, name, counts[name]))
	}
	return strings.Join(out, ", ")
}

// setConditions puts conditions into status and says whether that changes it. The
// transition time only moves when a condition's status does.
func setConditions(status *corev1.NamespaceStatus, conditions []corev1.NamespaceCondition) bool {
	changed := false
	for _, next := range conditions {
		at := slices.IndexFunc(status.Conditions, func(c corev1.NamespaceCondition) bool { return c.Type == next.Type })
		if at < 0 {
			status.Conditions = append(status.Conditions, next)
			changed = true
			continue
		}
		have := &status.Conditions[at]
		if have.Status == next.Status && have.Reason == next.Reason && have.Message == next.Message {
			continue
		}
		if have.Status == next.Status {
			next.LastTransitionTime = have.LastTransitionTime
		}
		*have = next
		changed = true
	}
	return changed
}
