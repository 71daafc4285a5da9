package gantrytest

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/util/retry"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/api"
	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/server"
	"gantry.dev/gantry/internal/store"
)

// Options tunes a Cluster. The zero value is an empty cluster.
type Options struct {
	Dir   string // of the data; default a new one
	Nodes int    // nodes that are Ready and run nothing
	Log   bool   // write the components' log to the test's

	ClientCAs  *x509.CertPool // who signs client certificates; default the authority behind Config
	RootCA     []byte         // PEM that workloads are told to believe; default no certificate
	FrontProxy *FrontProxy    // towards other API servers; default none

	SchedulerFile string // KubeSchedulerConfiguration; default kube-scheduler's defaults
	NoScheduler   bool   // pods are left to another scheduler, or to nobody

	WithoutControllers []string // accounts of controllers that the test runs itself, such as "job-controller"

	// Tolerations are those of pods that say nothing of nodes in trouble; nil is the default.
	Tolerations *config.Tolerations

	// Metrics is what metrics.k8s.io serves; nil leaves it out.
	Metrics registry.Metrics

	// CustomMetrics is what custom.metrics.k8s.io serves; nil leaves it out.
	CustomMetrics api.CustomMetrics

	// Gateway is what serves Ingress and the Gateway API; nil: nobody does.
	Gateway *config.Gateway

	// Name, Peer and Join make it a server among others, see server.ControlPlaneOptions; With is one of them, whose keys it has.
	Name string
	Peer *store.Peer
	Join []store.Member
	With *Cluster

	// Access is who is believed and what is recorded; nil is the default.
	Access *config.Access
}

// FrontProxy is how the cluster and other API servers believe each other about users.
type FrontProxy = server.FrontProxy

// Cluster is a running control plane.
type Cluster struct {
	ControlPlane *server.ControlPlane
	Client       ctrlclient.Client // may do everything
	Handler      http.Handler      // the API
	Dir          string

	t         testing.TB
	stop      func()
	authority *authority
	key       *ecdsa.PrivateKey
}

// encryptionFile holds the keys of Secrets, which servers of one cluster share.
const encryptionFile = "encryption.yaml"

// Start runs a control plane until the test ends or Stop is called, and waits until it is
// ready.
func Start(t testing.TB, opts Options) *Cluster {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	logger := slog.New(slog.DiscardHandler)
	if opts.Log {
		logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := newAuthority(t)
	if opts.With != nil {
		key, ca = opts.With.key, opts.With.authority
		keys, err := os.ReadFile(filepath.Join(opts.With.Dir, encryptionFile))
		if err == nil {
			err = os.WriteFile(filepath.Join(opts.Dir, encryptionFile), keys, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	pool := cmp.Or(opts.ClientCAs, ca.pool())
	rootCA := opts.RootCA
	if rootCA == nil {
		rootCA = []byte("test")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cp, err := server.NewControlPlane(ctx, server.ControlPlaneOptions{
		EtcdDir: filepath.Join(opts.Dir, "etcd"), EncryptionKey: filepath.Join(opts.Dir, encryptionFile), ImagesDir: filepath.Join(opts.Dir, "registry"),
		GitDir:    filepath.Join(opts.Dir, "git"),
		ClientCAs: func() *x509.CertPool { return pool }, SigningKey: key, RootCA: rootCA, FrontProxy: opts.FrontProxy, Access: opts.Access,
		Name: opts.Name, Peer: opts.Peer, Join: opts.Join,
		SchedulerFile: opts.SchedulerFile, NoScheduler: opts.NoScheduler, Tolerations: opts.Tolerations,
		WithoutControllers: opts.WithoutControllers,
		Gateway:            opts.Gateway,
		CustomMetrics:      opts.CustomMetrics,
		Metrics:            opts.Metrics,
		Authority:          func() (*x509.Certificate, crypto.Signer) { return ca.cert, ca.key },
		PodCIDR:            netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
		ClusterDomain: "cluster.local", Version: version.Info{Major: "1", Minor: "36", GitVersion: "v1.36.3"}, Logger: logger, Tick: 100 * time.Millisecond, NoFsync: true,
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cp.Run(ctx) }()
	c := &Cluster{ControlPlane: cp, Client: cp.Admin(), Handler: cp.Handler(), Dir: opts.Dir, t: t, authority: ca, key: key}
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("control plane: %v", err)
		}
	})
	t.Cleanup(c.stop)
	select {
	case <-cp.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatalf("control plane ended at its start: %v", err)
	}
	for i := range opts.Nodes {
		c.AddNode(fmt.Sprintf("node-%d", i))
	}
	return c
}

// Stop ends the control plane; the data stays. In a bubble it must be called before the
// bubble's end.
func (c *Cluster) Stop() { c.stop() }

// AddNode adds a node that is Ready, with 8 CPUs, 32 GiB and room for 110 pods.
func (c *Cluster) AddNode(name string) {
	c.t.Helper()
	resources := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi"),
		corev1.ResourcePods: resource.MustParse("110"), corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"),
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	if err := c.Client.Create(c.t.Context(), node); err != nil {
		c.t.Fatal(err)
	}
	c.changeNode(name, func(node *corev1.Node) error {
		node.Spec.Taints = nil
		return c.Client.Update(c.t.Context(), node)
	})
	c.changeNode(name, func(node *corev1.Node) error {
		node.Status.Capacity, node.Status.Allocatable = resources, resources
		node.Status.Conditions = []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
			LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
		}}
		return c.Client.Status().Update(c.t.Context(), node)
	})
}

// changeNode applies change to the node as it is, again when a controller was faster.
func (c *Cluster) changeNode(name string, change func(*corev1.Node) error) {
	c.t.Helper()
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		var node corev1.Node
		if err := c.Client.Get(c.t.Context(), ctrlclient.ObjectKey{Name: name}, &node); err != nil {
			return err
		}
		return change(node.DeepCopy())
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// Eventually polls until check is nil or a minute has passed, and then fails the test with
// its last error.
func (c *Cluster) Eventually(what string, check func() error) {
	c.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: %v", what, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}
