package api

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"gantry.dev/gantry/internal/api/registry"
)

// endpoint is a resource with what surrounds its bytes.
type endpoint struct {
	*registry.Resource
	kindFrame
	verbs map[string]bool
	subs  map[string]*subEndpoint
}

// subEndpoint is a subresource.
type subEndpoint struct {
	registry.SubresourceInfo
	kindFrame
	verbs map[string]bool
}

// review is a resource that only answers questions.
type review struct {
	resource   schema.GroupVersionResource
	kind       schema.GroupVersionKind
	singular   string
	namespaced bool
	newObj     func() runtime.Object
}

// route builds the tables that requests are looked up in.
func (s *Server) route() {
	s.endpoints = map[schema.GroupVersionResource]*endpoint{}
	s.versions = map[schema.GroupVersion]bool{}
	s.reviews = map[schema.GroupVersionResource]*review{}
	for _, res := range s.opts.Registry.Resources() {
		ep := &endpoint{Resource: res, kindFrame: newKindFrame(res.Kind, res.ListKind), verbs: set(res.Verbs), subs: map[string]*subEndpoint{}}
		for _, info := range res.Subresources {
			ep.subs[info.Name] = &subEndpoint{SubresourceInfo: info, kindFrame: newKindFrame(info.Kind, info.Kind.Kind+"List"), verbs: set(info.Verbs)}
		}
		s.endpoints[res.Info.Resource] = ep
		s.versions[res.Info.Resource.GroupVersion()] = true
	}
	for _, r := range allReviews() {
		s.reviews[r.resource] = r
		s.versions[r.resource.GroupVersion()] = true
	}
}

func set(names []string) map[string]bool {
	out := make(map[string]bool, len(names))
	for _, name := range names {
		out[name] = true
	}
	return out
}

// allReviews lists the questions, in the order of discovery.
func allReviews() []*review {
	authn, authz := authenticationv1.SchemeGroupVersion, authorizationv1.SchemeGroupVersion
	one := func(gv schema.GroupVersion, plural, kind, singular string, namespaced bool, newObj func() runtime.Object) *review {
		return &review{gv.WithResource(plural), gv.WithKind(kind), singular, namespaced, newObj}
	}
	return []*review{
		one(authn, "selfsubjectreviews", "SelfSubjectReview", "selfsubjectreview", false,
			func() runtime.Object { return &authenticationv1.SelfSubjectReview{} }),
		one(authn, "tokenreviews", "TokenReview", "tokenreview", false,
			func() runtime.Object { return &authenticationv1.TokenReview{} }),
		one(authz, "localsubjectaccessreviews", "LocalSubjectAccessReview", "localsubjectaccessreview", true,
			func() runtime.Object { return &authorizationv1.LocalSubjectAccessReview{} }),
		one(authz, "selfsubjectaccessreviews", "SelfSubjectAccessReview", "selfsubjectaccessreview", false,
			func() runtime.Object { return &authorizationv1.SelfSubjectAccessReview{} }),
		one(authz, "selfsubjectrulesreviews", "SelfSubjectRulesReview", "selfsubjectrulesreview", false,
			func() runtime.Object { return &authorizationv1.SelfSubjectRulesReview{} }),
		one(authz, "subjectaccessreviews", "SubjectAccessReview", "subjectaccessreview", false,
			func() runtime.Object { return &authorizationv1.SubjectAccessReview{} }),
	}
}
