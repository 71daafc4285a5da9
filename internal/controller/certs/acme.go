package certs

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/network/routes/compile"
)

// ACME is an authority that issues what everybody believes.
type ACME struct {
	Directory string // URL; empty: ACME is off
	Email     string // of the account; may be empty
	CAFile    string // PEM of who signs the directory's certificate; empty: the system's
	// Gateway is where this machine's gateway answers plain HTTP: a challenge is seen to be served
	// there before the authority is told to look.
	Gateway string
	// GatewayTLS is where it answers TLS, for tls-alpn-01, which is tried after http-01. Empty: it is not tried.
	GatewayTLS string
}

// shortLived is the profile of certificates for addresses (Let's Encrypt: "shortlived", 160 hours).
const shortLived = "shortlived"

// serveTimeout bounds the wait until the gateway serves a challenge.
const serveTimeout = 10 * time.Second

// acmeClient talks to the authority with the account's key. It is made at its first use.
func (c *Controller) acmeClient(ctx context.Context) (*acmez.Client, acme.Account, error) {
	c.acmeMu.Lock()
	defer c.acmeMu.Unlock()
	if c.acme != nil {
		return c.acme, c.account, nil
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute}
	if c.opts.ACME.CAFile != "" {
		data, err := os.ReadFile(c.opts.ACME.CAFile)
		pool := x509.NewCertPool()
		if err == nil && !pool.AppendCertsFromPEM(data) {
			err = errors.New("it holds no certificate")
		}
		if err != nil {
			return nil, acme.Account{}, fmt.Errorf("reading %s: %w", c.opts.ACME.CAFile, err)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	talk := &acmez.Client{
		Client: &acme.Client{Directory: c.opts.ACME.Directory, UserAgent: "gantry", Logger: c.log,
			HTTPClient: &http.Client{Transport: transport, Timeout: 30 * time.Second}},
	}
	account, err := c.acmeAccount(ctx, talk.Client)
	if err != nil {
		return nil, acme.Account{}, err
	}
	c.acme, c.account = talk, account
	return talk, account, nil
}

// accountSecret is one a directory.
func accountSecret(directory string) string {
	sum := sha256.Sum256([]byte(directory))
	return "acme-account-" + hex.EncodeToString(sum[:5])
}

// acmeAccount reads the account's key, or makes it, and registers it: an authority that knows the
// key answers with its account.
func (c *Controller) acmeAccount(ctx context.Context, talk *acme.Client) (acme.Account, error) {
	account := acme.Account{TermsOfServiceAgreed: true}
	if c.opts.ACME.Email != "" {
		account.Contact = []string{"mailto:" + c.opts.ACME.Email}
	}
	secret := &corev1.Secret{}
	key := client.ObjectKey{Namespace: compile.Namespace, Name: accountSecret(c.opts.ACME.Directory)}
	err := c.client.Get(ctx, key, secret)
	if apierrors.IsNotFound(err) {
		_, keyPEM, makeErr := keyPair()
		if makeErr != nil {
			return account, makeErr
		}
		secret = &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Annotations: map[string]string{AnnotationIssuer: c.opts.ACME.Directory}},
			Data:       map[string][]byte{corev1.TLSPrivateKeyKey: keyPEM},
		}
		err = c.client.Create(ctx, secret)
	}
	if err != nil {
		return account, fmt.Errorf("keeping the ACME account's key: %w", err)
	}
	block, _ := pem.Decode(secret.Data[corev1.TLSPrivateKeyKey])
	if block == nil {
		return account, fmt.Errorf("secret %s holds no key", key)
	}
	signer, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return account, fmt.Errorf("reading the key in Secret %s: %w", key, err)
	}
	account.PrivateKey = signer
	if account, err = talk.NewAccount(ctx, account); err != nil {
		return account, fmt.Errorf("registering at %s: %w", c.opts.ACME.Directory, err)
	}
	return account, nil
}

// issueACME gets a certificate for a host. replaced, which may be nil, is the one it renews.
func (c *Controller) issueACME(ctx context.Context, host string) (chain, keyPEM []byte, err error) {
	talk, account, err := c.acmeClient(ctx)
	if err != nil {
		return nil, nil, err
	}
	var key *ecdsa.PrivateKey
	if key, keyPEM, err = keyPair(); err != nil {
		return nil, nil, err
	}
	params, err := orderFor(account, key, host)
	if err != nil {
		return nil, nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		directory, err := talk.GetDirectory(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("reading the directory: %w", err)
		}
		if directory.Meta != nil {
			if _, ok := directory.Meta.Profiles[shortLived]; ok {
				params.Profile = shortLived
			}
		}
	}
	chains, err := c.obtain(ctx, talk, params)
	if err != nil {
		return nil, nil, fmt.Errorf("getting a certificate for %s: %w", host, err)
	}
	if len(chains) == 0 {
		return nil, nil, fmt.Errorf("getting a certificate for %s: the authority gave none", host)
	}
	return chains[0].ChainPEM, keyPEM, nil
}

// obtain tries one kind of challenge after the other. Which one acmez would take of several is left to chance.
func (c *Controller) obtain(ctx context.Context, talk *acmez.Client, params acmez.OrderParameters) ([]acme.Certificate, error) {
	by := func(kind string, s acmez.Solver) ([]acme.Certificate, error) {
		one := &acmez.Client{Client: talk.Client, ChallengeSolvers: map[string]acmez.Solver{kind: s}}
		chains, err := one.ObtainCertificate(ctx, params)
		if err != nil {
			return nil, fmt.Errorf("by %s: %w", kind, err)
		}
		return chains, nil
	}
	chains, err := by(acme.ChallengeTypeHTTP01, &httpSolver{c})
	if err == nil || c.opts.ACME.GatewayTLS == "" || ctx.Err() != nil || limited(err) {
		return chains, err
	}
	chains, tlsErr := by(acme.ChallengeTypeTLSALPN01, &tlsSolver{c})
	if tlsErr != nil {
		return nil, errors.Join(err, tlsErr)
	}
	return chains, nil
}

func orderFor(account acme.Account, key crypto.Signer, host string) (acmez.OrderParameters, error) {
	csr, err := acmez.NewCSR(key, []string{host})
	if err != nil {
		return acmez.OrderParameters{}, fmt.Errorf("asking for a certificate for %s: %w", host, err)
	}
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return params, fmt.Errorf("asking for a certificate for %s: %w", host, err)
	}
	return params, nil
}

// limited reports whether the authority says that it was asked too often.
func limited(err error) bool {
	var problem acme.Problem
	return errors.As(err, &problem) && problem.Type == acme.ProblemTypeRateLimited
}

// addressesOf resolves a name.
func addressesOf(ctx context.Context, host string) ([]netip.Addr, error) {
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	var dnsErr *net.DNSError
	if errors.As(err, &dnsErr) && dnsErr.IsNotFound {
		return nil, nil
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return slices.Compact(found), err
}
