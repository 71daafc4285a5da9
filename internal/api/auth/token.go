package auth

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// deletionLeeway is how long after its deletion began an object still vouches for a token, as upstream's JWT leeway.
const deletionLeeway = time.Minute

// tokenAuthenticator checks service account tokens. A signature is verified once and remembered; expiry and the
// objects a token is bound to are looked at on every use, so that deleting a pod ends its token at once.
type tokenAuthenticator struct {
	full   authenticator.Token // upstream's check of everything
	reader tokenGetter
	auds   authenticator.Audiences
	size   int

	mu    sync.RWMutex // guards known
	known map[[sha256.Size]byte]*verifiedToken
}

// verifiedToken is what a token with a good signature says.
type verifiedToken struct {
	claims   tokenClaims
	response *authenticator.Response
}

// tokenClaims are the claims that can stop being true while a token is in use.
type tokenClaims struct {
	Expiry     int64 `json:"exp"`
	Kubernetes struct {
		Namespace      string    `json:"namespace"`
		ServiceAccount objectRef `json:"serviceaccount"`
		Pod            objectRef `json:"pod"`
		Secret         objectRef `json:"secret"`
		Node           objectRef `json:"node"`
	} `json:"kubernetes.io"`
}

type objectRef struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

func newTokenAuthenticator(opts Options) (*tokenAuthenticator, error) {
	getter, err := verifyKeys(opts)
	if err != nil {
		return nil, fmt.Errorf("auth: reading the service account keys: %w", err)
	}
	reader := tokenGetter{reader: opts.Reader}
	legacy, err := newLegacyTokens(opts, getter, reader)
	if err != nil {
		return nil, err
	}
	bound := serviceaccount.JWTTokenAuthenticator(opts.Issuers, getter, opts.Audiences, serviceaccount.NewValidator(reader))
	return &tokenAuthenticator{
		full:   union.New(legacy, bound),
		reader: reader, auds: opts.Audiences, size: opts.CacheSize,
		known: map[[sha256.Size]byte]*verifiedToken{},
	}, nil
}

// AuthenticateToken implements authenticator.Token. Audiences other than the server's own come with ctx.
func (t *tokenAuthenticator) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	if _, special := authenticator.AudiencesFrom(ctx); special { // TokenReview: rare, so never cached
		return t.verify(ctx, token)
	}
	key := sha256.Sum256([]byte(token))
	t.mu.RLock()
	known := t.known[key]
	t.mu.RUnlock()
	if known != nil {
		if t.alive(ctx, &known.claims) {
			return known.response, true, nil
		}
		t.mu.Lock()
		delete(t.known, key)
		t.mu.Unlock()
	}
	response, ok, err := t.verify(ctx, token)
	if err != nil || !ok {
		return nil, ok, err
	}
	if claims, err := parseClaims(token); err == nil && claims.Kubernetes.ServiceAccount.Name != "" { // others are no bound tokens
		t.mu.Lock()
		evictOne(t.known, t.size)
		t.known[key] = &verifiedToken{claims: claims, response: response}
		t.mu.Unlock()
	}
	return response, true, nil
}

// verify runs upstream's whole check and words its failures as upstream's union of authenticators does.
func (t *tokenAuthenticator) verify(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	response, ok, err := t.full.AuthenticateToken(ctx, token)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrInvalidCredentials, err)
	}
	if !ok {
		return nil, false, nil
	}
	return withAuthenticated(response), true, nil
}

// parseClaims reads the payload of a token whose signature was verified.
func parseClaims(token string) (tokenClaims, error) {
	var claims tokenClaims
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claims, errors.New("token has no three parts")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return claims, err
	}
	return claims, json.Unmarshal(payload, &claims)
}

// alive reports whether a token that was good still is: not expired, its objects there with the same UIDs.
func (t *tokenAuthenticator) alive(ctx context.Context, claims *tokenClaims) bool {
	now := time.Now()
	if claims.Expiry != 0 && now.Unix() >= claims.Expiry { // upstream's leeway is left to the full check
		return false
	}
	k := &claims.Kubernetes
	var account corev1.ServiceAccount
	if !t.matches(ctx, k.Namespace, k.ServiceAccount, &account, now) {
		return false
	}
	if k.Secret.Name != "" && !t.matches(ctx, k.Namespace, k.Secret, &corev1.Secret{}, now) {
		return false
	}
	if k.Pod.Name != "" {
		return t.matches(ctx, k.Namespace, k.Pod, &corev1.Pod{}, now) // a pod's node is only informative
	}
	return k.Node.Name == "" || t.matches(ctx, "", k.Node, &corev1.Node{}, now)
}

// matches reads ref into object and compares the UID.
func (t *tokenAuthenticator) matches(ctx context.Context, namespace string, ref objectRef, object client.Object, now time.Time) bool {
	if err := t.reader.reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: ref.Name}, object); err != nil {
		return false
	}
	deleted := object.GetDeletionTimestamp()
	return string(object.GetUID()) == ref.UID && (deleted == nil || !deleted.Time.Before(now.Add(-deletionLeeway)))
}

// tokenGetter gives upstream's validator the objects it asks for.
type tokenGetter struct{ reader client.Reader }

func (g tokenGetter) GetServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	object := &corev1.ServiceAccount{}
	return object, g.reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object)
}

func (g tokenGetter) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	object := &corev1.Pod{}
	return object, g.reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object)
}

func (g tokenGetter) GetSecret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	object := &corev1.Secret{}
	return object, g.reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object)
}

func (g tokenGetter) GetNode(ctx context.Context, name string) (*corev1.Node, error) {
	object := &corev1.Node{}
	return object, g.reader.Get(ctx, client.ObjectKey{Name: name}, object)
}

// verifyKeys are those whose tokens are accepted: the signing key's and the further ones, each once.
func verifyKeys(opts Options) (serviceaccount.PublicKeysGetter, error) {
	keys := []any{opts.SigningKey.Public()}
	for _, key := range opts.VerifyKeys {
		if same, ok := key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(opts.SigningKey.Public()) {
			keys = append(keys, key)
		}
	}
	return serviceaccount.StaticPublicKeysGetter(keys)
}

// OpenIDMetadata returns the discovery document and the key set that let others verify our tokens.
func (a *Authenticator) OpenIDMetadata() (config, keySet []byte, err error) {
	getter, err := verifyKeys(a.opts)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the service account keys: %w", err)
	}
	provider, err := serviceaccount.NewOpenIDMetadataProvider(a.opts.Issuers[0], a.opts.JWKSURI, "", getter)
	if err != nil {
		return nil, nil, fmt.Errorf("describing the token issuer: %w", err)
	}
	config, _ = provider.GetConfigJSON()
	keySet, _ = provider.GetKeysetJSON()
	return config, keySet, nil
}
