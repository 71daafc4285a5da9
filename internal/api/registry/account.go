package registry

import (
	"context"
	"errors"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/authentication"
	"k8s.io/kubernetes/pkg/apis/authentication/validation"

	"gantry.dev/gantry/internal/store"
)

// tokenSubresource issues tokens for a service account.
func tokenSubresource(reg *Registry) *subresource {
	return &subresource{
		info:   SubresourceInfo{Name: "token", Kind: authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"), Verbs: []string{"create"}},
		newObj: func() runtime.Object { return &authenticationv1.TokenRequest{} },
		create: func(ctx context.Context, r *Resource, namespace, name string, in runtime.Object, _ *metav1.CreateOptions) (runtime.Object, error) {
			request, ok := in.(*authenticationv1.TokenRequest)
			if !ok {
				return nil, apierrors.NewBadRequest(fmt.Sprintf("not a TokenRequest: %T", in))
			}
			if reg.issueToken == nil {
				return nil, apierrors.NewMethodNotSupported(r.Resource.GroupResource(), "create")
			}
			legacyscheme.Scheme.Default(request)
			var internal authentication.TokenRequest
			if err := legacyscheme.Scheme.Convert(request, &internal, nil); err != nil {
				return nil, fmt.Errorf("converting TokenRequest: %w", err)
			}
			if errs := validation.ValidateTokenRequest(&internal); len(errs) > 0 {
				return nil, apierrors.NewInvalid(schema.GroupKind{Group: request.GroupVersionKind().Group, Kind: "TokenRequest"}, name, errs)
			}
			entry, err := r.Get(ctx, namespace, name, "")
			if err != nil {
				return nil, err
			}
			return reg.issueToken(ctx, entry.Object.(*corev1.ServiceAccount), request)
		},
	}
}

func (r *Registry) guardRole(ctx context.Context, obj, old runtime.Object) error {
	if r.opts.RoleGuard == nil {
		return nil
	}
	return r.opts.RoleGuard.CheckRole(ctx, obj, old)
}

func (r *Registry) guardBinding(ctx context.Context, obj, old runtime.Object) error {
	if r.opts.RoleGuard == nil {
		return nil
	}
	return r.opts.RoleGuard.CheckBinding(ctx, obj, old)
}

func isLostRace(err error) bool {
	var conflict *store.ConflictError
	return errors.As(err, &conflict) && conflict.Current != nil
}

func internalVersion(kind schema.GroupVersionKind) schema.GroupVersion {
	return schema.GroupVersion{Group: kind.Group, Version: runtime.APIVersionInternal}
}
