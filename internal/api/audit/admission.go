package audit

import (
	"context"

	"k8s.io/apiserver/pkg/admission"
)

// Admission decides about changes, as the registry asks for it.
type Admission interface {
	Admit(ctx context.Context, a admission.Attributes) error
	Validate(ctx context.Context, a admission.Attributes) error
}

// WithAnnotations writes what plugins of inner annotate into the event of the request.
func WithAnnotations(inner Admission) Admission {
	both, _ := admission.WithAudit(part{inner: inner}).(interface {
		admission.MutationInterface
		admission.ValidationInterface
	})
	return annotated{both.Admit, both.Validate}
}

// part is inner as upstream's decorator wants it.
type part struct{ inner Admission }

// Handles implements upstream's Interface.
func (part) Handles(admission.Operation) bool { return true }

// Admit implements upstream's MutationInterface.
func (p part) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	return p.inner.Admit(ctx, a)
}

// Validate implements upstream's ValidationInterface.
func (p part) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	return p.inner.Validate(ctx, a)
}

type annotated struct {
	admit, validate func(context.Context, admission.Attributes, admission.ObjectInterfaces) error
}

// Admit implements Admission.
func (d annotated) Admit(ctx context.Context, a admission.Attributes) error {
	return d.admit(ctx, a, nil)
}

// Validate implements Admission.
func (d annotated) Validate(ctx context.Context, a admission.Attributes) error {
	return d.validate(ctx, a, nil)
}
