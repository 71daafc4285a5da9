package registry

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	upstream "k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/capabilities"

	"gantry.dev/gantry/internal/store"
)

// Admission decides whether, and as what, a change may be stored. Objects in the attributes
// are of internal types. Admit may change them, Validate must not.
type Admission interface {
	Admit(ctx context.Context, a admission.Attributes) error
	Validate(ctx context.Context, a admission.Attributes) error
}

// RoleGuard checks that whoever writes a role or binding does not gain rights by it.
type RoleGuard interface {
	CheckRole(ctx context.Context, obj, old runtime.Object) error
	CheckBinding(ctx context.Context, obj, old runtime.Object) error
}

// IssueToken makes a token for a service account.
type IssueToken func(ctx context.Context, account *corev1.ServiceAccount, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)

// Options tunes a Registry. ServiceCIDR is required.
type Options struct {
	Logger      *slog.Logger          // default: discards
	Sealers     Sealers               // encrypt at rest; nil stores everything in the clear
	RoleGuard   RoleGuard             // nil lets everyone write roles
	Authorizer  authorizer.Authorizer // asked by strategies about what an object refers to; nil allows everything
	ServiceCIDR netip.Prefix          // cluster IPs are taken from here
	NodePorts   PortRange             // default 30000 to 32767

	RuntimeConfig RuntimeConfig // which versions are served; default the stable ones
	ServeMetrics  bool          // serve metrics.k8s.io, with Wiring.Metrics
}

// PortRange is an inclusive range of ports.
type PortRange struct{ First, Last int }

// Registry serves every kind. Make one with New; its store must be running before verbs are
// called.
type Registry struct {
	opts       Options
	store      *store.Store
	admission  Admission
	issueToken IssueToken
	metrics    Metrics
	defs       []*definition
	index      atomic.Pointer[index]
	customMu   sync.Mutex             // held while custom kinds change
	custom     map[string]*CustomKind // by name
	schemas    typeSchemas
	serving    *serving
	alloc      *serviceAllocator
}

// New checks opts and returns a Registry together with the kinds that its store must keep;
// give them to store.New, and the store to Use.
func New(opts Options) (*Registry, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Authorizer == nil {
		opts.Authorizer = authorizerfactory.NewAlwaysAllowAuthorizer()
	}
	if opts.NodePorts == (PortRange{}) {
		opts.NodePorts = PortRange{30000, 32767}
	}
	if !opts.ServiceCIDR.IsValid() {
		return nil, errors.New("registry: ServiceCIDR is empty")
	}
	capabilities.Setup(true, 0) // privileged pods are a matter of pod security levels, as with kubeadm's --allow-privileged
	r := &Registry{
		opts:   opts,
		custom: make(map[string]*CustomKind),
	}
	limitCopies()
	r.alloc = newServiceAllocator(r)
	var err error
	if r.serving, err = compileRuntimeConfig(opts.RuntimeConfig); err != nil {
		return nil, err
	}
	r.defs = r.enabled()
	r.seal(r.defs...)
	resources := make([]*Resource, 0, len(r.defs))
	for _, d := range r.defs {
		resources = append(resources, r.newResource(d))
	}
	r.index.Store(newIndex(resources))
	return r, nil
}

// newResource makes what serves d.
func (r *Registry) newResource(d *definition) *Resource {
	res := &Resource{Info: d.info, registry: r, def: d, store: r.store, subs: make(map[string]*subresource), managers: make(map[string]*fieldManager)}
	manager := func(sub string, strategy any) *fieldManager {
		if d.custom != nil {
			return &fieldManager{upstream: sync.OnceValues(func() (*upstream.FieldManager, error) { return d.custom.FieldManager(sub) })}
		}
		return r.newFieldManager(d.info.Kind, sub, strategy)
	}
	res.managers[""] = manager("", d.strategy)
	for _, sub := range d.subs {
		res.subs[sub.info.Name] = sub
		switch {
		case sub.strategy != nil:
			res.managers[sub.info.Name] = manager(sub.info.Name, sub.strategy)
		case sub.fromParent != nil:
			res.managers[sub.info.Name] = r.newFieldManager(sub.info.Kind, sub.info.Name, nil)
		}
	}
	return res
}

// index is everything that is served at one time. It does not change.
type index struct {
	resources []*Resource
	byName    map[schema.GroupVersionResource]*Resource
	byKind    map[schema.GroupVersionKind]*Resource
	changed   chan struct{} // closed when there is another index
}

func newIndex(resources []*Resource) *index {
	i := &index{
		resources: resources, changed: make(chan struct{}),
		byName: make(map[schema.GroupVersionResource]*Resource, len(resources)),
		byKind: make(map[schema.GroupVersionKind]*Resource, len(resources)),
	}
	for _, res := range resources {
		i.byName[res.Resource], i.byKind[res.Kind] = res, res
	}
	return i
}

// Kinds are the tables that the store must have.
func (r *Registry) Kinds() []*store.Kind {
	kinds := []*store.Kind{r.sealedRanges()}
	for _, d := range r.defs {
		if d.info.Primary && d.computed == nil {
			kinds = append(kinds, d.stored)
		}
	}
	return kinds
}

// Wiring is what the registry needs and what is itself made from the registry.
type Wiring struct {
	Store      *store.Store // keeps Kinds; required
	Admission  Admission    // nil admits everything
	IssueToken IssueToken   // nil refuses token requests
	Metrics    Metrics      // nil: metrics.k8s.io is unavailable
}

// Use completes the registry. It is called once, before any verb.
func (r *Registry) Use(w Wiring) {
	r.store, r.admission, r.issueToken, r.metrics = w.Store, w.Admission, w.IssueToken, w.Metrics
	for _, res := range r.Resources() {
		res.store = w.Store
	}
}

// Resources lists everything that is served, in the order of discovery.
func (r *Registry) Resources() []*Resource { return r.index.Load().resources }

// Changed is closed when something else is served than when it was called. Each change has a
// channel of its own.
func (r *Registry) Changed() <-chan struct{} { return r.index.Load().changed }

// Resource finds a resource by its name, nil if it is not served.
func (r *Registry) Resource(name schema.GroupVersionResource) *Resource {
	return r.index.Load().byName[name]
}

// ResourceOf finds the resource of a kind, nil if it is not served.
func (r *Registry) ResourceOf(kind schema.GroupVersionKind) *Resource {
	return r.index.Load().byKind[kind]
}

// Scheme knows the types, defaults and conversions of everything served.
func (r *Registry) Scheme() *runtime.Scheme { return legacyscheme.Scheme }

// Run removes objects whose time has passed, until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			for _, res := range r.Resources() {
				if res.def.expires != nil {
					res.removeExpired(ctx, time.Now())
				}
			}
		}
	}
}

// Warm builds what the first write would otherwise wait for.
func (r *Registry) Warm() error {
	_, _, err := r.schemas.get(r.defs)
	return err
}

func (r *Resource) removeExpired(ctx context.Context, now time.Time) {
	list, err := r.store.List(ctx, r.def.stored.Name, store.ListOptions{Filter: func(e *store.Entry) bool {
		return now.After(r.def.expires(e.Object))
	}})
	if err != nil {
		return
	}
	for _, e := range list.Entries {
		if _, err := r.store.Delete(ctx, r.def.stored.Name, e.Key, e.Rev); err != nil && ctx.Err() == nil {
			r.registry.opts.Logger.LogAttrs(ctx, slog.LevelDebug, "removing an expired object",
				slog.String("resource", r.def.stored.Name), slog.String("key", e.Key), slog.Any("error", err))
		}
	}
}
