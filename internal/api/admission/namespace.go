package admission

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	api "k8s.io/kubernetes/pkg/apis/core"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// namespaceLifecycle keeps objects out of namespaces that are gone or going, and the
// system's namespaces in place (upstream: NamespaceLifecycle).
type namespaceLifecycle struct{ reader Reader }

// Admit implements Plugin.
func (p namespaceLifecycle) Admit(ctx context.Context, a admission.Attributes) error {
	if a.GetResource().GroupResource() == api.Resource("namespaces") {
		return p.protect(a)
	}
	if a.GetNamespace() == "" || a.GetOperation() == admission.Delete {
		return nil
	}
	var ns corev1.Namespace
	if err := p.reader.Get(ctx, ctrlclient.ObjectKey{Name: a.GetNamespace()}, &ns); err != nil {
		return err
	}
	if a.GetOperation() != admission.Create || ns.Status.Phase != corev1.NamespaceTerminating {
		return nil
	}
	err := admission.NewForbidden(a, fmt.Errorf("unable to create new content in namespace %s because it is being terminated", ns.Name))
	var status *apierrors.StatusError
	if errors.As(err, &status) {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{
			Type:    corev1.NamespaceTerminatingCause,
			Message: fmt.Sprintf("namespace %s is being terminated", ns.Name),
			Field:   "metadata.namespace",
		})
	}
	return err
}

func (namespaceLifecycle) protect(a admission.Attributes) error {
	switch a.GetName() {
	case metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic:
		if a.GetOperation() == admission.Delete {
			return apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(), errors.New("this namespace may not be deleted"))
		}
	}
	return nil
}

// Validate implements Plugin: the namespace may have begun to go while others admitted.
func (p namespaceLifecycle) Validate(ctx context.Context, a admission.Attributes) error {
	if a.GetOperation() != admission.Create {
		return nil
	}
	return p.Admit(ctx, a)
}
