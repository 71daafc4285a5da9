package admission

import (
	"context"
	"errors"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	api "k8s.io/kubernetes/pkg/apis/core"

	"gantry.dev/gantry/internal/api/admission/view"
)

// namespaceLifecycle keeps objects out of namespaces that are gone or going, and the
// system's namespaces in place (upstream: NamespaceLifecycle).
type namespaceLifecycle struct{ view *view.View }

// Handles implements admission.Interface.
func (namespaceLifecycle) Handles(op admission.Operation) bool { return op != admission.Connect }

// Admit implements admission.MutationInterface.
func (p namespaceLifecycle) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() == api.Resource("namespaces") {
		return p.protect(a)
	}
	if a.GetNamespace() == "" || a.GetOperation() == admission.Delete || a.GetResource().Group == authorizationv1.GroupName {
		return nil // a question about rights in a namespace tells nobody whether there is one
	}
	ns, err := p.view.Namespace(a.GetNamespace())
	if err != nil {
		return err
	}
	if a.GetOperation() != admission.Create || ns.Status.Phase != corev1.NamespaceTerminating {
		return nil
	}
	err = admission.NewForbidden(a, fmt.Errorf("unable to create new content in namespace %s because it is being terminated", ns.Name))
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

// Validate implements admission.ValidationInterface: the namespace may have begun to go while others admitted.
func (p namespaceLifecycle) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if a.GetOperation() != admission.Create {
		return nil
	}
	return p.Admit(ctx, a, o)
}
