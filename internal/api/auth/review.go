package auth

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	authenticationinstall "k8s.io/kubernetes/pkg/apis/authentication/install"
	authorizationinstall "k8s.io/kubernetes/pkg/apis/authorization/install"
	"k8s.io/kubernetes/pkg/registry/authentication/selfsubjectreview"
	"k8s.io/kubernetes/pkg/registry/authentication/tokenreview"
	"k8s.io/kubernetes/pkg/registry/authorization/localsubjectaccessreview"
	"k8s.io/kubernetes/pkg/registry/authorization/selfsubjectaccessreview"
	"k8s.io/kubernetes/pkg/registry/authorization/selfsubjectrulesreview"
	"k8s.io/kubernetes/pkg/registry/authorization/subjectaccessreview"
)

// Reviewer answers the resources of authentication.k8s.io and authorization.k8s.io that are questions: nothing is
// stored, the answer is in the status. Upstream's own handlers answer; this turns versioned objects into theirs.
type Reviewer struct {
	scheme   *runtime.Scheme
	handlers map[string]rest.Creater // by kind
}

// NewReviewer returns a Reviewer that asks authn about tokens and authz about access.
func NewReviewer(authn *Authenticator, authz *Authorizer) *Reviewer {
	scheme := runtime.NewScheme()
	authenticationinstall.Install(scheme)
	authorizationinstall.Install(scheme)
	return &Reviewer{scheme: scheme, handlers: map[string]rest.Creater{
		"TokenReview":              tokenreview.NewREST(authn, authn.opts.Audiences),
		"SelfSubjectReview":        selfsubjectreview.NewREST(),
		"SubjectAccessReview":      subjectaccessreview.NewREST(authz),
		"LocalSubjectAccessReview": localsubjectaccessreview.NewREST(authz),
		"SelfSubjectAccessReview":  selfsubjectaccessreview.NewREST(authz),
		"SelfSubjectRulesReview":   selfsubjectrulesreview.NewREST(authz),
	}}
}

// Review answers object, a pointer to one of the six v1 kinds, asked by info; namespace is the URL's for
// LocalSubjectAccessReview and "" else. The answer is a new object; errors are API errors.
func (r *Reviewer) Review(ctx context.Context, info user.Info, namespace string, object runtime.Object) (runtime.Object, error) {
	kinds, _, err := r.scheme.ObjectKinds(object)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	handler := r.handlers[kinds[0].Kind]
	if handler == nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("%s is no review", kinds[0].Kind))
	}
	internal, err := r.scheme.UnsafeConvertToVersion(object.DeepCopyObject(), runtime.InternalGroupVersioner)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	ctx = request.WithNamespace(request.WithUser(ctx, info), namespace)
	answer, err := handler.Create(ctx, internal, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	group := authorizationv1.SchemeGroupVersion
	if kinds[0].Group == authenticationv1.GroupName {
		group = authenticationv1.SchemeGroupVersion
	}
	out, err := r.scheme.UnsafeConvertToVersion(answer, group)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return out, nil
}
