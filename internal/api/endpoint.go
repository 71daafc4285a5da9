package api

import (
	"slices"
	"sync"

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
	class   endpointClass
	verbs   map[string]bool
	subs    map[string]*subEndpoint
	warning string // that the kind or version is deprecated, "" if it is not
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

// routes are the tables that requests are looked up in, as of one time. They are replaced as a whole
// when the registry serves something else.
type routes struct {
	changed   <-chan struct{} // of the registry, which it stands for
	resources []*registry.Resource
	endpoints map[schema.GroupVersionResource]*endpoint
	reviews   map[schema.GroupVersionResource]*review
	posted    []*review                    // the reviews in the order of discovery
	versions  map[schema.GroupVersion]bool // that are served
	measured  []string                     // custom metrics of Services
	discovery func() *discovery            // made when first asked for
}

// routes returns the current tables.
func (s *Server) routes() *routes {
	if current := s.current.Load(); current != nil && current.changed == s.opts.Registry.Changed() {
		return current
	}
	s.routing.Lock()
	defer s.routing.Unlock()
	old := s.current.Load()
	if old != nil && old.changed == s.opts.Registry.Changed() {
		return old
	}
	current := s.newRoutes(old)
	s.current.Store(current)
	return current
}

// newRoutes builds the tables; what did not change since old is taken from it.
func (s *Server) newRoutes(old *routes) *routes {
	r := &routes{
		changed: s.opts.Registry.Changed(), endpoints: map[schema.GroupVersionResource]*endpoint{},
		versions: map[schema.GroupVersion]bool{}, reviews: map[schema.GroupVersionResource]*review{},
	}
	r.resources = s.resources() // after changed: at worst they are newer, and the tables are built again
	for _, res := range r.resources {
		name := res.Info.Resource
		r.versions[name.GroupVersion()] = true
		if old != nil && old.endpoints[name] != nil && old.endpoints[name].Resource == res {
			r.endpoints[name] = old.endpoints[name]
			continue
		}
		ep := &endpoint{Resource: res, kindFrame: newKindFrame(res.Kind, res.ListKind), verbs: set(res.Verbs), subs: map[string]*subEndpoint{}}
		ep.class, ep.table, ep.warning = classObject, res.Table(), res.Warning
		if res.Custom() != nil {
			ep.class = classCustom
			// While its definition goes, discovery lists fewer verbs; finalizers must be removed all the same.
			ep.verbs = set([]string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"})
		} else {
			ep.warning = s.deprecation(res.New())
		}
		for _, info := range res.Subresources {
			ep.subs[info.Name] = &subEndpoint{SubresourceInfo: info, kindFrame: newKindFrame(info.Kind, info.Kind.Kind+"List"), verbs: set(info.Verbs)}
		}
		r.endpoints[name] = ep
	}
	r.posted = s.allReviews()
	for _, review := range r.posted {
		r.reviews[review.resource] = review
		r.versions[review.resource.GroupVersion()] = true
	}
	if s.opts.CustomMetrics != nil {
		r.measured = s.opts.CustomMetrics.Names()
		r.versions[customMetricsVersion()] = true
	}
	r.discovery = sync.OnceValue(func() *discovery { return newDiscovery(r) })
	return r
}

// builtinVersions are the group versions that have built-in resources.
func (r *routes) builtinVersions() map[schema.GroupVersion]bool {
	out := map[schema.GroupVersion]bool{}
	for name, ep := range r.endpoints {
		if ep.class == classObject {
			out[name.GroupVersion()] = true
		}
	}
	for name := range r.reviews {
		out[name.GroupVersion()] = true
	}
	return out
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
