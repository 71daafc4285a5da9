package gantrytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"gantry.dev/gantry/internal/config"
)

// provider is an OpenID Connect provider and a token of its for sub "ann".
func provider(t *testing.T) (url, ca string, token func(groups ...string) string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	var server *httptest.Server
	server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer := map[string]any{"issuer": server.URL, "jwks_uri": server.URL + "/keys"}
		if r.URL.Path == "/keys" {
			answer = map[string]any{"keys": []map[string]string{{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k", "x": encode(point[1:33]), "y": encode(point[33:])}}}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(server.Close)
	token = func(groups ...string) string {
		claims, _ := json.Marshal(map[string]any{"iss": server.URL, "aud": "gantry", "sub": "ann", "exp": time.Now().Add(time.Hour).Unix(), "groups": groups})
		signed := encode([]byte(`{"alg":"ES256","kid":"k"}`)) + "." + encode(claims)
		digest := sha256.Sum256([]byte(signed))
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return signed + "." + encode(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	}
	return server.URL, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})), token
}

// People come in by a provider of the settings, and see what RBAC gives their groups.
func TestOpenIDConnect(t *testing.T) {
	url, ca, token := provider(t)
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, []byte(ca), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Start(t, Options{Access: &config.Access{AnonymousAuth: true, OIDC: config.OIDC{
		IssuerURL: url, ClientID: "gantry", UsernamePrefix: "oidc:", GroupsClaim: "groups", GroupsPrefix: "oidc:", CAFile: caFile, SigningAlgs: []string{"ES256"},
	}}})
	c.Eventually("the provider's keys", func() error {
		who, err := whoami(t, c.TokenConfig(token("devs")))
		if err == nil && (who.Username != "oidc:ann" || !slices.Equal(who.Groups, []string{"oidc:devs", "system:authenticated"})) {
			err = fmt.Errorf("the token is %+v's", who)
		}
		return err
	})
	if _, err := whoami(t, c.TokenConfig(token("devs")+"x")); !apierrors.IsUnauthorized(err) {
		t.Errorf("a token that was changed: %v", err)
	}
}

// A file says who needs no credentials, and where.
func TestAuthenticationConfiguration(t *testing.T) {
	url, ca, token := provider(t)
	path := filepath.Join(t.TempDir(), "authn.yaml")
	text := "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: true, conditions: [{path: /livez}]}\njwt:\n- issuer:\n    url: " + url +
		"\n    audiences: [gantry]\n    certificateAuthority: |\n      " + strings.ReplaceAll(strings.TrimSpace(ca), "\n", "\n      ") +
		"\n  claimMappings:\n    username: {expression: \"'file:' + claims.sub\"}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Start(t, Options{Access: &config.Access{AuthenticationFile: path, AnonymousAuth: true, BootstrapTokens: true}})
	c.Eventually("the provider's keys", func() error {
		who, err := whoami(t, c.TokenConfig(token()))
		if err == nil && who.Username != "file:ann" {
			err = fmt.Errorf("the token is %+v's", who)
		}
		return err
	})
	for path, want := range map[string]int{"/livez": http.StatusOK, "/version": http.StatusUnauthorized} {
		w := httptest.NewRecorder()
		c.Handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if w.Code != want {
			t.Errorf("%s without credentials: %d, want %d", path, w.Code, want)
		}
	}
}

// Others find out how to verify service accounts' tokens.
func TestIssuerDiscovery(t *testing.T) {
	c := Start(t, Options{Access: &config.Access{ServiceAccounts: config.ServiceAccounts{JWKSURI: "https://keys.example.com/openid/v1/jwks"}}})
	read := func(path, contentType string) map[string]any {
		t.Helper()
		resp, err := c.Config("root", "system:masters").Transport.RoundTrip(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://gantry.test"+path, nil))
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(resp.Body)
		var out map[string]any
		if err = errors.Join(err, resp.Body.Close(), json.Unmarshal(data, &out)); err != nil || resp.Header.Get("Content-Type") != contentType || resp.Header.Get("Cache-Control") != "public, max-age=3600" {
			t.Errorf("%s: %s, %v, %v", path, data, resp.Header, err)
		}
		return out
	}
	document := read("/.well-known/openid-configuration", "application/json")
	if document["issuer"] != "https://kubernetes.default.svc.cluster.local" || document["jwks_uri"] != "https://keys.example.com/openid/v1/jwks" || len(document) != 5 {
		t.Errorf("discovery document %v", document)
	}
	if keys, _ := read("/openid/v1/jwks", "application/jwk-set+json")["keys"].([]any); len(keys) != 1 {
		t.Errorf("keys %v", keys)
	}
	if _, err := whoami(t, c.TokenConfig("")); !apierrors.IsUnauthorized(err) {
		t.Errorf("anonymous requests are off, but: %v", err)
	}
}
