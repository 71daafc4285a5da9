package webhook

import (
	"context"
	"errors"
	"fmt"
	"sync"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/generic"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/mutating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/validating"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gantry.dev/gantry/internal/api/admission/view"
)

// Options says what the webhooks need. Both are required.
type Options struct {
	View       *view.View
	Authorizer authorizer.Authorizer // for match conditions
}

// Hooks are the configured webhooks. Make them with New; safe for concurrent use.
type Hooks struct {
	opts       Options
	mutating   *view.Table
	validating *view.Table
	mutate     func() (*mutating.Plugin, error)
	validate   func() (*validating.Plugin, error)
}

// New checks opts and returns Hooks that have built nothing yet.
func New(opts Options) (*Hooks, error) {
	switch {
	case opts.View == nil:
		return nil, errors.New("webhook: View is nil")
	case opts.Authorizer == nil:
		return nil, errors.New("webhook: Authorizer is nil")
	}
	h := &Hooks{opts: opts, mutating: opts.View.Table(mutatingConfigurations()), validating: opts.View.Table(validatingConfigurations())}
	h.mutate = sync.OnceValues(h.newMutating)
	h.validate = sync.OnceValues(h.newValidating)
	return h, nil
}

func mutatingConfigurations() schema.GroupVersionResource {
	return admissionregistrationv1.SchemeGroupVersion.WithResource("mutatingwebhookconfigurations")
}

func validatingConfigurations() schema.GroupVersionResource {
	return admissionregistrationv1.SchemeGroupVersion.WithResource("validatingwebhookconfigurations")
}

func (h *Hooks) newMutating() (*mutating.Plugin, error) {
	p, err := mutating.NewMutatingWebhook(nil)
	if err != nil {
		return nil, fmt.Errorf("preparing mutating webhooks: %w", err)
	}
	h.wire(p.Webhook)
	return p, p.ValidateInitialization()
}

func (h *Hooks) newValidating() (*validating.Plugin, error) {
	p, err := validating.NewValidatingAdmissionWebhook(nil)
	if err != nil {
		return nil, fmt.Errorf("preparing validating webhooks: %w", err)
	}
	h.wire(p.Webhook)
	return p, p.ValidateInitialization()
}

func (h *Hooks) wire(w *generic.Webhook) {
	w.SetServiceResolver(resolver{h.opts.View})
	w.SetExternalKubeClientSet(h.opts.View.Clientset())
	w.SetExternalKubeInformerFactory(h.opts.View.Informers())
	w.SetAuthorizer(h.opts.Authorizer)
}

// Mutates reports whether there is any mutating webhook.
func (h *Hooks) Mutates() bool { return !h.mutating.Empty() }

// Validates reports whether there is any validating webhook.
func (h *Hooks) Validates() bool { return !h.validating.Empty() }

// Admit asks the mutating webhooks.
func (h *Hooks) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if h.mutating.Empty() {
		return nil
	}
	p, err := h.mutate()
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	h.opts.View.Refresh(mutatingConfigurations())
	return p.Admit(ctx, a, o)
}

// Validate asks the validating webhooks.
func (h *Hooks) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if h.validating.Empty() {
		return nil
	}
	p, err := h.validate()
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	h.opts.View.Refresh(validatingConfigurations())
	return p.Validate(ctx, a, o)
}
