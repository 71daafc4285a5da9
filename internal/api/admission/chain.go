package admission

import (
	"context"
	"errors"

	"k8s.io/apiserver/pkg/admission"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// Reader is what plugins read the cluster with. What it returns is shared and read-only.
type Reader interface {
	Get(ctx context.Context, key ctrlclient.ObjectKey, obj ctrlclient.Object, opts ...ctrlclient.GetOption) error
}

// Plugin is one step. Admit may change the object of the attributes; Validate must not.
type Plugin interface {
	Admit(ctx context.Context, a admission.Attributes) error
	Validate(ctx context.Context, a admission.Attributes) error
}

// Chain runs plugins in order. It satisfies the registry's Admission.
type Chain struct{ plugins []Plugin }

// NewChain returns the chain that is on by default.
func NewChain(reader Reader) (*Chain, error) {
	if reader == nil {
		return nil, errors.New("admission: Reader is nil")
	}
	return &Chain{plugins: []Plugin{
		namespaceLifecycle{reader},
		serviceAccount{reader},
		nodeRestriction{reader},
		taintNodesByCondition{},
		defaultTolerationSeconds{},
		priority{},
	}}, nil
}

// Admit implements the registry's Admission.
func (c *Chain) Admit(ctx context.Context, a admission.Attributes) error {
	for _, p := range c.plugins {
		if err := p.Admit(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// Validate implements the registry's Admission.
func (c *Chain) Validate(ctx context.Context, a admission.Attributes) error {
	for _, p := range c.plugins {
		if err := p.Validate(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// mutatesOnly is embedded by plugins that have nothing to validate.
type mutatesOnly struct{}

// Validate implements Plugin.
func (mutatesOnly) Validate(context.Context, admission.Attributes) error { return nil }
