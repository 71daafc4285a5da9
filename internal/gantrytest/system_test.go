package gantrytest

import (
	"testing"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/client-go/util/retry"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

func TestEveryClusterHasUpstreamsObjects(t *testing.T) {
	dir := t.TempDir()
	c := Start(t, Options{Dir: dir})
	var classes schedulingv1.PriorityClassList
	var schemas flowcontrolv1.FlowSchemaList
	var levels flowcontrolv1.PriorityLevelConfigurationList
	for _, list := range []ctrlclient.ObjectList{&classes, &schemas, &levels} {
		if err := c.Client.List(t.Context(), list); err != nil {
			t.Fatal(err)
		}
	}
	if len(classes.Items) != 2 || len(schemas.Items) != 11 || len(levels.Items) != 8 {
		t.Errorf("%d priority classes, %d flow schemas, %d priority levels; want 2, 11, 8", len(classes.Items), len(schemas.Items), len(levels.Items))
	}
	var schema flowcontrolv1.FlowSchema
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error { // its status is written to meanwhile
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: "system-nodes"}, &schema); err != nil {
			return err
		}
		next := schema.DeepCopy()
		next.Spec.DistinguisherMethod = &flowcontrolv1.FlowDistinguisherMethod{Type: flowcontrolv1.FlowDistinguisherMethodByNamespaceType}
		next.Annotations = map[string]string{flowcontrolv1.AutoUpdateAnnotationKey: "false"}
		return c.Client.Update(t.Context(), next)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Client.Delete(t.Context(), &schedulingv1.PriorityClass{ObjectMeta: classes.Items[0].ObjectMeta}); err != nil {
		t.Fatal(err)
	}
	c.Stop()

	c = Start(t, Options{Dir: dir})
	if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: "system-nodes"}, &schema); err != nil {
		t.Fatal(err)
	}
	if got := schema.Spec.DistinguisherMethod.Type; got != flowcontrolv1.FlowDistinguisherMethodByNamespaceType {
		t.Errorf("after a restart system-nodes has %s: a change of its owner's is gone", got)
	}
	if err := c.Client.List(t.Context(), &classes); err != nil || len(classes.Items) != 2 {
		t.Errorf("%d priority classes after a restart, %v; want 2", len(classes.Items), err)
	}
}
