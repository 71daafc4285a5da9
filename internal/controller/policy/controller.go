package policy

import (
	"context"
	"errors"
	"log/slog"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	admissionregistrationv1apply "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// fieldManager is upstream's name for who writes the status.
const fieldManager = "validatingadmissionpolicy-status"

// Options tunes a Controller.
type Options struct {
	// Check finds mistakes in the expressions of a policy; required.
	Check func(policy *admissionregistrationv1.ValidatingAdmissionPolicy) []admissionregistrationv1.ExpressionWarning
	Log   *slog.Logger // default: discard
}

// Controller checks each policy once for each of its generations.
type Controller struct {
	client    client.Client
	informers controller.Informers
	opts      Options
	loop      *controller.Loop
}

// New checks opts and returns a controller that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, opts Options) (*Controller, error) {
	if opts.Check == nil {
		return nil, errors.New("policy: Options.Check is missing")
	}
	pc := &Controller{client: c, informers: informers, opts: opts}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "policy", Workers: 1, Log: opts.Log, Reconcile: pc.reconcile})
	if err != nil {
		return nil, err
	}
	loop.Watch(&admissionregistrationv1.ValidatingAdmissionPolicy{}, func(_, current client.Object) {
		if current != nil {
			loop.Add(controller.Key{Name: current.GetName()})
		}
	})
	pc.loop = loop
	return pc, nil
}

// Run reconciles until ctx ends.
func (pc *Controller) Run(ctx context.Context) error { return pc.loop.Run(ctx, pc.informers) }

func (pc *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var policy admissionregistrationv1.ValidatingAdmissionPolicy
	if err := pc.client.Get(ctx, key, &policy); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if policy.Generation <= policy.Status.ObservedGeneration {
		return 0, nil
	}
	found := admissionregistrationv1apply.TypeChecking()
	for _, w := range pc.opts.Check(policy.DeepCopy()) {
		found.WithExpressionWarnings(admissionregistrationv1apply.ExpressionWarning().WithFieldRef(w.FieldRef).WithWarning(w.Warning))
	}
	status := admissionregistrationv1apply.ValidatingAdmissionPolicyStatus().WithObservedGeneration(policy.Generation).WithTypeChecking(found)
	config := admissionregistrationv1apply.ValidatingAdmissionPolicy(policy.Name).WithStatus(status)
	err := pc.client.Status().Apply(ctx, config, client.ForceOwnership, client.FieldOwner(fieldManager))
	return 0, client.IgnoreNotFound(err)
}
