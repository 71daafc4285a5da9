package server

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/authentication/user"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/api"
	"gantry.dev/gantry/internal/api/admission"
	"gantry.dev/gantry/internal/api/aggregate"
	"gantry.dev/gantry/internal/api/auth"
	"gantry.dev/gantry/internal/api/custom"
	"gantry.dev/gantry/internal/api/fairness"
	"gantry.dev/gantry/internal/api/metrics"
	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/config"
	nodecontroller "gantry.dev/gantry/internal/controller/node"
	"gantry.dev/gantry/internal/events"
	"gantry.dev/gantry/internal/images"
	"gantry.dev/gantry/internal/platform/build"
	"gantry.dev/gantry/internal/scheduler"
	"gantry.dev/gantry/internal/store"
	"gantry.dev/gantry/internal/telemetry"
)

// ControlPlaneOptions says what a control plane serves. All but the last group are required.
type ControlPlaneOptions struct {
	Name          string // of this server among others: its node's; default "default"
	EtcdDir       string
	EncryptionKey string // path of the provider file for Secrets, made when missing
	ClientCAs     func() *x509.CertPool
	SigningKey    crypto.Signer // of service account tokens
	RootCA        []byte        // PEM, published as kube-root-ca.crt
	PodCIDR       netip.Prefix
	ServiceCIDR   netip.Prefix
	ClusterDomain string

	RuntimeConfig  map[string]string // API versions switched on and off, see registry.RuntimeConfig
	SchedulerFile  string            // KubeSchedulerConfiguration; empty for kube-scheduler's defaults
	Version        version.Info
	Endpoint       func() netip.AddrPort                     // where pods reach this server; nil: nowhere
	AgentTransport http.RoundTripper                         // to agents, with the API server's client certificate
	Metrics        registry.Metrics                          // what metrics.k8s.io serves; nil asks the agents, or nobody without AgentTransport
	FrontProxy     *FrontProxy                               // towards other API servers; nil: none believes us
	Authority      func() (*x509.Certificate, crypto.Signer) // signs CertificateSigningRequests; nil: nobody does
	ServedAs       func() *x509.Certificate                  // the API's own certificate, whose names no node gets; nil: none
	Access         *config.Access                            // who is believed and what is recorded; nil: kube-apiserver's defaults
	Tolerations    *config.Tolerations                       // of pods that say nothing; nil: config.DefaultTolerations
	Peer           *store.Peer                               // how other servers reach this one's store; nil: it stays alone
	Join           []store.Member                            // the servers to join, if EtcdDir has no data
	ServerTLS      func() *tls.Config                        // towards other servers, as one; nil: images stay on this one
	Bundle         func() (map[string]bundleFile, error)     // what further servers are given; nil: there can be none
	Logger         *slog.Logger
	Tick           time.Duration // of etcd, see store.Options
	NoFsync        bool
	NoScheduler    bool // leaves scheduling to another scheduler
	// WithoutControllers are the accounts of controllers that are left out: a test runs its own.
	WithoutControllers []string
	NoControllers      bool // runs none but the scheduler
	// Prepare is called when the API answers and before any controller runs; nil does nothing.
	Prepare        func(ctx context.Context, cp *ControlPlane) error
	CustomMetrics  api.CustomMetrics // what custom.metrics.k8s.io tells; nil asks the agents, if there is a gateway
	NoLoadBalancer bool              // leaves Services of type LoadBalancer to somebody else
	Gateway        *config.Gateway   // what Ingress and Gateway API are served by; nil: by nobody
	// ImagesDir is where the cluster's image registry keeps its content; "" has no registry.
	ImagesDir string
	// GitDir is where the repositories lie that people push to; "" takes no pushes.
	GitDir string
	// Backup says where the rest of a backup lies; nil: none are made.
	Backup *BackupOptions
}

