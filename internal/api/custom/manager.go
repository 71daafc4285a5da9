package custom

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/util/workqueue"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// Options tunes a Manager. Registry is required.
type Options struct {
	Registry *registry.Registry
	// Services finds the services of conversion webhooks; default: by their cluster IPs.
	Services webhook.ServiceResolver
	Logger   *slog.Logger // default: discards
}

// Manager serves what CustomResourceDefinitions define and keeps their conditions. Make one with
// New; call Load before requests are answered, then Run.
type Manager struct {
	opts    Options
	convert converters
	queue   workqueue.TypedRateLimitingInterface[string]
	served  map[string]state // by name; of the one worker

	mu        sync.Mutex // guards the field below
	finishing map[string]bool
}

// state is what decides how a definition is served.
type state struct {
	uid         types.UID
	generation  int64
	names       apiextensionsv1.CustomResourceDefinitionNames
	terminating bool
}

// fieldManager is the name under which upstream's API server writes conditions.
const fieldManager = "kube-apiserver"

// New checks opts and returns a Manager that has started nothing.
func New(opts Options) (*Manager, error) {
	if opts.Registry == nil {
		return nil, errors.New("custom: Registry is nil")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Services == nil {
		opts.Services = clusterIPs{opts.Registry}
	}
	convert, err := newConverters(opts.Services)
	if err != nil {
		return nil, err
	}
	return &Manager{
		opts: opts, convert: convert, served: make(map[string]state), finishing: make(map[string]bool),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](5*time.Millisecond, time.Minute)),
	}, nil
}

// definitions is the resource of the definitions themselves.
func (m *Manager) definitions() *registry.Resource {
	return m.opts.Registry.Resource(apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions"))
}

// all lists the definitions there are.
func (m *Manager) all(ctx context.Context) ([]*apiextensionsv1.CustomResourceDefinition, error) {
	list, err := m.definitions().List(ctx, "", registry.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing custom resource definitions: %w", err)
	}
	out := make([]*apiextensionsv1.CustomResourceDefinition, 0, len(list.Entries))
	for _, e := range list.Entries {
		if crd, ok := e.Object.(*apiextensionsv1.CustomResourceDefinition); ok {
			out = append(out, crd)
		}
	}
	return out, nil
}

// read returns a definition; it is shared and must not be changed.
func (m *Manager) read(ctx context.Context, name string) (*apiextensionsv1.CustomResourceDefinition, error) {
	entry, err := m.definitions().Get(ctx, "", name, "0")
	if err != nil {
		return nil, err
	}
	crd, ok := entry.Object.(*apiextensionsv1.CustomResourceDefinition)
	if !ok {
		return nil, fmt.Errorf("custom resource definition %s is a %T", name, entry.Object)
	}
	return crd, nil
}

// Load serves the definitions that are there from before the start.
func (m *Manager) Load(ctx context.Context) error {
	ctx = asServer(ctx)
	crds, err := m.all(ctx)
	if err != nil {
		return err
	}
	var kinds []*registry.CustomKind
	for _, crd := range crds {
		if !accepted(crd) {
			continue
		}
		kind, err := m.kindOf(crd)
		if err != nil {
			m.opts.Logger.LogAttrs(ctx, slog.LevelWarn, "custom resource is not served", slog.String("name", crd.Name), slog.Any("error", err))
			continue
		}
		kinds = append(kinds, kind)
		m.served[crd.Name] = stateOf(crd)
	}
	return m.opts.Registry.SetCustom(ctx, kinds...)
}

func accepted(crd *apiextensionsv1.CustomResourceDefinition) bool {
	return apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.NamesAccepted) || apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established)
}

func stateOf(crd *apiextensionsv1.CustomResourceDefinition) state {
	return state{crd.UID, crd.Generation, crd.Status.AcceptedNames, apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Terminating)}
}

func (m *Manager) kindOf(crd *apiextensionsv1.CustomResourceDefinition) (*registry.CustomKind, error) {
	name, uid := crd.Name, crd.UID
	return newKind(crd, func() (*apiextensionsv1.CustomResourceDefinition, error) {
		crd, err := m.read(context.Background(), name) // from memory
		if err == nil && crd.UID != uid {
			err = apierrors.NewNotFound(m.definitions().Resource.GroupResource(), name)
		}
		return crd, err
	}, m.convert)
}

