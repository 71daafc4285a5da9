package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/heartbeat"
)

// silentTypes are the conditions that an agent keeps up, and that nobody knows when it
// is silent.
func silentTypes() []corev1.NodeConditionType {
	return []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}
}

func findCondition(node *corev1.Node, kind corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range node.Status.Conditions {
		if node.Status.Conditions[i].Type == kind {
			return &node.Status.Conditions[i]
		}
	}
	return nil
}

// readiness is the status of the Ready condition, Unknown if there is none.
func readiness(node *corev1.Node) corev1.ConditionStatus {
	if c := findCondition(node, corev1.NodeReady); c != nil {
		return c.Status
	}
	return corev1.ConditionUnknown
}

// planConditions changes node to say that its agent is silent. It says whether that
// changes anything.
func planConditions(node *corev1.Node, now time.Time) bool {
	changed := false
	for _, kind := range silentTypes() {
		c := findCondition(node, kind)
		switch {
		case c == nil:
			node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{
				Type: kind, Status: corev1.ConditionUnknown,
				Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.",
				LastHeartbeatTime: node.CreationTimestamp, LastTransitionTime: metav1.NewTime(now),
			})
			changed = true
		case c.Status != corev1.ConditionUnknown:
			c.Status, c.Reason, c.Message = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status."
			c.LastTransitionTime = metav1.NewTime(now)
			changed = true
		}
	}
	return changed
}

// conditionTaint is the taint that a condition's status leads to, "" if none.
func conditionTaint(c *corev1.NodeCondition) string {
	switch {
	case c.Type == corev1.NodeReady && c.Status == corev1.ConditionFalse:
		return corev1.TaintNodeNotReady
	case c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown:
		return corev1.TaintNodeUnreachable
	case c.Status != corev1.ConditionTrue:
		return ""
	case c.Type == corev1.NodeMemoryPressure:
		return corev1.TaintNodeMemoryPressure
	case c.Type == corev1.NodeDiskPressure:
		return corev1.TaintNodeDiskPressure
	case c.Type == corev1.NodePIDPressure:
		return corev1.TaintNodePIDPressure
	case c.Type == corev1.NodeNetworkUnavailable:
		return corev1.TaintNodeNetworkUnavailable
	}
	return ""
}

// managed says whether a taint is this controller's to set and remove.
func managed(t *corev1.Taint) bool {
	switch t.Key {
	case corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable:
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	case corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure,
		corev1.TaintNodeNetworkUnavailable, corev1.TaintNodeUnschedulable:
		return t.Effect == corev1.TaintEffectNoSchedule
	}
	return false
}

// planTaints returns the taints that a node should have and whether they differ from
// those it has. evict is false when so many nodes are in trouble that it is the network or
// this side that is broken, and moving pods would not help them. settling keeps new pods off
// a node that is ready, but has fallen silent too often of late.
func planTaints(node *corev1.Node, evict, settling bool, now time.Time) ([]corev1.Taint, bool) {
	type mark struct {
		key    string
		effect corev1.TaintEffect
	}
	var want []mark
	for i := range node.Status.Conditions {
		c := &node.Status.Conditions[i]
		key := conditionTaint(c)
		if key == "" {
			continue
		}
		want = append(want, mark{key, corev1.TaintEffectNoSchedule})
		if c.Type == corev1.NodeReady && evict {
			want = append(want, mark{key, corev1.TaintEffectNoExecute})
		}
	}
	if findCondition(node, corev1.NodeReady) == nil {
		// Nothing is known yet: what the API put on it at its creation stays.
		for i := range node.Spec.Taints {
			if t := &node.Spec.Taints[i]; t.Key == corev1.TaintNodeNotReady {
				want = append(want, mark{t.Key, t.Effect})
			}
		}
	}
	if settling && readiness(node) == corev1.ConditionTrue {
		want = append(want, mark{corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule})
	}
	if node.Spec.Unschedulable {
		want = append(want, mark{corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule})
	}
	changed := false
	var taints []corev1.Taint
	for i := range node.Spec.Taints {
		t := &node.Spec.Taints[i]
		at := slices.Index(want, mark{t.Key, t.Effect})
		if managed(t) && at < 0 {
			changed = true
			continue
		}
		if at >= 0 {
			want = slices.Delete(want, at, at+1)
		}
		taints = append(taints, *t)
	}
	for _, m := range want {
		// In whole seconds, as the API writes it: a node's own status update shows the taints to
		// admission as they were read, and must not look like a change of them.
		added := metav1.NewTime(now).Rfc3339Copy()
		taints = append(taints, corev1.Taint{Key: m.key, Effect: m.effect, TimeAdded: &added})
		changed = true
	}
	return taints, changed
}