// ControlPlane is store, API, controllers and scheduler: the part of a cluster that needs no
// machine. Make one with NewControlPlane, then call Run.
type ControlPlane struct {
	opts       ControlPlaneOptions
	store      *store.Store
	registry   *registry.Registry
	encryption *encryption
	access     *access
	authorizer *auth.Authorizer
	admission  *admission.Chain
	authn      *auth.Authenticator
	handler    *api.Server
	custom     *custom.Manager
	admin      *client.Client
	events     *events.Writer
	aggregator *aggregate.Aggregator
	fairness   *fairness.Dispatcher
	schedulers *scheduler.Config
	scheduler  atomic.Pointer[scheduler.Scheduler] // nil with NoScheduler, and while another server leads
	placing    *scheduler.Metrics                  // of the schedulers of all terms
	metrics    *prometheus.Registry
	images     *images.Store   // nil: no registry
	replica    *images.Replica // nil as images is
	servers    *otherServers
	collector  *images.Collector // set before controlled is closed; nil without registry
	heartbeats *nodecontroller.Heartbeats
	serving    chan struct{} // closed when requests are answered
	ready      chan struct{} // closed when the cluster's own objects are there
	controlled chan struct{} // closed when the controllers have begun
	// gatewayServed is closed when the Gateway API's kinds are served; never without a gateway.
	gatewayServed chan struct{}
	serveGateway  func() // closes it
	buildLogs     atomic.Pointer[build.Controller]
	platform      chan struct{} // closed when the kinds of gantry.dev are served

	mu      sync.Mutex // guards the fields below
	caches  []*client.Cache
	running func(*client.Cache) // set while Run runs
}

// NewControlPlane wires the components. Nothing is started.
func NewControlPlane(ctx context.Context, opts ControlPlaneOptions) (*ControlPlane, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	sealing, err := loadEncryption(ctx, opts.EncryptionKey, opts.Access == nil || opts.Access.EncryptionFile == "", opts.Logger)
	if err != nil {
		return nil, err
	}
	access, err := newAccess(opts.Access, &opts)
	if err != nil {
		return nil, err
	}
	placing, err := loadScheduler(opts.SchedulerFile)
	if err != nil {
		return nil, err
	}
	metrics, err := telemetry.NewRegistry()
	if err != nil {
		return nil, err
	}
	cp := &ControlPlane{
		schedulers: placing, metrics: metrics,
		opts: opts, authorizer: auth.NewAuthorizer(), encryption: sealing, access: access,
		serving: make(chan struct{}), ready: make(chan struct{}), controlled: make(chan struct{}), gatewayServed: make(chan struct{}),
		platform: make(chan struct{}),
	}
	cp.servers = &otherServers{cp: cp}
	if cp.heartbeats, err = nodecontroller.NewHeartbeats(nodecontroller.HeartbeatOptions{}); err != nil {
		return nil, err
	}
	cp.serveGateway = sync.OnceFunc(func() { close(cp.gatewayServed) })
	if cp.placing, err = scheduler.NewMetrics(metrics); err != nil {
		return nil, err
	}
	cp.registry, err = registry.New(registry.Options{
		Logger: opts.Logger, Sealers: sealing.sealer, RoleGuard: cp.authorizer, Authorizer: cp.authorizer, ServiceCIDR: opts.ServiceCIDR,
		RuntimeConfig: opts.RuntimeConfig, ServeMetrics: opts.Metrics != nil || opts.AgentTransport != nil,
	})
	if err != nil {
		return nil, err
	}
	cp.store, err = store.New(store.Options{
		Dir: opts.EtcdDir, Kinds: cp.registry.Kinds(), Logger: opts.Logger, Tick: opts.Tick, NoFsync: opts.NoFsync,
		Name: opts.Name, Peer: opts.Peer, Join: opts.Join,
	})
	if err != nil {
		return nil, err
	}
	cp.admin, err = client.New(client.Options{Registry: cp.registry, Manager: "gantry", User: &user.DefaultInfo{
		Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup},
	}})
	if err != nil {
		return nil, err
	}
	if err := cp.wireAPI(); err != nil {
		return nil, err
	}
	return cp, nil
}

