package server

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/store"
)

func TestPlanDiffers(t *testing.T) {
	condition := func(status corev1.ConditionStatus) []corev1.NodeCondition {
		return []corev1.NodeCondition{{Type: storeDiffers, Status: status}}
	}
	bad := store.Comparison{Same: []string{"a", "b"}, Differ: []string{"c"}}
	for name, tc := range map[string]struct {
		node   string
		before []corev1.NodeCondition
		got    store.Comparison
		want   corev1.ConditionStatus // "" when nothing is written
		reason string
	}{
		"differs":       {"c", nil, bad, corev1.ConditionTrue, "OtherData"},
		"still differs": {"c", condition(corev1.ConditionTrue), bad, "", ""},
		"never did":     {"a", nil, bad, "", ""},
		"no longer":     {"a", condition(corev1.ConditionTrue), bad, corev1.ConditionFalse, "SameData"},
		"was not asked": {"d", condition(corev1.ConditionTrue), bad, "", ""},
		"no majority":   {"a", nil, store.Comparison{Differ: []string{"a", "b"}, Unsure: true}, corev1.ConditionTrue, "NoMajority"},
		"again":         {"c", condition(corev1.ConditionFalse), bad, corev1.ConditionTrue, "OtherData"},
	} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: tc.node}, Status: corev1.NodeStatus{Conditions: tc.before}}
		next := planDiffers(node, tc.got, metav1.Now())
		if next == nil {
			if tc.want != "" {
				t.Errorf("%s: nothing is written", name)
			}
			continue
		}
		if c := next.Status.Conditions[0]; c.Status != tc.want || c.Reason != tc.reason || len(next.Status.Conditions) != 1 {
			t.Errorf("%s: %+v", name, next.Status.Conditions)
		}
	}
}

func TestAwaitCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, n := time.Now(), int64(0)
		awaitCalm(t.Context(), func() int64 {
			if n < 3 {
				n++
			}
			return n
		})
		if took := time.Since(begun); took != 3*calmFor {
			t.Errorf("calm after %v, want %v", took, 3*calmFor)
		}
		begun = time.Now()
		awaitCalm(context.WithoutCancel(t.Context()), func() int64 { n++; return n })
		if took := time.Since(begun); took != calmWait {
			t.Errorf("went on after %v, want %v", took, calmWait)
		}
	})
}