func checkRange(cluster netip.Prefix, bits int) error {
	if !cluster.IsValid() {
		return errors.New("the cluster's pod range is missing")
	}
	if bits < cluster.Bits() || bits > cluster.Addr().BitLen() || bits-cluster.Bits() > 16 {
		return fmt.Errorf("a node's part of %s cannot have %d bits", cluster, bits)
	}
	return nil
}

// verdict is what becomes of a pod on a tainted node.
type verdict struct {
	tolerates bool          // for ever
	after     time.Duration // how long it stays, if it does not
}

// planEviction says how long a pod stays under a node's NoExecute taints.
func planEviction(taints []corev1.Taint, tolerations []corev1.Toleration) verdict {
	shortest := time.Duration(-1)
	for i := range taints {
		if taints[i].Effect != corev1.TaintEffectNoExecute {
			continue
		}
		tolerated := false
		for j := range tolerations {
			t := &tolerations[j]
			if !covers(t, &taints[i]) {
				continue
			}
			tolerated = true
			if t.TolerationSeconds == nil {
				continue
			}
			stay := max(0, time.Duration(*t.TolerationSeconds)*time.Second)
			if shortest < 0 || stay < shortest {
				shortest = stay
			}
		}
		if !tolerated {
			return verdict{}
		}
	}
	return verdict{tolerates: shortest < 0, after: shortest}
}

func covers(t *corev1.Toleration, taint *corev1.Taint) bool {
	if (t.Effect != "" && t.Effect != taint.Effect) || (t.Key != "" && t.Key != taint.Key) {
		return false
	}
	return t.Operator == corev1.TolerationOpExists || ((t.Operator == "" || t.Operator == corev1.TolerationOpEqual) && t.Value == taint.Value)
}

// releasable says whether a pod that is evicted from a silent node can be given away when the node has certainly fenced
// it: its agent has said that it fences it, and that no storage it writes to could be reached from a machine that was
// paused as a whole and goes on with a stopped clock. Others wait for their node, for its deletion, or for the
// out-of-service taint.
func releasable(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp == nil {
		return false
	}
	c := controller.PodCondition(pod, heartbeat.ConditionFenced)
	if c == nil {
		return fencedUnsaid(pod)
	}
	return c.Status == corev1.ConditionTrue && c.Reason != heartbeat.ReasonSharedStorage
}

// fencedUnsaid says whether every node that fences at all fences a pod of this kind, so that it need not have said so: it may
// have died while it started the pod. Which pods a node fences is decided in its agent, by the same rules (ADR 39).
func fencedUnsaid(pod *corev1.Pod) bool {
	claims := slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.PersistentVolumeClaim != nil || v.Ephemeral != nil })
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	if claims || mirror || pod.Spec.RuntimeClassName != nil {
		return false
	}
	if said := pod.Annotations["gantry.dev/when-cut-off"]; said != "" {
		return said == "fence"
	}
	owner := metav1.GetControllerOf(pod)
	return owner != nil && owner.Kind == "StatefulSet" && strings.HasPrefix(owner.APIVersion, "apps/")
}

// patience leaves out the taint of an unreachable node for a pod that no other node could run and that has not said itself
// how long it tolerates that: to delete it would only restart it when the node is heard again.
func patience(taints []corev1.Taint, pod *corev1.Pod, unsaid int64) []corev1.Taint {
	c := controller.PodCondition(pod, heartbeat.ConditionFenced)
	if c == nil || c.Status != corev1.ConditionFalse || c.Reason != heartbeat.ReasonLocalVolume {
		return taints
	}
	said := slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool {
		unreachable := corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}
		return covers(&t, &unreachable) && (t.TolerationSeconds == nil || *t.TolerationSeconds != unsaid)
	})
	if said {
		return taints
	}
	return slices.DeleteFunc(slices.Clone(taints), func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeUnreachable })
}
