package admission

import (
	"context"
	"errors"
	"fmt"
	"sync"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/fieldmanager"
	webhookutil "k8s.io/apiserver/pkg/util/webhook"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/api/admission/policy"
	"gantry.dev/gantry/internal/api/admission/quota"
	"gantry.dev/gantry/internal/api/admission/view"
	"gantry.dev/gantry/internal/api/admission/webhook"
	"gantry.dev/gantry/internal/api/registry"
)

// Options says what a Chain needs. All are required.
type Options struct {
	Registry   *registry.Registry
	Authorizer authorizer.Authorizer
	Client     ctrlclient.Client // writes what quotas have used, as the server itself
	// NotReadySeconds and UnreachableSeconds are how long pods that say nothing about it stay on a node that is not
	// ready, or is not heard of; nil is a second.
	NotReadySeconds, UnreachableSeconds *int64
}

// Chain runs plugins in order. It satisfies the registry's Admission.
type Chain struct {
	view     *view.View
	hooks    *webhook.Hooks
	policies *policy.Policies
	routes   map[schema.GroupResource][]*step // steps by resource, for those that some step names
	rest     []*step                          // steps of all other resources
	objects  func() admission.ObjectInterfaces
	guarded  admission.Interface // the chain, with managed fields kept intact
	stop     chan struct{}       // closed when Run ends

	tolerations defaultTolerationSeconds
}

// New checks opts and returns the Chain. Nothing is started; call Run before the first request.
func New(opts Options) (*Chain, error) {
	switch {
	case opts.Registry == nil:
		return nil, errors.New("admission: Registry is nil")
	case opts.Authorizer == nil:
		return nil, errors.New("admission: Authorizer is nil")
	case opts.Client == nil:
		return nil, errors.New("admission: Client is nil")
	}
	v, err := view.New(opts.Registry)
	if err != nil {
		return nil, err
	}
	c := &Chain{view: v, stop: make(chan struct{}), tolerations: newDefaultTolerationSeconds(&opts)}
	if c.hooks, err = webhook.New(webhook.Options{View: v, Authorizer: opts.Authorizer}); err != nil {
		return nil, err
	}
	c.policies, err = policy.New(policy.Options{View: v, Authorizer: opts.Authorizer, Schema: opts.Registry.TypeConverter})
	if err != nil {
		return nil, err
	}
	quotas, err := quota.New(quota.Options{View: v, Client: opts.Client, Stop: c.stop})
	if err != nil {
		return nil, err
	}
	c.objects = sync.OnceValue(func() admission.ObjectInterfaces { return newObjects(opts.Registry) })
	c.guarded = fieldmanager.NewManagedFieldsValidatingAdmissionController(asPlugin{c})
	c.route(c.steps(newUpstream(v, opts.Authorizer, c.stop), quotas))
	return c, nil
}

// Run keeps the workers that plugins start for themselves, until ctx ends.
func (c *Chain) Run(ctx context.Context) error {
	<-ctx.Done()
	close(c.stop)
	return nil
}

// route sorts the steps by the resources that they are about.
func (c *Chain) route(steps []*step) {
	c.routes = make(map[schema.GroupResource][]*step)
	for _, s := range steps {
		for _, resource := range s.resources {
			c.routes[resource] = nil
		}
	}
	for _, s := range steps {
		if s.resources == nil {
			c.rest = append(c.rest, s)
			for resource := range c.routes {
				c.routes[resource] = append(c.routes[resource], s)
			}
			continue
		}
		for _, resource := range s.resources {
			c.routes[resource] = append(c.routes[resource], s)
		}
	}
}

func (c *Chain) stepsFor(a admission.Attributes) []*step {
	if steps, ok := c.routes[a.GetResource().GroupResource()]; ok {
		return steps
	}
	return c.rest
}

// Admit implements the registry's Admission. Only administrators' own hooks can harm the managed
// fields.
func (c *Chain) Admit(ctx context.Context, a admission.Attributes) error {
	if a.GetObject() != nil && (c.hooks.Mutates() || c.policies.Mutates()) {
		return admitBy(ctx, c.guarded, a, c.objects())
	}
	return c.admitAll(ctx, a)
}

// admitAll lets each step change the object; when a hook did, once more.
func (c *Chain) admitAll(ctx context.Context, a admission.Attributes) error {
	if err := c.admitOnce(ctx, a); err != nil {
		return err
	}
	again := a.GetReinvocationContext()
	if again == nil || !again.ShouldReinvoke() {
		return nil
	}
	again.SetIsReinvoke()
	return c.admitOnce(ctx, a)
}

func (c *Chain) admitOnce(ctx context.Context, a admission.Attributes) error {
	for _, s := range c.stepsFor(a) {
		if s.skips(a) {
			continue
		}
		p, err := s.plugin()
		if err != nil {
			return apierrors.NewInternalError(fmt.Errorf("admission plugin %s: %w", s.name, err))
		}
		if err := admitBy(ctx, p, a, c.objects()); err != nil {
			return err
		}
	}
	return nil
}

// Validate implements the registry's Admission.
func (c *Chain) Validate(ctx context.Context, a admission.Attributes) error {
	for _, s := range c.stepsFor(a) {
		if s.skips(a) {
			continue
		}
		p, err := s.plugin()
		if err != nil {
			return apierrors.NewInternalError(fmt.Errorf("admission plugin %s: %w", s.name, err))
		}
		if err := validateBy(ctx, p, a, c.objects()); err != nil {
			return err
		}
	}
	return nil
}

func admitBy(ctx context.Context, p admission.Interface, a admission.Attributes, o admission.ObjectInterfaces) error {
	if m, ok := p.(admission.MutationInterface); ok && p.Handles(a.GetOperation()) {
		return m.Admit(ctx, a, o)
	}
	return nil
}

func validateBy(ctx context.Context, p admission.Interface, a admission.Attributes, o admission.ObjectInterfaces) error {
	if v, ok := p.(admission.ValidationInterface); ok && p.Handles(a.GetOperation()) {
		return v.Validate(ctx, a, o)
	}
	return nil
}

// asPlugin shows the mutating half of the chain to what guards the managed fields.
type asPlugin struct{ chain *Chain }

// Handles implements admission.Interface.
func (asPlugin) Handles(admission.Operation) bool { return true }

// Admit implements admission.MutationInterface.
func (p asPlugin) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	return p.chain.admitAll(ctx, a)
}

// Counter counts what quotas limit, for the controller that keeps their status.
func (c *Chain) Counter() *quota.Counter { return quota.NewCounter(c.view) }

// CheckTypes finds mistakes in the expressions of a policy, for the controller that puts them
// into its status.
func (c *Chain) CheckTypes(p *admissionregistrationv1.ValidatingAdmissionPolicy) []admissionregistrationv1.ExpressionWarning {
	return policy.CheckTypes(c.view, p)
}

// Services finds where webhooks at services are called, those that convert custom resources too.
func (c *Chain) Services() webhookutil.ServiceResolver { return webhook.Services(c.view) }
