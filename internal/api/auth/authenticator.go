package auth

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/websocket"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authentication/user"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// DefaultIssuer is the issuer of service account tokens when Options names none: what kubeadm sets.
const DefaultIssuer = "https://kubernetes.default.svc.cluster.local"

// Options tells New what credentials to believe and where the objects are that they refer to.
type Options struct {
	ClientCAs  func() *x509.CertPool // who may sign client certificates; a new pool takes effect at once; nil: no certificates
	SigningKey crypto.Signer         // *ecdsa.PrivateKey or *rsa.PrivateKey that signs service account tokens; required
	VerifyKeys []crypto.PublicKey    // further keys whose tokens are accepted, for rotation
	Issuers    []string              // the first signs, tokens of all are accepted; default {DefaultIssuer}
	Audiences  []string              // audiences of this API server; default Issuers
	JWKSURI    string                // where others find the keys; default below the first issuer
	Reader     client.Reader         // service accounts, pods, secrets and nodes that tokens are bound to; required
	Patcher    Patcher               // notes when tokens of Secrets are used; nil: nobody notes it
	CacheSize  int                   // verified credentials kept of each sort, default 4096
	FrontProxy *FrontProxy           // nil: none is believed
	// RemovedNode says when a node was removed from the cluster: its certificates from before are refused. nil: none was.
	RemovedNode func(ctx context.Context, name string) (time.Time, bool)

	BootstrapTokens bool                           // accept the tokens that machines join with
	Tokens          []authenticator.Token          // asked in this order about tokens that are not ours, such as OIDC's
	Anonymous       *apiserver.AnonymousAuthConfig // who needs no credentials; nil: every path is open to system:anonymous
}

// nodeUserPrefix starts the user name of a node.
const nodeUserPrefix = "system:node:"

// jwksPath is where the API serves the keys of its tokens.
const jwksPath = "/openid/v1/jwks"

// ErrInvalidCredentials is returned for credentials that were given and are not good.
var ErrInvalidCredentials = errors.New("invalid credentials")

// Authenticator says who sends a request. It is safe for concurrent use.
type Authenticator struct {
	opts       Options
	accounts   *tokenAuthenticator
	others     []authenticator.Token
	webSocket  *websocket.ProtocolAuthenticator
	frontProxy authenticator.Request // nil: none is believed
	issuer     *tokenIssuer
	anonymous  authenticator.Request // nil: nobody may do without credentials

	certMu   sync.Mutex // guards the fields below
	certPool *x509.CertPool
	certs    map[[sha256.Size]byte]*verifiedCert
}

// verifiedCert is the user a certificate chain stands for while now is inside its validity.
type verifiedCert struct {
	response            *authenticator.Response
	notBefore, notAfter time.Time
}

// New checks opts and returns an Authenticator.
func New(opts Options) (*Authenticator, error) {
	if opts.SigningKey == nil {
		return nil, errors.New("auth: Options.SigningKey is nil")
	}
	if opts.Reader == nil {
		return nil, errors.New("auth: Options.Reader is nil")
	}
	if len(opts.Issuers) == 0 {
		opts.Issuers = []string{DefaultIssuer}
	}
	if len(opts.Audiences) == 0 {
		opts.Audiences = opts.Issuers
	}
	if opts.JWKSURI == "" {
		opts.JWKSURI = strings.TrimSuffix(opts.Issuers[0], "/") + jwksPath
	}
	if opts.CacheSize == 0 {
		opts.CacheSize = 4096
	}
	if opts.CacheSize < 1 {
		return nil, fmt.Errorf("auth: CacheSize is %d, want at least 1", opts.CacheSize)
	}
	accounts, err := newTokenAuthenticator(opts)
	if err != nil {
		return nil, err
	}
	issuer, err := newTokenIssuer(opts)
	if err != nil {
		return nil, err
	}
	a := &Authenticator{
		opts: opts, accounts: accounts, issuer: issuer, anonymous: newAnonymous(opts.Anonymous),
		certs: map[[sha256.Size]byte]*verifiedCert{}, frontProxy: newFrontProxy(opts.FrontProxy),
	}
	a.webSocket = websocket.NewProtocolAuthenticator(a)
	if opts.BootstrapTokens {
		a.others = append(a.others, authenticator.WrapAudienceAgnosticToken(opts.Audiences, newBootstrapTokens(opts.Reader)))
	}
	a.others = append(a.others, opts.Tokens...)
	return a, nil
}

// AuthenticateRequest returns the user of req. Without credentials it is system:anonymous and ok is true; with
// credentials that are no good err is not nil (the answer is 401). The response is shared: read-only.
func (a *Authenticator) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	if req.RemoteAddr == "" { // what a socket brings has an address
		if response, ok := req.Context().Value(inProcess{}).(*authenticator.Response); ok {
			return response, true, nil
		}
	}
	if response := a.fromFrontProxy(req); response != nil {
		return response, true, nil
	}
	var certErr error // counts only if nothing else names the user
	if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 && a.opts.ClientCAs != nil {
		response, err := a.authenticateCert(req.Context(), req.TLS.PeerCertificates)
		if response != nil && err == nil {
			return response, true, nil
		}
		certErr = err
	}
	if token := bearerToken(req.Header); token != "" {
		response, ok, err := a.AuthenticateToken(req.Context(), token)
		if err == nil && !ok {
			err = ErrInvalidCredentials
		}
		return response, ok, err
	}
	if req.Header.Get("Sec-Websocket-Protocol") != "" {
		if response, ok, err := a.webSocket.AuthenticateRequest(req); ok || err != nil {
			return response, ok, err
		}
	}
	if certErr != nil {
		return nil, false, certErr
	}
	if a.anonymous == nil {
		return nil, false, nil
	}
	return a.anonymous.AuthenticateRequest(req)
}