// wireAPI makes what reads the cluster through the registry, and the HTTP layer over all.
func (cp *ControlPlane) wireAPI() error {
	var err error
	tolerations := cp.tolerations()
	cp.admission, err = admission.New(admission.Options{
		Registry: cp.registry, Authorizer: cp.authorizer, Client: cp.admin,
		NotReadySeconds: &tolerations.NotReady, UnreachableSeconds: &tolerations.Unreachable,
	})
	if err != nil {
		return err
	}
	endpoint := ""
	if cp.opts.Endpoint != nil {
		endpoint = cp.opts.Endpoint().String()
	}
	believed, err := cp.access.authentication(auth.Options{
		ClientCAs: cp.opts.ClientCAs, SigningKey: cp.opts.SigningKey, Reader: cp.admin, Patcher: cp.admin,
		FrontProxy: cp.opts.FrontProxy.believed(), RemovedNode: cp.removedNode,
	}, endpoint)
	if err != nil {
		return err
	}
	if cp.authn, err = auth.New(believed); err != nil {
		return err
	}
	usage, err := cp.usage()
	if err != nil {
		return err
	}
	cp.registry.Use(registry.Wiring{
		Metrics: usage,
		Store:   cp.store, Admission: cp.access.admission(cp.admission),
		IssueToken: func(ctx context.Context, account *corev1.ServiceAccount, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
			return cp.authn.IssueToken(ctx, account, request)
		},
	})
	if cp.custom, err = custom.New(custom.Options{Registry: cp.registry, Services: cp.admission.Services(), Logger: cp.opts.Logger}); err != nil {
		return err
	}
	if cp.events, err = events.New(cp.admin, events.Options{Log: cp.opts.Logger}); err != nil {
		return err
	}
	if cp.aggregator, err = cp.newAggregator(); err != nil {
		return err
	}
	if cp.fairness, err = fairness.New(fairness.Options{Log: cp.opts.Logger}); err != nil {
		return err
	}
	registry, err := cp.newImages()
	if err != nil {
		return err
	}
	measures, err := cp.customMetrics()
	if err != nil {
		return err
	}
	cp.handler, err = api.New(api.Options{
		Images: registry, Aggregator: cp.aggregator, Fairness: cp.fairness, Metrics: cp.metrics,
		CustomMetrics: measures,
		Registry:      cp.registry, Authenticator: cp.authn, Authorizer: cp.authorizer,
		Version: cp.opts.Version, Log: cp.opts.Logger, Audit: cp.access.log(), AgentTransport: cp.opts.AgentTransport,
		Checks: []api.Check{
			{Name: "etcd", Live: true, Probe: cp.store.Sync},
			{Name: "writable", Probe: func(context.Context) error { return cp.store.Trouble() }},
			{Name: "poststarthook/bootstrap", Probe: closed(cp.ready, "the cluster's own objects are being made")},
		},
	})
	return err
}

// tolerations are those of pods that say nothing.
func (cp *ControlPlane) tolerations() config.Tolerations {
	if cp.opts.Tolerations != nil {
		return *cp.opts.Tolerations
	}
	return config.DefaultTolerations()
}

// usage is what metrics.k8s.io tells.
func (cp *ControlPlane) usage() (registry.Metrics, error) {
	if cp.opts.Metrics != nil || cp.opts.AgentTransport == nil {
		return cp.opts.Metrics, nil
	}
	return metrics.New(metrics.Options{Reader: cp.admin, Transport: cp.opts.AgentTransport, Log: cp.opts.Logger})
}

