package flowcontrol

import (
	"testing"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPlanDangling(t *testing.T) {
	schema := &flowcontrolv1.FlowSchema{Spec: flowcontrolv1.FlowSchemaSpec{PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "gold"}}}
	then, now := metav1.NewTime(time.Unix(1, 0)), metav1.NewTime(time.Unix(2, 0))
	found, changed := planDangling(schema, true, then)
	if !changed || len(found) != 1 || found[0].Status != flowcontrolv1.ConditionFalse || found[0].Reason != "Found" || found[0].LastTransitionTime != then {
		t.Fatalf("%+v, %v", found, changed)
	}
	schema.Status.Conditions = found
	if again, changed := planDangling(schema, true, now); changed {
		t.Errorf("nothing changed: %+v", again)
	}
	lost, changed := planDangling(schema, false, now)
	if !changed || len(lost) != 1 || lost[0].Status != flowcontrolv1.ConditionTrue || lost[0].Reason != "NotFound" || lost[0].LastTransitionTime != now {
		t.Errorf("%+v, %v", lost, changed)
	}
}
