package policy

import (
	"context"
	"errors"
	"sync"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/policy/generic"
	"k8s.io/apiserver/pkg/admission/plugin/policy/matching"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gantry.dev/gantry/internal/api/admission/view"
)

// Options says what the policies need. All are required.
type Options struct {
	View       *view.View
	Authorizer authorizer.Authorizer // for expressions that ask it
	// Schema gives the type converter of a kind, for apply configurations.
	Schema func(kind schema.GroupVersionKind) (managedfields.TypeConverter, error)
}

type (
	mutatingSource   = source[*mutating.Policy, *mutating.PolicyBinding, mutating.PolicyEvaluator]
	validatingSource = source[*validating.Policy, *validating.PolicyBinding, validating.Validator]
)

// Policies are the cluster's admission policies. Make them with New; safe for concurrent use.
type Policies struct {
	mutating   *mutatingSource
	validating *validatingSource
	mutate     func() generic.Dispatcher[mutating.PolicyHook]
	validate   func() generic.Dispatcher[validating.PolicyHook]
}

// New checks opts and returns Policies that have built nothing yet.
func New(opts Options) (*Policies, error) {
	switch {
	case opts.View == nil:
		return nil, errors.New("policy: View is nil")
	case opts.Authorizer == nil:
		return nil, errors.New("policy: Authorizer is nil")
	case opts.Schema == nil:
		return nil, errors.New("policy: Schema is nil")
	}
	gv := admissionregistrationv1.SchemeGroupVersion
	p := &Policies{
		mutating: newSource(opts.View, kind[*mutating.Policy, *mutating.PolicyBinding, mutating.PolicyEvaluator]{
			policy: mutating.NewMutatingAdmissionPolicyAccessor, binding: mutating.NewMutatingAdmissionPolicyBindingAccessor,
			compile:  compileMutating,
			policies: gv.WithResource("mutatingadmissionpolicies"), bindings: gv.WithResource("mutatingadmissionpolicybindings"),
		}),
		validating: newSource(opts.View, kind[*validating.Policy, *validating.PolicyBinding, validating.Validator]{
			policy: validating.NewValidatingAdmissionPolicyAccessor, binding: validating.NewValidatingAdmissionPolicyBindingAccessor,
			compile:  compileValidating,
			policies: gv.WithResource("validatingadmissionpolicies"), bindings: gv.WithResource("validatingadmissionpolicybindings"),
		}),
	}
	matcher := sync.OnceValue(func() *matching.Matcher {
		return matching.NewMatcher(opts.View.Informers().Core().V1().Namespaces().Lister(), opts.View.Clientset())
	})
	p.mutate = sync.OnceValue(func() generic.Dispatcher[mutating.PolicyHook] {
		return mutating.NewDispatcher(opts.Authorizer, matcher(), converters{opts.Schema})
	})
	p.validate = sync.OnceValue(func() generic.Dispatcher[validating.PolicyHook] {
		return validating.NewDispatcher(opts.Authorizer, generic.NewPolicyMatcher(matcher()))
	})
	return p, nil
}

// Mutates reports whether there is any mutating policy with a binding.
func (p *Policies) Mutates() bool { return !p.mutating.empty() }

// Validates reports whether there is any validating policy with a binding.
func (p *Policies) Validates() bool { return !p.validating.empty() }

// Admit applies the mutating policies. A delete has nothing to mutate.
func (p *Policies) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if a.GetOperation() == admission.Delete || p.mutating.empty() || exempt(a) {
		return nil
	}
	return p.mutate().Dispatch(ctx, a, o, p.mutating.hooks(ctx))
}

// Validate asks the validating policies.
func (p *Policies) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if p.validating.empty() || exempt(a) {
		return nil
	}
	return p.validate().Dispatch(ctx, a, o, p.validating.hooks(ctx))
}

// exempt keeps a policy from locking its own cure out, and out of questions about rights, which nothing could work without
// (upstream: pkg/kubeapiserver/admission/exclusion).
func exempt(a admission.Attributes) bool {
	resource := a.GetResource()
	switch resource.Group {
	case authenticationv1.GroupName, authorizationv1.GroupName:
		return true // these groups have nothing else
	case admissionregistrationv1.GroupName:
	default:
		return false
	}
	switch resource.Resource {
	case "validatingadmissionpolicies", "validatingadmissionpolicybindings", "mutatingadmissionpolicies", "mutatingadmissionpolicybindings":
		return true
	}
	return false
}

// converters finds type converters in the registry. It implements patch.TypeConverterManager.
type converters struct {
	schema func(kind schema.GroupVersionKind) (managedfields.TypeConverter, error)
}

// GetTypeConverter implements patch.TypeConverterManager.
func (c converters) GetTypeConverter(kind schema.GroupVersionKind) managedfields.TypeConverter {
	converter, err := c.schema(kind)
	if err != nil {
		return nil
	}
	return converter
}

// Run implements patch.TypeConverterManager; the registry's schemas are always current.
func (c converters) Run(ctx context.Context) { <-ctx.Done() }