// customMetrics is what custom.metrics.k8s.io tells: what the nodes' gateways count. nil: it is not served.
func (cp *ControlPlane) customMetrics() (api.CustomMetrics, error) {
	if cp.opts.CustomMetrics != nil || cp.opts.AgentTransport == nil || cp.opts.Gateway == nil {
		return cp.opts.CustomMetrics, nil
	}
	return metrics.NewGateways(metrics.Options{Reader: cp.admin, Transport: cp.opts.AgentTransport, Log: cp.opts.Logger})
}

func closed(ch <-chan struct{}, otherwise string) func(context.Context) error {
	return func(context.Context) error {
		select {
		case <-ch:
			return nil
		default:
			return errors.New(otherwise)
		}
	}
}

// Handler is the API.
func (cp *ControlPlane) Handler() http.Handler {
	return cp.withHeartbeats(cp.withBackup(cp.withServers(cp.withImageReplicas(cp.withGit(cp.withBuildLogs(cp.withAppLogs(cp.handler)))))))
}

// Serving is closed when requests are answered.
func (cp *ControlPlane) Serving() <-chan struct{} { return cp.serving }

// Ready is closed when the cluster's own namespaces, roles and services are there.
func (cp *ControlPlane) Ready() <-chan struct{} { return cp.ready }

// Controlled is closed when the controllers and the scheduler have begun, here or at the server that leads.
func (cp *ControlPlane) Controlled() <-chan struct{} { return cp.controlled }

// Revision is the revision of the last change that readers see.
func (cp *ControlPlane) Revision() int64 { return cp.store.Revision() }

// Why tells how each node does for a pod as the scheduler sees things now. It may be asked when Controlled is closed, of a
// server that leads: others know nothing.
func (cp *ControlPlane) Why(pod *corev1.Pod) scheduler.Diagnosis {
	if s := cp.scheduler.Load(); s != nil {
		return s.Why(pod)
	}
	return scheduler.Diagnosis{}
}

// Registry serves every kind, without asking who may.
func (cp *ControlPlane) Registry() *registry.Registry { return cp.registry }

// Admin is a client that may do everything.
func (cp *ControlPlane) Admin() ctrlclient.Client { return cp.admin }

// As gives a component its client and informers: who may list a kind may read its objects, as
// from an informer's copy. manager is the field manager of its writes.
func (cp *ControlPlane) As(u user.Info, manager string) (*client.Client, *client.Cache, error) {
	return cp.as(client.Options{User: u, Lister: u, Manager: manager}, nil)
}

// AsAdmin is As for one who may do everything.
func (cp *ControlPlane) AsAdmin(manager string) (*client.Client, *client.Cache, error) {
	return cp.As(&user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup}}, manager)
}

// as is As with a narrowed view of some kinds.
func (cp *ControlPlane) as(opts client.Options, narrowed map[schema.GroupVersionKind]fields.Selector) (*client.Client, *client.Cache, error) {
	c, informers, err := cp.newClient(opts, narrowed)
	if err != nil {
		return nil, nil, err
	}
	cp.mu.Lock()
	defer cp.mu.Unlock()
	if cp.running != nil {
		cp.running(informers)
	} else {
		cp.caches = append(cp.caches, informers)
	}
	return c, informers, nil
}

// newClient is as for informers that somebody else starts.
func (cp *ControlPlane) newClient(opts client.Options, narrowed map[schema.GroupVersionKind]fields.Selector) (*client.Client, *client.Cache, error) {
	opts.Registry, opts.Authorizer = cp.registry, cp.authorizer
	c, err := client.New(opts)
	if err != nil {
		return nil, nil, err
	}
	return c, client.NewCache(c, client.CacheOptions{Logger: cp.opts.Logger, Fields: narrowed}), nil
}

// controllerUser is the service account under which a controller works; upstream's bootstrap
// roles grant it what it needs.
func controllerUser(name string) user.Info {
	return &user.DefaultInfo{
		Name:   "system:serviceaccount:kube-system:" + name,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", user.AllAuthenticated},
	}
}

