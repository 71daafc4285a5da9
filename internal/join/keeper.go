package join

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"

	"gantry.dev/gantry/internal/durable"
	"gantry.dev/gantry/internal/pki"
)

// Files in the keeper's folder. A certificate and its key are one file, so that they are replaced in one step.
const (
	fileCA      = "ca.crt"
	fileClient  = "kubelet-client.pem"
	fileServing = "kubelet.pem"
)

// Waits between two attempts to get a certificate.
const (
	retryFirst = 200 * time.Millisecond
	retryMost  = time.Minute
	checkEvery = time.Hour // timers stand still while a machine is suspended
)

// Signer signs requests for certificates; API is one.
type Signer interface {
	Sign(ctx context.Context, r Request) ([]byte, error)
}

// KeeperOptions says whose certificates are kept where. All but Seconds and Renewed are required.
type KeeperOptions struct {
	Dir       string // DATA/pki
	NodeName  string
	Addresses []netip.Addr // of the node, in the certificate that it serves with
	Logger    *slog.Logger
	Seconds   int32  // how long certificates should live; 0 leaves it to the cluster
	Renewed   func() // called when there is another client certificate; may be nil
}

// Keeper keeps the certificates of a node whose cluster's authority is elsewhere: one that says who it is, and one that it
// serves with. Both are renewed at two thirds of their life. It is safe for use by many goroutines.
type Keeper struct {
	opts   KeeperOptions
	served chan struct{} // closed when there is a serving certificate
	once   sync.Once

	mu      sync.RWMutex // guards the fields below
	cluster *Cluster
	client  *tls.Certificate
	serving *tls.Certificate
}

// NewKeeper checks opts. It reads nothing; call Load or Join.
func NewKeeper(opts KeeperOptions) (*Keeper, error) {
	if opts.Dir == "" || opts.NodeName == "" || opts.Logger == nil || len(opts.Addresses) == 0 {
		return nil, errors.New("join: Dir, NodeName, Addresses and Logger are required")
	}
	return &Keeper{opts: opts, served: make(chan struct{})}, nil
}

