package api

import (
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/deprecation"
	"k8s.io/apiserver/pkg/registry/rest"

	"gantry.dev/gantry/internal/api/registry"
)

// endpoint is a resource with what surrounds its bytes.
type endpoint struct {
	*registry.Resource
	kindFrame
	verbs   map[string]bool
	subs    map[string]*subEndpoint
	warning string // that the kind is deprecated, "" if it is not
}

// subEndpoint is a subresource.
type subEndpoint struct {
	registry.SubresourceInfo
	kindFrame
	verbs map[string]bool
}

// review is a resource that is only posted: it answers a question or passes something on.
type review struct {
	resource   schema.GroupVersionResource
	kind       schema.GroupVersionKind
	singular   string
	namespaced bool
	newObj     func() runtime.Object
}

// deprecation is the warning that comes with every answer about a kind, "" if there is none.
func (s *Server) deprecation(object runtime.Object) string {
	major, minor, err := deprecation.MajorMinor(s.opts.Version)
	if err != nil || !deprecation.IsDeprecated(object, major, minor) {
		return ""
	}
	return deprecation.WarningMessage(object)
}

// route builds the tables that requests are looked up in.
func (s *Server) route() {
	s.endpoints = map[schema.GroupVersionResource]*endpoint{}
	s.versions = map[schema.GroupVersion]bool{}
	s.reviews = map[schema.GroupVersionResource]*review{}
	for _, res := range s.resources() {
		ep := &endpoint{Resource: res, kindFrame: newKindFrame(res.Kind, res.ListKind), verbs: set(res.Verbs), subs: map[string]*subEndpoint{}}
		ep.table, ep.warning = res.Table(), s.deprecation(res.New())
		for _, info := range res.Subresources {
			ep.subs[info.Name] = &subEndpoint{SubresourceInfo: info, kindFrame: newKindFrame(info.Kind, info.Kind.Kind+"List"), verbs: set(info.Verbs)}
		}
		s.endpoints[res.Info.Resource] = ep
		s.versions[res.Info.Resource.GroupVersion()] = true
	}
	for _, r := range s.allReviews() {
		s.reviews[r.resource] = r
		s.versions[r.resource.GroupVersion()] = true
	}
}

// resources are those that clients see.
func (s *Server) resources() []*registry.Resource {
	return slices.DeleteFunc(slices.Clone(s.opts.Registry.Resources()), func(r *registry.Resource) bool { return r.Hidden })
}

func set(names []string) map[string]bool {
	out := make(map[string]bool, len(names))
	for _, name := range names {
		out[name] = true
	}
	return out
}

// allReviews lists what is only posted, in the order of discovery.
func (s *Server) allReviews() []*review {
	authn, authz := authenticationv1.SchemeGroupVersion, authorizationv1.SchemeGroupVersion
	one := func(gv schema.GroupVersion, plural, kind, singular string, namespaced bool, newObj func() runtime.Object) *review {
		return &review{gv.WithResource(plural), gv.WithKind(kind), singular, namespaced, newObj}
	}
	all := []*review{
		one(corev1.SchemeGroupVersion, "bindings", "Binding", "binding", true, func() runtime.Object { return &corev1.Binding{} }),
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
	return slices.DeleteFunc(all, func(r *review) bool { return !s.opts.Registry.Serves(r.resource) })
}

// answer is what a posted object leads to.
func (s *Server) answer(q *query, object runtime.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	binding, ok := object.(*corev1.Binding)
	if !ok {
		return s.reviewer.Review(q.context(), q.user, q.path.Namespace, object)
	}
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(q.path.Namespace, binding); err != nil {
		return nil, err
	}
	pods := s.opts.Registry.Resource(corev1.SchemeGroupVersion.WithResource("pods"))
	return pods.CreateSub(q.context(), q.path.Namespace, binding.Name, "binding", binding, opts)
}