func asServer(ctx context.Context) context.Context {
	return genericapirequest.WithUser(ctx, &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup}})
}

// Run follows the definitions until ctx ends. It may be called once.
func (m *Manager) Run(ctx context.Context) error {
	ctx = asServer(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer m.queue.ShutDown()
	group.Go(func() {
		for {
			name, quit := m.queue.Get()
			if quit {
				return
			}
			err := m.reconcile(ctx, name, &group)
			switch {
			case err == nil:
				m.queue.Forget(name)
			case ctx.Err() == nil:
				m.opts.Logger.LogAttrs(ctx, slog.LevelWarn, "custom resource definition", slog.String("name", name), slog.Any("error", err))
				m.queue.AddRateLimited(name)
			}
			m.queue.Done(name)
		}
	})
	for ctx.Err() == nil {
		if err := m.follow(ctx); err != nil && !store.IsEnded(err) && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// follow asks for a look at each definition that changes.
func (m *Manager) follow(ctx context.Context) error {
	w, err := m.definitions().Watch(ctx, "", registry.ListOptions{})
	if err != nil {
		return fmt.Errorf("watching custom resource definitions: %w", err)
	}
	defer w.Close()
	for {
		events, _, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			m.queue.Add(e.Entry.Key)
		}
	}
}

// reconcile looks at one definition. Only one runs at a time: it also settles who has which name.
func (m *Manager) reconcile(ctx context.Context, name string, group *sync.WaitGroup) error {
	crd, err := m.read(ctx, name)
	if apierrors.IsNotFound(err) {
		return m.forget(ctx, name)
	}
	if err != nil {
		return err
	}
	others, err := m.all(ctx)
	if err != nil {
		return err
	}
	next := withStatus(crd)
	namesChanged := settleNames(next, others)
	establish(next)
	setNonStructural(next)
	setApproval(next)
	if accepted(next) {
		if err := m.serve(ctx, next); err != nil {
			return err
		}
	}
	if !reflect.DeepEqual(next.Status, crd.Status) {
		if err := m.updateStatus(ctx, next); err != nil {
			return err
		}
		if namesChanged {
			return m.lookAtOthers(ctx, name) // a name may be free now
		}
	}
	if crd.DeletionTimestamp != nil && apihelpers.CRDHasFinalizer(crd, apiextensionsv1.CustomResourceCleanupFinalizer) {
		m.finish(ctx, name, group)
	}
	return nil
}

// withStatus is a copy of crd whose status may be changed. The spec, with its schemas, is shared.
func withStatus(crd *apiextensionsv1.CustomResourceDefinition) *apiextensionsv1.CustomResourceDefinition {
	next := *crd
	crd.Status.DeepCopyInto(&next.Status)
	return &next
}

// serve gives the registry what crd defines, if that changed.
func (m *Manager) serve(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) error {
	want := stateOf(crd)
	if reflect.DeepEqual(m.served[crd.Name], want) {
		return nil
	}
	kind, err := m.kindOf(crd)
	if err != nil {
		return err
	}
	if was, ok := m.served[crd.Name]; ok && was.uid != want.uid { // another definition of the same name
		if err := m.opts.Registry.RemoveCustom(ctx, crd.Name); err != nil {
			return err
		}
	}
	if err := m.opts.Registry.SetCustom(ctx, kind); err != nil {
		return err
	}
	m.served[crd.Name] = want
	return nil
}

// forget stops serving a definition that is gone.
func (m *Manager) forget(ctx context.Context, name string) error {
	if _, ok := m.served[name]; ok {
		if err := m.opts.Registry.RemoveCustom(ctx, name); err != nil {
			return err
		}
		delete(m.served, name)
	}
	return m.lookAtOthers(ctx, name)
}

// lookAtOthers looks again at the definitions of the same group.
func (m *Manager) lookAtOthers(ctx context.Context, name string) error {
	crds, err := m.all(ctx)
	if err != nil {
		return err
	}
	group := groupOf(name)
	for _, crd := range crds {
		if crd.Name != name && crd.Spec.Group == group {
			m.queue.Add(crd.Name)
		}
	}
	return nil
}

// updateStatus writes the conditions. What changed meanwhile is looked at again anyway.
func (m *Manager) updateStatus(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) error {
	_, _, err := m.definitions().Update(ctx, "", crd.Name, "status", crd, fieldManager, &metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
