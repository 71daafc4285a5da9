package agent

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestStoreCondition(t *testing.T) {
	if c := storeCondition(nil); c.Status != corev1.ConditionFalse || c.Type != conditionStore {
		t.Errorf("a store that takes writes is told as %+v", c)
	}
	if c := storeCondition(errors.New("less than 64 MiB are free")); c.Status != corev1.ConditionTrue || c.Message != "less than 64 MiB are free" {
		t.Errorf("a full disk is told as %+v", c)
	}
}