// Load reads what Join, or Run, has written.
func (k *Keeper) Load() error {
	text, err := os.ReadFile(filepath.Join(k.opts.Dir, fileCA))
	if err != nil {
		return fmt.Errorf("reading the cluster's authority: %w", err)
	}
	ca, err := parseCA(text)
	if err != nil {
		return fmt.Errorf("reading the cluster's authority: %w", err)
	}
	client, err := k.read(fileClient)
	if err != nil {
		return fmt.Errorf("reading this node's certificate: %w", err)
	}
	serving, err := k.read(fileServing)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.opts.Logger.Warn("the certificate that this node serves with cannot be used and is made anew", "error", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cluster, k.client = &Cluster{CA: ca, CAPEM: text}, client
	if serving != nil && k.fits(serving.Leaf) {
		k.serving = serving
		k.once.Do(func() { close(k.served) })
	}
	return nil
}

// Join gets the node's first certificate from a signer that believes a token, and writes all down.
func (k *Keeper) Join(ctx context.Context, cluster *Cluster, signer Signer) error {
	if err := os.MkdirAll(k.opts.Dir, 0o700); err != nil {
		return fmt.Errorf("making the folder of certificates: %w", err)
	}
	client, text, err := k.ask(ctx, signer, true)
	if err != nil {
		return err
	}
	if _, err := client.Leaf.Verify(x509.VerifyOptions{Roots: cluster.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("checking this node's certificate: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(k.opts.Dir, fileCA), cluster.CAPEM, 0o600); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(k.opts.Dir, fileClient), text, 0o600); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cluster, k.client = cluster, client
	return nil
}

// Run gets the certificate to serve with and renews both until ctx ends. An attempt that fails is logged and repeated.
func (k *Keeper) Run(ctx context.Context, signer Signer) error {
	delay := retryFirst
	for ctx.Err() == nil {
		wait := min(k.untilDue(time.Now()), checkEvery)
		if wait <= 0 {
			if err := k.renew(ctx, signer); err != nil && ctx.Err() == nil {
				if delay > 2*time.Second {
					k.opts.Logger.Warn("a certificate of this node is not renewed yet", "error", err)
				}
				wait, delay = delay, min(2*delay, retryMost)
			} else {
				wait, delay = 0, retryFirst
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// untilDue is when the next certificate is to be renewed; 0 or less is now.
func (k *Keeper) untilDue(now time.Time) time.Duration {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.serving == nil {
		return 0
	}
	return min(dueAt(k.client.Leaf).Sub(now), dueAt(k.serving.Leaf).Sub(now))
}

// dueAt is when two thirds of a certificate's life have passed.
func dueAt(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 3 * 2)
}

// renew replaces what is due: who the node is first, because the rest is asked for with that.
func (k *Keeper) renew(ctx context.Context, signer Signer) error {
	k.mu.RLock()
	client, serving, now := k.client, k.serving, time.Now()
	k.mu.RUnlock()
	if !now.Before(dueAt(client.Leaf)) {
		fresh, text, err := k.ask(ctx, signer, true)
		if err != nil {
			return err
		}
		if err := durable.WriteFile(filepath.Join(k.opts.Dir, fileClient), text, 0o600); err != nil {
			return err
		}
		k.mu.Lock()
		k.client = fresh
		k.mu.Unlock()
		if k.opts.Renewed != nil {
			k.opts.Renewed()
		}
	}
	if serving != nil && now.Before(dueAt(serving.Leaf)) {
		return nil
	}
	fresh, text, err := k.ask(ctx, signer, false)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(k.opts.Dir, fileServing), text, 0o600); err != nil {
		return err
	}
	k.mu.Lock()
	k.serving = fresh
	k.mu.Unlock()
	k.once.Do(func() { close(k.served) })
	return nil
}

// ask makes a key and gets a certificate for it; text is both, as they are kept.
func (k *Keeper) ask(ctx context.Context, signer Signer, client bool) (*tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: pki.NodeUserPrefix + k.opts.NodeName, Organization: []string{pki.GroupNodes}}}
	request := Request{
		Signer: certificatesv1.KubeAPIServerClientKubeletSignerName, Node: k.opts.NodeName, Seconds: k.opts.Seconds,
		Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
	}
	if !client {
		request.Signer, request.Usages[1] = certificatesv1.KubeletServingSignerName, certificatesv1.UsageServerAuth
		template.DNSNames, template.IPAddresses = []string{k.opts.NodeName}, k.addresses()
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, nil, fmt.Errorf("making a request for a certificate: %w", err)
	}
	request.CSR = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	signed, err := signer.Sign(ctx, request)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a key: %w", err)
	}
	text := slices.Concat(signed, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	cert, err := parsePair(text)
	return cert, text, err
}

func (k *Keeper) addresses() []net.IP {
	var out []net.IP
	for _, addr := range k.opts.Addresses {
		out = append(out, net.IP(addr.AsSlice()))
	}
	return out
}

// fits reports whether a serving certificate is for the addresses that the node has now.
func (k *Keeper) fits(cert *x509.Certificate) bool {
	for _, ip := range k.addresses() {
		if !slices.ContainsFunc(cert.IPAddresses, ip.Equal) {
			return false
		}
	}
	return time.Now().Before(cert.NotAfter)
}

func (k *Keeper) read(name string) (*tls.Certificate, error) {
	text, err := os.ReadFile(filepath.Join(k.opts.Dir, name))
	if err != nil {
		return nil, err
	}
	return parsePair(text)
}

// parsePair reads a certificate and its key out of one PEM text.
func parsePair(text []byte) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("reading a certificate and its key: %w", err)
	}
	if _, ok := cert.PrivateKey.(crypto.Signer); !ok || cert.Leaf == nil {
		return nil, errors.New("reading a certificate and its key: the key cannot sign")
	}
	return &cert, nil
}

// Cluster is the cluster that Load or Join found.
func (k *Keeper) Cluster() *Cluster {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.cluster
}

// Served is closed when there is a certificate to serve with.
func (k *Keeper) Served() <-chan struct{} { return k.served }

// Expires is when the client certificate ends.
func (k *Keeper) Expires() time.Time {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.client.Leaf.NotAfter
}

// ClientTLS is for connections to the cluster's servers as this node, with the certificate as it is at each handshake.
func (k *Keeper) ClientTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: k.Cluster().Pool(), ServerName: ServerName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			k.mu.RLock()
			defer k.mu.RUnlock()
			return k.client, nil
		},
	}
}

// ServerTLS serves as this node and asks clients for a certificate of the cluster, without insisting on one.
func (k *Keeper) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: k.Cluster().Pool(),
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			k.mu.RLock()
			defer k.mu.RUnlock()
			if k.serving == nil {
				return nil, errors.New("the cluster has not signed the certificate of this node yet")
			}
			return k.serving, nil
		},
	}
}
