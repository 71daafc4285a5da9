package pki

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// checkEvery bounds the sleep of Run: timers stand still while a machine is suspended.
const checkEvery = time.Hour

// retryAfter is the wait after a renewal that did not work, for example on a full disk.
const retryAfter = time.Minute

// Names is what certificates are made out to.
type Names struct {
	NodeName      string
	ClusterDomain string
	ServiceIP     netip.Addr   // of default/kubernetes
	Addresses     []netip.Addr // at which this node is reached: the node's own, the listener's, the pod bridge's
	ExtraSANs     []string     // DNS names and addresses for the API's certificate
}

// Kubeconfig is a file for kubectl that is kept up with a client certificate.
type Kubeconfig struct {
	Path   string
	Server string // https://127.0.0.1:6443
	Client Leaf   // Admin or SuperAdmin
}

// Options says where the files are and for whom. All but Kubeconfigs are required.
type Options struct {
	Dir         string // DATA/pki
	Names       Names
	Kubeconfigs []Kubeconfig
	Logger      *slog.Logger
}

// Authority holds the keys and certificates of one data dir. It is safe for use by many goroutines.
type Authority struct {
	dir    string
	logger *slog.Logger
	wake   chan struct{} // capacity 1: names changed

	mu          sync.RWMutex // guards the fields below
	names       Names
	kubeconfigs []Kubeconfig
	cas         map[CA]*pair
	leaves      map[Leaf]*tls.Certificate
	saKey       crypto.Signer
}

// pair is an authority's certificate and key.
type pair struct {
	cert *x509.Certificate
	pem  []byte
	key  crypto.Signer
	pool *x509.CertPool
}

// New checks opts. It touches no file; call Ensure.
func New(opts Options) (*Authority, error) {
	switch {
	case opts.Dir == "" || opts.Logger == nil:
		return nil, errors.New("pki: Dir and Logger are required")
	case opts.Names.NodeName == "" || opts.Names.ClusterDomain == "" || !opts.Names.ServiceIP.IsValid():
		return nil, errors.New("pki: Names needs NodeName, ClusterDomain and ServiceIP")
	}
	for _, k := range opts.Kubeconfigs {
		if k.Path == "" || k.Server == "" || (k.Client != Admin && k.Client != SuperAdmin) {
			return nil, fmt.Errorf("pki: Kubeconfig %+v is not complete", k)
		}
	}
	return &Authority{
		dir: opts.Dir, logger: opts.Logger, wake: make(chan struct{}, 1),
		names: opts.Names, kubeconfigs: opts.Kubeconfigs,
		cas: map[CA]*pair{}, leaves: map[Leaf]*tls.Certificate{},
	}, nil
}

// Ensure makes what is missing, replaces leaves that are stale, and writes the kubeconfigs. After
// it the accessors work. It may be called again at any time.
func (a *Authority) Ensure(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, spec := range caSpecs() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("prepare certificates: %w", err)
		}
		if err := a.ensureCALocked(spec); err != nil {
			return err
		}
	}
	if err := a.ensureServiceAccountKeyLocked(); err != nil {
		return err
	}
	for _, spec := range leafSpecs(a.names) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("prepare certificates: %w", err)
		}
		if err := a.ensureLeafLocked(spec); err != nil {
			return err
		}
	}
	for _, k := range a.kubeconfigs {
		if err := a.writeKubeconfigLocked(k); err != nil {
			return err
		}
	}
	return nil
}

// Run renews until ctx ends; call it after Ensure. A renewal that fails is logged and tried again:
// the certificates in use are good for months yet.
func (a *Authority) Run(ctx context.Context) error {
	for {
		wait := a.untilNext(time.Now())
		if wait <= 0 {
			if err := a.Ensure(ctx); err != nil && ctx.Err() == nil {
				a.logger.Error("certificates are not renewed", "err", err)
				wait = retryAfter
			} else {
				wait = a.untilNext(time.Now())
			}
		}
		timer := time.NewTimer(max(wait, time.Second))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-a.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// SetNames changes what the certificates are made out to, for example after this machine got
// another address, and reissues those that no longer fit.
func (a *Authority) SetNames(ctx context.Context, change func(*Names)) error {
	a.mu.Lock()
	names := a.names
	names.Addresses, names.ExtraSANs = slices.Clone(names.Addresses), slices.Clone(names.ExtraSANs)
	change(&names)
	a.names = names
	a.mu.Unlock()
	err := a.Ensure(ctx)
	select {
	case a.wake <- struct{}{}:
	default: // Run has yet to see the change before
	}
	return err
}

// untilNext is how long to sleep before the next renewal is due, at most checkEvery.
func (a *Authority) untilNext(now time.Time) time.Duration {
	a.mu.RLock()
	defer a.mu.RUnlock()
	wait := checkEvery
	for _, leaf := range a.leaves {
		wait = min(wait, renewAt(leaf.Leaf).Sub(now))
	}
	return wait
}

func (a *Authority) path(name, ending string) string {
	return filepath.Join(a.dir, filepath.FromSlash(name)+ending)
}
