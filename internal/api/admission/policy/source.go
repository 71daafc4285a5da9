package policy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission/plugin/policy/generic"
	"k8s.io/client-go/informers"

	"gantry.dev/gantry/internal/api/admission/view"
	"gantry.dev/gantry/internal/store"
)

// kind says how policies P with bindings B become evaluators E.
type kind[P, B store.Object, E any] struct {
	policy   func(P) generic.PolicyAccessor
	binding  func(B) generic.BindingAccessor
	compile  func(P) E
	policies schema.GroupVersionResource
	bindings schema.GroupVersionResource
}

// source keeps the policies that are bound, compiled.
type source[P, B store.Object, E any] struct {
	kind[P, B, E]
	view         *view.View
	policyTable  *view.Table
	bindingTable *view.Table
	current      atomic.Pointer[bound[P, B, E]]

	mu       sync.Mutex // guards the field below
	compiled map[string]compiled[E]
}

// bound is what was computed from the tables at the two versions. It is incomplete while a
// policy's parameters are of a kind that is not served.
type bound[P, B store.Object, E any] struct {
	policyVersion, bindingVersion int64
	hooks                         []generic.PolicyHook[P, B, E]
	incomplete                    bool
}

type compiled[E any] struct {
	revision  string
	evaluator E
}

func newSource[P, B store.Object, E any](v *view.View, k kind[P, B, E]) *source[P, B, E] {
	return &source[P, B, E]{
		kind: k, view: v, policyTable: v.Table(k.policies), bindingTable: v.Table(k.bindings),
		compiled: make(map[string]compiled[E]),
	}
}

// empty reports whether no policy can be in force.
func (s *source[P, B, E]) empty() bool { return s.bindingTable.Empty() || s.policyTable.Empty() }

// hooks are the policies that have bindings.
func (s *source[P, B, E]) hooks(ctx context.Context) []generic.PolicyHook[P, B, E] {
	if now := s.current.Load(); now != nil && s.fresh(now) {
		return now.hooks
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.current.Load(); now != nil && s.fresh(now) {
		return now.hooks
	}
	next := s.computeLocked(ctx)
	s.current.Store(next)
	return next.hooks
}

func (s *source[P, B, E]) fresh(b *bound[P, B, E]) bool {
	return !b.incomplete && b.policyVersion == s.policyTable.Version() && b.bindingVersion == s.bindingTable.Version()
}

// computeLocked joins policies and bindings. s.mu is held.
func (s *source[P, B, E]) computeLocked(ctx context.Context) *bound[P, B, E] {
	next := &bound[P, B, E]{policyVersion: s.policyTable.Version(), bindingVersion: s.bindingTable.Version()}
	byPolicy := make(map[string][]B)
	for _, item := range s.bindingTable.List(ctx) {
		if b, ok := item.(B); ok {
			name := s.binding(b).GetPolicyName().Name
			byPolicy[name] = append(byPolicy[name], b)
		}
	}
	for _, item := range s.policyTable.List(ctx) {
		p, ok := item.(P)
		if !ok || len(byPolicy[p.GetName()]) == 0 {
			continue
		}
		hook := generic.PolicyHook[P, B, E]{Policy: p, Bindings: byPolicy[p.GetName()], Evaluator: s.compileLocked(p)}
		if params := s.policy(p).GetParamKind(); params != nil {
			hook.ParamInformer, hook.ParamScope, hook.ConfigurationError = s.params(params)
			next.incomplete = next.incomplete || hook.ConfigurationError != nil
		}
		next.hooks = append(next.hooks, hook)
	}
	for name := range s.compiled {
		if len(byPolicy[name]) == 0 {
			delete(s.compiled, name)
		}
	}
	return next
}

func (s *source[P, B, E]) compileLocked(p P) E {
	known, ok := s.compiled[p.GetName()]
	if !ok || known.revision != p.GetResourceVersion() {
		known = compiled[E]{p.GetResourceVersion(), s.compile(p)}
		s.compiled[p.GetName()] = known
	}
	return known.evaluator
}

// params finds where the parameters of a policy are.
func (s *source[P, B, E]) params(of *admissionregistrationv1.ParamKind) (informers.GenericInformer, meta.RESTScope, error) {
	gv, err := schema.ParseGroupVersion(of.APIVersion)
	if err != nil {
		return nil, nil, fmt.Errorf("failed to parse paramKind APIVersion: %w", err)
	}
	kind := gv.WithKind(of.Kind)
	mapping, err := s.view.Mapping(kind)
	var unknown *meta.NoKindMatchError
	if errors.As(err, &unknown) {
		return nil, nil, fmt.Errorf("failed to find resource referenced by paramKind: '%v'", kind)
	}
	if err != nil {
		return nil, nil, err
	}
	return s.view.Generic(mapping.Resource), mapping.Scope, nil
}