// Events gives a component its recorder.
func (cp *ControlPlane) Events(source events.Source) *events.Recorder {
	return cp.events.Recorder(source)
}

// Run serves until ctx ends and everything it started has returned.
func (cp *ControlPlane) Run(ctx context.Context) error {
	// The store outlives what writes to it, so that the last writes are not lost.
	storeCtx, stopStore := context.WithCancel(context.WithoutCancel(ctx))
	storeDone := make(chan error, 1)
	go func() { storeDone <- cp.store.Run(storeCtx) }()
	// The first write needs the schemas of all kinds: tens of milliseconds, while the store opens.
	warm := make(chan struct{})
	go func() {
		defer close(warm)
		if err := cp.registry.Warm(); err != nil {
			cp.opts.Logger.WarnContext(ctx, "building the schemas of kinds", "error", err)
		}
	}()
	defer func() { <-warm }()
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case <-cp.store.Ready():
	case err := <-storeDone:
		stopStore()
		return err
	}
	workDone := make(chan error, 1)
	go func() { workDone <- cp.work(work) }()
	var err error
	select {
	case err = <-workDone:
		stopStore()
		err = errors.Join(err, <-storeDone)
	case err = <-storeDone:
		cancel()
		stopStore()
		err = errors.Join(err, <-workDone)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// work runs everything over the open store.
func (cp *ControlPlane) work(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	failed := make(chan error, 64)
	run := func(name string, f func(context.Context) error) {
		group.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("%s: %w", name, err)
				cancel()
			}
		})
	}
	cp.mu.Lock()
	cp.running = func(c *client.Cache) { run("informers", c.Start) }
	for _, c := range cp.caches {
		cp.running(c)
	}
	cp.mu.Unlock()
	if err := cp.open(ctx, run); err != nil {
		if ctx.Err() != nil {
			return firstOf(failed)
		}
		return err
	}
	if cp.opts.Prepare != nil {
		if err := cp.opts.Prepare(ctx, cp); err != nil {
			return err
		}
	}
	if !cp.opts.NoControllers {
		if err := cp.startImages(run); err != nil {
			return err
		}
		run("platform's objects", cp.preparePlatform)
		run("gateway's kinds", cp.awaitGateway)
	}
	run("leading", func(ctx context.Context) error {
		return cp.lead(ctx, func() { close(cp.controlled) })
	})
	<-ctx.Done()
	return firstOf(failed)
}

func firstOf(failed <-chan error) error {
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// open makes the API answer: it learns the roles, then makes what every cluster has.
func (cp *ControlPlane) open(ctx context.Context, run func(string, func(context.Context) error)) error {
	informers := client.NewCache(cp.admin, client.CacheOptions{Logger: cp.opts.Logger})
	run("informers", informers.Start)
	run("registry", cp.registry.Run)
	run("admission", cp.admission.Run)
	run("events", cp.events.Run)
	cp.runAccess(run)
	aggregator, err := auth.NewAggregator(cp.admin, informers, cp.opts.Logger)
	if err != nil {
		return err
	}
	if err := errors.Join(cp.authorizer.Feed(ctx, informers), cp.authorizer.FollowVolumes(ctx, informers)); err != nil {
		return err
	}
	if err := cp.startFairness(run, informers); err != nil {
		return err
	}
	if err := cp.custom.Load(ctx); err != nil {
		return fmt.Errorf("serving custom resources: %w", err)
	}
	run("custom resources", cp.custom.Run)
	if err := cp.startAggregator(ctx, run, informers); err != nil {
		return err
	}
	close(cp.serving)
	err = persist(ctx, bootstrapLimit, func() error {
		err := cp.bootstrap(ctx)
		if err != nil && ctx.Err() == nil {
			cp.opts.Logger.Warn("the cluster's own objects are not all there yet", "error", err)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("making the cluster's own objects: %w", err)
	}
	run("role aggregation", aggregator.Run)
	close(cp.ready)
	return nil
}
