package flowcontrol

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Controller keeps conditions. Make one with New, then call Run.
type Controller struct {
	client    client.Client
	informers controller.Informers
	loop      *controller.Loop
}

// New checks its arguments and returns a Controller that has started nothing.
func New(c client.Client, informers controller.Informers, log *slog.Logger) (*Controller, error) {
	if c == nil || informers == nil {
		return nil, errors.New("flowcontrol: New needs a client and informers")
	}
	k := &Controller{client: c, informers: informers}
	var err error
	if k.loop, err = controller.NewLoop(controller.LoopOptions{Name: "flowcontrol", Workers: 1, Log: log, Reconcile: k.reconcile}); err != nil {
		return nil, err
	}
	k.loop.Watch(&flowcontrolv1.FlowSchema{}, func(_, current client.Object) {
		if current != nil {
			k.loop.Add(controller.KeyOf(current))
		}
	})
	k.loop.Watch(&flowcontrolv1.PriorityLevelConfiguration{}, func(old, current client.Object) {
		if old == nil || current == nil { // only whether it is there matters
			k.all()
		}
	})
	return k, nil
}

// Run works until ctx ends.
func (k *Controller) Run(ctx context.Context) error { return k.loop.Run(ctx, k.informers) }

// all looks at every FlowSchema again: there are a few dozen.
func (k *Controller) all() {
	var schemas flowcontrolv1.FlowSchemaList
	if k.client.List(context.Background(), &schemas) != nil { // a read of memory, which fails only when everything ends
		return
	}
	for i := range schemas.Items {
		k.loop.Add(controller.KeyOf(&schemas.Items[i]))
	}
}

func (k *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var schema flowcontrolv1.FlowSchema
	if err := k.client.Get(ctx, key, &schema); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	err := k.client.Get(ctx, client.ObjectKey{Name: schema.Spec.PriorityLevelConfiguration.Name}, &flowcontrolv1.PriorityLevelConfiguration{})
	if err != nil && !apierrors.IsNotFound(err) {
		return 0, err
	}
	conditions, changed := planDangling(&schema, err == nil, metav1.Now())
	if !changed {
		return 0, nil
	}
	next := schema.DeepCopy()
	next.Status.Conditions = conditions
	return 0, client.IgnoreNotFound(k.client.Status().Update(ctx, next))
}

// planDangling returns the conditions that schema should have, and whether they are others than it has. The words are
// upstream's.
func planDangling(schema *flowcontrolv1.FlowSchema, exists bool, now metav1.Time) ([]flowcontrolv1.FlowSchemaCondition, bool) {
	level := schema.Spec.PriorityLevelConfiguration.Name
	want := flowcontrolv1.FlowSchemaCondition{
		Type: flowcontrolv1.FlowSchemaConditionDangling, Status: flowcontrolv1.ConditionTrue, LastTransitionTime: now, Reason: "NotFound",
		Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q but there is no such object", level),
	}
	if exists {
		want.Status, want.Reason = flowcontrolv1.ConditionFalse, "Found"
		want.Message = fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q and it exists", level)
	}
	at := slices.IndexFunc(schema.Status.Conditions, func(c flowcontrolv1.FlowSchemaCondition) bool { return c.Type == want.Type })
	if at < 0 {
		return append(slices.Clone(schema.Status.Conditions), want), true
	}
	have := schema.Status.Conditions[at]
	if have.Status == want.Status {
		want.LastTransitionTime = have.LastTransitionTime
	}
	if have == want {
		return nil, false
	}
	conditions := slices.Clone(schema.Status.Conditions)
	conditions[at] = want
	return conditions, true
}