type inProcess struct{}

// InProcess has a request without a socket, and so without RemoteAddr, come from u: a component of this process.
func InProcess(ctx context.Context, u user.Info) context.Context {
	return context.WithValue(ctx, inProcess{}, &authenticator.Response{User: u})
}

// AuthenticateToken checks a bearer token: first whether it is a service account's, then what else is accepted. As
// upstream's union does, it goes on after an error, because a token may look like another's.
func (a *Authenticator) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	response, ok, err := a.accounts.AuthenticateToken(ctx, token)
	if ok && err == nil || len(a.others) == 0 {
		return response, ok, err
	}
	errs := []error{err}
	for _, other := range a.others {
		response, ok, err := other.AuthenticateToken(ctx, token)
		if err == nil && ok {
			return withAuthenticated(response), true, nil
		}
		errs = append(errs, err)
	}
	return nil, false, errors.Join(errs...)
}

// newAnonymous authenticates requests without credentials where config says so.
func newAnonymous(config *apiserver.AnonymousAuthConfig) authenticator.Request {
	if config == nil { // the answer is always the same one
		nobody := &authenticator.Response{User: &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}}
		return authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) { return nobody, true, nil })
	}
	if !config.Enabled {
		return nil
	}
	return anonymous.NewAuthenticator(config.Conditions)
}

// bearerToken returns the token of the Authorization header or "".
func bearerToken(header http.Header) string {
	value := strings.TrimSpace(header.Get("Authorization"))
	scheme, token, found := strings.Cut(value, " ")
	if !found || !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// authenticateCert verifies a chain (leaf first) against the current pool. Both results nil: the certificate names nobody.
func (a *Authenticator) authenticateCert(ctx context.Context, chain []*x509.Certificate) (*authenticator.Response, error) {
	pool := a.opts.ClientCAs()
	if pool == nil {
		return nil, nil
	}
	key, now := sha256.Sum256(chain[0].Raw), time.Now()
	a.certMu.Lock()
	if pool != a.certPool { // another CA: nothing that was verified counts any more
		a.certPool = pool
		clear(a.certs)
	}
	known := a.certs[key]
	a.certMu.Unlock()
	if known != nil && !now.Before(known.notBefore) && !now.After(known.notAfter) {
		return known.response, a.checkNode(ctx, known)
	}
	fresh, err := verifyCert(chain, pool, now)
	if fresh == nil || err != nil {
		return nil, err
	}
	a.certMu.Lock()
	defer a.certMu.Unlock()
	if pool == a.certPool {
		evictOne(a.certs, a.opts.CacheSize)
		a.certs[key] = fresh
	}
	return fresh.response, a.checkNode(ctx, fresh)
}

// issuedAfter is how much later than its certificate's beginning a node got it: what all of our signers leave for clocks.
const issuedAfter = 5 * time.Minute

// checkNode refuses the certificate of a node that was removed after it got it.
func (a *Authenticator) checkNode(ctx context.Context, cert *verifiedCert) error {
	name, isNode := strings.CutPrefix(cert.response.User.GetName(), nodeUserPrefix)
	if !isNode || a.opts.RemovedNode == nil {
		return nil
	}
	if at, removed := a.opts.RemovedNode(ctx, name); removed && !cert.notBefore.Add(issuedAfter).After(at) {
		return fmt.Errorf("node %s was removed from the cluster: %w", name, ErrInvalidCredentials)
	}
	return nil
}

// verifyCert checks the signatures up to pool and reads the user out of the leaf.
func verifyCert(chain []*x509.Certificate, pool *x509.CertPool, now time.Time) (*verifiedCert, error) {
	opts := x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if len(chain) > 1 {
		opts.Intermediates = x509.NewCertPool()
		for _, intermediate := range chain[1:] {
			opts.Intermediates.AddCert(intermediate)
		}
	}
	verified, err := chain[0].Verify(opts)
	if err != nil {
		return nil, fmt.Errorf("verifying certificate SN=%d failed: %w", chain[0].SerialNumber, err)
	}
	for _, path := range verified {
		response, ok, err := x509request.CommonNameUserConversion(path)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		out := &verifiedCert{response: withAuthenticated(response), notBefore: path[0].NotBefore, notAfter: path[0].NotAfter}
		for _, cert := range path[1:] {
			if cert.NotAfter.Before(out.notAfter) {
				out.notAfter = cert.NotAfter
			}
		}
		return out, nil
	}
	return nil, nil
}

// withAuthenticated returns response with group system:authenticated added.
func withAuthenticated(response *authenticator.Response) *authenticator.Response {
	info := response.User
	if slices.Contains(info.GetGroups(), user.AllAuthenticated) {
		return response
	}
	return &authenticator.Response{Audiences: response.Audiences, User: &user.DefaultInfo{
		Name: info.GetName(), UID: info.GetUID(), Extra: info.GetExtra(),
		Groups: append(slices.Clone(info.GetGroups()), user.AllAuthenticated),
	}}
}

// evictOne makes room for one more entry in a cache of at most size entries. Any entry goes: map order is random.
func evictOne[K comparable, V any](cache map[K]V, size int) {
	if len(cache) < size {
		return
	}
	for key := range cache {
		delete(cache, key)
		return
	}
}
