package aggregate

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration/v1/helper"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
)

// Dial opens a connection.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Options tells New how to find and reach other API servers.
type Options struct {
	Reader client.Reader // Services and EndpointSlices; required
	// Certificate is the front proxy's, by which other servers know that the headers are ours; nil: none is shown.
	Certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	Dial        Dial          // default: plain TCP
	Refresh     time.Duration // how old what servers say about themselves may become, default 1m
	Log         *slog.Logger  // default: discards
}

// Aggregator knows which group versions other servers have. It is safe for concurrent use.
type Aggregator struct {
	opts  Options
	table atomic.Pointer[table]

	mu       sync.Mutex // guards the fields below
	services map[string]*apiregistrationv1.APIService
	learned  map[string]learned // what the server of an APIService says, by its name
	dirty    chan struct{}      // something is to be learned; has room for one
	stale    map[string]bool    // APIServices to learn about
}

// table is what Aggregator knows at one time.
type table struct {
	targets  map[schema.GroupVersion]*Target
	versions []Version
}

// New checks opts and returns an Aggregator that knows of nothing; call Run.
func New(opts Options) (*Aggregator, error) {
	if opts.Reader == nil {
		return nil, errors.New("aggregate: Options.Reader is nil")
	}
	if opts.Dial == nil {
		opts.Dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	opts.Refresh = cmp.Or(opts.Refresh, time.Minute)
	if opts.Refresh < 0 {
		return nil, errors.New("aggregate: Options.Refresh is negative")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	a := &Aggregator{
		opts: opts, services: map[string]*apiregistrationv1.APIService{}, learned: map[string]learned{},
		dirty: make(chan struct{}, 1), stale: map[string]bool{},
	}
	a.table.Store(&table{})
	return a, nil
}

// Target returns the server of a group version, nil if it is this one's. It costs one map access at most.
func (a *Aggregator) Target(gv schema.GroupVersion) *Target { return a.table.Load().targets[gv] }

// Version is a group version that has an APIService.
type Version struct {
	schema.GroupVersion
	GroupPriority, Priority int32                            // larger ones come first in discovery
	Remote                  bool                             // another server has it
	Discovery               apidiscovery.APIVersionDiscovery // what a remote one serves
}

// Versions lists the group versions that have an APIService, in the order of discovery. The result is shared:
// read-only; it is another slice when something changed.
func (a *Aggregator) Versions() []Version { return a.table.Load().versions }

// HasRemote reports whether another server has anything.
func (a *Aggregator) HasRemote() bool { return len(a.table.Load().targets) > 0 }

// Run follows the APIServices, and what their servers say about themselves, until ctx ends. Ready is called when the
// APIServices there are are known.
func (a *Aggregator) Run(ctx context.Context, source informer.Source, ready func()) error {
	stop, err := informer.Subscribe(ctx, source, informer.Subscription{Object: &apiregistrationv1.APIService{}, OnEvent: func(old, current client.Object) {
		if current == nil {
			a.remove(old.GetName())
		} else if service, ok := current.(*apiregistrationv1.APIService); ok {
			a.set(service)
		}
	}})
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer stop()
	ready()
	a.learnLoop(ctx)
	return nil
}

// set takes over an APIService as it is now.
func (a *Aggregator) set(service *apiregistrationv1.APIService) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.services[service.Name]
	a.services[service.Name] = service
	if old == nil || !reflect.DeepEqual(old.Spec, service.Spec) || available(old) != available(service) {
		a.rebuildLocked()
		if service.Spec.Service != nil {
			a.learnLocked(service.Name)
		}
	}
}

func (a *Aggregator) remove(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.services, name)
	delete(a.learned, name)
	a.rebuildLocked()
}

// available reports whether requests may be passed on.
func available(service *apiregistrationv1.APIService) bool {
	return helper.IsAPIServiceConditionTrue(service, apiregistrationv1.Available)
}

// rebuildLocked makes the table anew. Targets that are as they were keep their connections. a.mu is held.
func (a *Aggregator) rebuildLocked() {
	before, next := a.table.Load(), &table{targets: map[schema.GroupVersion]*Target{}}
	for _, service := range a.services {
		gv := schema.GroupVersion{Group: service.Spec.Group, Version: service.Spec.Version}
		remote := service.Spec.Service != nil && gv.Group != "" // the core group is not for others
		seen := Version{GroupVersion: gv, GroupPriority: service.Spec.GroupPriorityMinimum, Priority: service.Spec.VersionPriority, Remote: remote}
		if remote {
			said, known := a.learned[service.Name]
			said.stale = said.stale || !known
			seen.Discovery = said.discoveryOf(gv.Version)
		}
		next.versions = append(next.versions, seen)
		if !remote {
			continue
		}
		if was := before.targets[gv]; was != nil && reflect.DeepEqual(was.spec, service.Spec) {
			next.targets[gv] = was.with(available(service))
			continue
		}
		next.targets[gv] = newTarget(&a.opts, service)
	}
	Sort(next.versions)
	a.table.Store(next)
	for gv, was := range before.targets {
		if now := next.targets[gv]; now == nil || now.transport != was.transport {
			was.close()
		}
	}
}

// Sort puts versions into the order of discovery: groups by the largest priority of their versions, then by name;
// versions by their priority, then as Kubernetes orders version names.
func Sort(versions []Version) {
	largest := map[string]int32{}
	for _, v := range versions {
		largest[v.Group] = max(largest[v.Group], v.GroupPriority)
	}
	slices.SortFunc(versions, func(x, y Version) int {
		if x.Group != y.Group {
			return cmp.Or(cmp.Compare(largest[y.Group], largest[x.Group]), cmp.Compare(x.Group, y.Group))
		}
		return cmp.Or(cmp.Compare(y.Priority, x.Priority), version.CompareKubeAwareVersionStrings(y.Version, x.Version))
	})
}
