package registry

import (
	"context"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	admissionregistrationv1alpha1 "k8s.io/api/admissionregistration/v1alpha1"
	admissionregistrationv1beta1 "k8s.io/api/admissionregistration/v1beta1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/apis/admissionregistration"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingadmissionpolicy"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingadmissionpolicybinding"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingwebhookconfiguration"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicy"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicybinding"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingwebhookconfiguration"
)

// admissionKinds say what else decides about changes. Who writes a policy must be able to read
// the parameters that it takes; the strategies ask the authorizer.
func (r *Registry) admissionKinds() []*definition {
	v1, v1beta1, v1alpha1 := admissionregistrationv1.SchemeGroupVersion, admissionregistrationv1beta1.SchemeGroupVersion, admissionregistrationv1alpha1.SchemeGroupVersion
	policies := policySource{r}
	validating := validatingadmissionpolicy.NewStrategy(r.opts.Authorizer, policies)
	mutating := mutatingadmissionpolicy.NewStrategy(r.opts.Authorizer, policies)
	mutatingBinding := mutatingadmissionpolicybinding.NewStrategy(r.opts.Authorizer, policies, policies)
	return []*definition{
		// Until 1.37 upstream stores mutating policies as v1beta1, so that 1.35 can read them.
		define[admissionregistrationv1beta1.MutatingAdmissionPolicy](v1beta1, "mutatingadmissionpolicies", mutating).
			category("api-extensions").
			alsoServedAs(define[admissionregistrationv1.MutatingAdmissionPolicy](v1, "mutatingadmissionpolicies", mutating)).
			alsoServedAs(define[admissionregistrationv1alpha1.MutatingAdmissionPolicy](v1alpha1, "mutatingadmissionpolicies", mutating)),
		define[admissionregistrationv1beta1.MutatingAdmissionPolicyBinding](v1beta1, "mutatingadmissionpolicybindings", mutatingBinding).
			category("api-extensions").
			alsoServedAs(define[admissionregistrationv1.MutatingAdmissionPolicyBinding](v1, "mutatingadmissionpolicybindings", mutatingBinding)).
			alsoServedAs(define[admissionregistrationv1alpha1.MutatingAdmissionPolicyBinding](v1alpha1, "mutatingadmissionpolicybindings", mutatingBinding)),
		define[admissionregistrationv1.MutatingWebhookConfiguration](v1, "mutatingwebhookconfigurations",
			mutatingwebhookconfiguration.Strategy).category("api-extensions"),
		define[admissionregistrationv1.ValidatingAdmissionPolicy](v1, "validatingadmissionpolicies", validating).
			category("api-extensions").withStatus(validatingadmissionpolicy.NewStatusStrategy(validating)),
		define[admissionregistrationv1.ValidatingAdmissionPolicyBinding](v1, "validatingadmissionpolicybindings",
			validatingadmissionpolicybinding.NewStrategy(r.opts.Authorizer, policies, policies)).category("api-extensions"),
		define[admissionregistrationv1.ValidatingWebhookConfiguration](v1, "validatingwebhookconfigurations",
			validatingwebhookconfiguration.Strategy).category("api-extensions"),
	}
}

// policySource finds for the strategies of policies and bindings what they refer to.
type policySource struct{ registry *Registry }

// Resolve gives the resource of a kind.
func (p policySource) Resolve(kind schema.GroupVersionKind) (schema.GroupVersionResource, error) {
	if res := p.registry.ResourceOf(kind); res != nil {
		return res.Info.Resource, nil
	}
	return schema.GroupVersionResource{}, &meta.NoKindMatchError{GroupKind: kind.GroupKind(), SearchedVersions: []string{kind.Version}}
}

// GetValidatingAdmissionPolicy returns the policy of a binding.
func (p policySource) GetValidatingAdmissionPolicy(ctx context.Context, name string) (*admissionregistration.ValidatingAdmissionPolicy, error) {
	obj, err := p.get(ctx, "validatingadmissionpolicies", name)
	if err != nil {
		return nil, err
	}
	policy, ok := obj.(*admissionregistration.ValidatingAdmissionPolicy)
	if !ok {
		return nil, fmt.Errorf("policy %s is a %T", name, obj)
	}
	return policy, nil
}

// GetMutatingAdmissionPolicy returns the policy of a binding.
func (p policySource) GetMutatingAdmissionPolicy(ctx context.Context, name string) (*admissionregistration.MutatingAdmissionPolicy, error) {
	obj, err := p.get(ctx, "mutatingadmissionpolicies", name)
	if err != nil {
		return nil, err
	}
	policy, ok := obj.(*admissionregistration.MutatingAdmissionPolicy)
	if !ok {
		return nil, fmt.Errorf("policy %s is a %T", name, obj)
	}
	return policy, nil
}

func (p policySource) get(ctx context.Context, resource, name string) (runtime.Object, error) {
	res := p.registry.Resource(admissionregistrationv1.SchemeGroupVersion.WithResource(resource))
	entry, err := res.Get(ctx, "", name, "0")
	if err != nil {
		return nil, err
	}
	return res.def.versions.ToInternal(entry.Object)
}
