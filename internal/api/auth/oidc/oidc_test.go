package oidc

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
)

// issuer is an OpenID Connect provider: discovery document, keys, and tokens for the asking.
type issuer struct {
	*httptest.Server
	key *rsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []map[string]string{{
			"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "one",
			"n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes()),
		}}})
	})
	i.Server = httptest.NewTLSServer(mux)
	t.Cleanup(i.Close)
	return i
}

func encode(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// caPEM verifies the issuer's certificate.
func (i *issuer) caPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}))
}

// token is signed by the issuer; claims may overwrite issuer, audience and expiry.
func (i *issuer) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	all := map[string]any{"iss": i.URL, "aud": "gantry", "exp": time.Now().Add(time.Hour).Unix(), "sub": "ann"}
	for name, value := range claims {
		all[name] = value
	}
	payload, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	signed := encode([]byte(`{"alg":"RS256","kid":"one"}`)) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + encode(signature)
}

// run runs an authenticator until the test ends.
func run(t *testing.T, opts Options) *Authenticator {
	t.Helper()
	opts.AccountIssuers, opts.Audiences = []string{"https://kubernetes.default.svc"}, []string{"api"}
	a, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return a
}

// user authenticates token, again until the providers' keys are there.
func user(t *testing.T, a *Authenticator, token string) *authenticator.Response {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		response, ok, err := a.AuthenticateToken(t.Context(), token)
		if ok && err == nil {
			return response
		}
		if time.Now().After(deadline) {
			t.Fatalf("the token is not accepted: %v, %v", ok, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestProviderOfFlags(t *testing.T) {
	i := newIssuer(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte(i.caPEM()), 0o600); err != nil {
		t.Fatal(err)
	}
	a := run(t, Options{Provider: &Provider{IssuerURL: i.URL, ClientID: "gantry", GroupsClaim: "groups", GroupsPrefix: "corp:", CAFile: ca,
		RequiredClaims: map[string]string{"hd": "example.com"}}})
	got := user(t, a, i.token(t, map[string]any{"groups": []string{"devs"}, "hd": "example.com"}))
	if got.User.GetName() != i.URL+"#ann" || !slices.Equal(got.User.GetGroups(), []string{"corp:devs"}) || !slices.Equal(got.Audiences, []string{"api"}) && len(got.Audiences) != 0 {
		t.Errorf("user %+v, audiences %v", got.User, got.Audiences)
	}
	other := newIssuer(t)
	for name, token := range map[string]string{
		"expired":         i.token(t, map[string]any{"hd": "example.com", "exp": time.Now().Add(-time.Hour).Unix()}),
		"other audience":  i.token(t, map[string]any{"hd": "example.com", "aud": "other"}),
		"claim missing":   i.token(t, nil),
		"claim differs":   i.token(t, map[string]any{"hd": "example.org"}),
		"other's key":     other.token(t, map[string]any{"hd": "example.com", "iss": i.URL}),
		"other's issuer":  other.token(t, map[string]any{"hd": "example.com"}),
		"changed":         strings.Replace(i.token(t, map[string]any{"hd": "example.com"}), ".", ".e30", 1),
		"without a token": "nonsense",
	} {
		if response, ok, _ := a.AuthenticateToken(t.Context(), token); ok {
			t.Errorf("%s: accepted as %+v", name, response.User)
		}
	}
}

func TestUsernamePrefix(t *testing.T) {
	for name, tc := range map[string]struct {
		provider Provider
		want     string
	}{
		"by default":       {Provider{}, "https://a#"},
		"none for email":   {Provider{UsernameClaim: "email"}, ""},
		"switched off":     {Provider{UsernamePrefix: "-"}, ""},
		"given":            {Provider{UsernamePrefix: "oidc:"}, "oidc:"},
		"given, for email": {Provider{UsernameClaim: "email", UsernamePrefix: "oidc:"}, "oidc:"},
	} {
		tc.provider.IssuerURL, tc.provider.ClientID = "https://a", "b"
		config, err := tc.provider.configuration()
		if err != nil || *config.JWT[0].ClaimMappings.Username.Prefix != tc.want {
			t.Errorf("%s: %+v, %v; want %q", name, config, err, tc.want)
		}
	}
}

// jwt is one entry of a file.
func (i *issuer) jwt(more string) string {
	return fmt.Sprintf("- issuer:\n    url: %s\n    audiences: [gantry, second]\n    audienceMatchPolicy: MatchAny\n    certificateAuthority: |\n      %s\n%s",
		i.URL, strings.ReplaceAll(strings.TrimSpace(i.caPEM()), "\n", "\n      "), more)
}

const (
	fileHead = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n"
	celPart  = `  claimValidationRules:
  - expression: "claims.?email_verified.orValue(false) == true"
    message: the address must be verified
  claimMappings:
    username: {expression: "'corp:' + claims.email"}
    groups: {expression: "dyn(claims.roles).map(r, 'role:' + r)"}
    uid: {claim: sub}
    extra:
    - {key: example.com/tenant, valueExpression: claims.tenant}
  userValidationRules:
  - expression: "!user.groups.exists(g, g == 'role:banned')"
    message: banned
`
	plainPart = "  claimMappings:\n    username: {claim: sub, prefix: \"two:\"}\n"
)

func TestStructuredConfiguration(t *testing.T) {
	one, two := newIssuer(t), newIssuer(t)
	path := filepath.Join(t.TempDir(), "authn.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	anonymous := "anonymous:\n  enabled: true\n  conditions: [{path: /livez}]\n"
	write(fileHead + anonymous + "jwt:\n" + one.jwt(celPart))
	a := run(t, Options{File: path, Poll: time.Millisecond, ReadyWait: time.Minute})
	if config := a.Anonymous(); config == nil || !config.Enabled || config.Conditions[0].Path != "/livez" {
		t.Errorf("Anonymous = %+v", config)
	}
	good := map[string]any{"aud": "second", "email": "ann@example.com", "email_verified": true, "roles": []string{"dev"}, "tenant": "blue"}
	got := user(t, a, one.token(t, good)).User
	if got.GetName() != "corp:ann@example.com" || got.GetUID() != "ann" || !slices.Equal(got.GetGroups(), []string{"role:dev"}) || !slices.Equal(got.GetExtra()["example.com/tenant"], []string{"blue"}) {
		t.Errorf("user %+v", got)
	}
	for name, change := range map[string]map[string]any{"unverified": {"email_verified": false}, "banned": {"roles": []string{"banned"}}, "no tenant": {"tenant": nil}} {
		claims := map[string]any{}
		for _, from := range []map[string]any{good, change} {
			for key, value := range from {
				if claims[key] = value; value == nil {
					delete(claims, key)
				}
			}
		}
		if response, ok, err := a.AuthenticateToken(t.Context(), one.token(t, claims)); ok || err == nil {
			t.Errorf("%s: accepted as %+v", name, response)
		}
	}
	if _, ok, _ := a.AuthenticateToken(t.Context(), two.token(t, nil)); ok {
		t.Error("a provider that is not in the file is believed")
	}
	write(fileHead + "jwt: nonsense") // stays as it was
	write(fileHead + anonymous + "jwt:\n" + one.jwt(celPart) + two.jwt(plainPart))
	if got := user(t, a, two.token(t, nil)).User; got.GetName() != "two:ann" {
		t.Errorf("user %+v", got)
	}
	if got := user(t, a, one.token(t, good)).User; got.GetName() != "corp:ann@example.com" {
		t.Errorf("user %+v", got)
	}
}

func TestRefusedConfigurations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "authn.yaml")
	const mapping = "  claimMappings:\n    username: {claim: sub, prefix: \"\"}\n"
	entry := func(url, more string) string {
		return fileHead + "jwt:\n- issuer: {url: " + url + ", audiences: [a]}\n" + more
	}
	for name, tc := range map[string]struct{ text, say string }{
		"empty":               {"", "empty"},
		"another kind":        {"apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n", "want an AuthenticationConfiguration"},
		"unknown field":       {fileHead + "jtw: []\n", `unknown field "jtw"`},
		"plain http":          {entry("http://a", mapping), "URL scheme must be https"},
		"no username":         {entry("https://a", ""), "claim or expression is required"},
		"bad CEL":             {entry("https://a", "  claimMappings:\n    username: {expression: \"claims.\"}\n"), "compilation failed"},
		"accounts' issuer":    {entry("https://kubernetes.default.svc", mapping), "URL must not overlap with disallowed issuers"},
		"the same one twice":  {entry("https://a", mapping) + "- issuer: {url: https://a, audiences: [a]}\n" + mapping, "Duplicate"},
		"unverified address":  {entry("https://a", "  claimMappings:\n    username: {expression: \"claims.email\"}\n"), "claims.email_verified"},
		"conditions, but off": {fileHead + "anonymous: {enabled: false, conditions: [{path: /a}]}\n", "enabled should be set to true when conditions are defined"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := New(Options{File: path, AccountIssuers: []string{"https://kubernetes.default.svc"}})
			if err == nil || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("New: %v; want %q", err, tc.say)
			}
		})
	}
	if _, err := New(Options{Provider: &Provider{IssuerURL: "https://a"}}); err == nil {
		t.Error("a provider without a client id is taken")
	}
}
