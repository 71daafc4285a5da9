package auth

import (
	"crypto"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/user"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func joinSecret(data map[string]string) *corev1.Secret {
	all := map[string][]byte{"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true")}
	for key, value := range data {
		all[key] = []byte(value)
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-abcdef"}, Type: "bootstrap.kubernetes.io/token", Data: all}
}

func TestBootstrapToken(t *testing.T) {
	const good = "abcdef.0123456789abcdef"
	for name, tc := range map[string]struct {
		secret *corev1.Secret
		token  string
		off    bool
		groups []string // nil: refused
	}{
		"good":                {joinSecret(nil), good, false, []string{"system:bootstrappers", user.AllAuthenticated}},
		"with groups":         {joinSecret(map[string]string{"auth-extra-groups": "system:bootstrappers:edge"}), good, false, []string{"system:bootstrappers", "system:bootstrappers:edge", user.AllAuthenticated}},
		"foreign group":       {joinSecret(map[string]string{"auth-extra-groups": "system:masters"}), good, false, nil},
		"switched off":        {joinSecret(nil), good, true, nil},
		"wrong secret":        {joinSecret(nil), "abcdef.0123456789abcdee", false, nil},
		"unknown id":          {joinSecret(nil), "abcdeg.0123456789abcdef", false, nil},
		"expired":             {joinSecret(map[string]string{"expiration": time.Now().Add(-time.Second).UTC().Format(time.RFC3339)}), good, false, nil},
		"not for this":        {joinSecret(map[string]string{"usage-bootstrap-authentication": "false"}), good, false, nil},
		"expiry not readable": {joinSecret(map[string]string{"expiration": "soon"}), good, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster()
			if err := c.Create(t.Context(), tc.secret); err != nil {
				t.Fatal(err)
			}
			a := newAuthenticator(t, Options{Reader: c, BootstrapTokens: !tc.off})
			response, ok, err := a.AuthenticateRequest(withToken(t.Context(), tc.token))
			if tc.groups == nil {
				if ok || err == nil {
					t.Errorf("accepted: %+v", response)
				}
				return
			}
			if err != nil || !ok || response.User.GetName() != "system:bootstrap:abcdef" || !slices.Equal(response.User.GetGroups(), tc.groups) {
				t.Errorf("AuthenticateRequest = %+v, %v, %v", response, ok, err)
			}
		})
	}
}

// A token in a Secret holds while its Secret says the same, and its use is noted.
func TestLegacyToken(t *testing.T) {
	c := cluster()
	a := newAuthenticator(t, Options{Reader: c, Patcher: c})
	secret := &corev1.Secret{}
	key := client.ObjectKey{Namespace: "n1", Name: "key"}
	if err := c.Get(t.Context(), key, secret); err != nil {
		t.Fatal(err)
	}
	token, err := a.LegacyToken(t.Context(), account(), secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := a.AuthenticateRequest(withToken(t.Context(), token)); ok || err == nil {
		t.Error("a token that its Secret does not hold is accepted")
	}
	secret.Data = map[string][]byte{"token": []byte(token)}
	if err := c.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		response, ok, err := a.AuthenticateRequest(withToken(t.Context(), token))
		if err != nil || !ok || response.User.GetName() != "system:serviceaccount:n1:sa" || response.User.GetUID() != "uid-sa" {
			t.Fatalf("AuthenticateRequest = %+v, %v, %v", response, ok, err)
		}
	}
	if err := c.Get(t.Context(), key, secret); err != nil || secret.Labels["kubernetes.io/legacy-token-last-used"] != time.Now().UTC().Format("2006-01-02") {
		t.Errorf("labels %v, %v", secret.Labels, err)
	}
	if err := c.Delete(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := a.AuthenticateRequest(withToken(t.Context(), token)); ok || err == nil {
		t.Error("the token outlived its Secret")
	}
}

// Rotation: the new key signs, tokens of the old one hold until it is taken away, and so does an old issuer.
func TestSigningKeyRotation(t *testing.T) {
	c, old, next := cluster(), newKey(t), newKey(t)
	before := newAuthenticator(t, Options{Reader: c, SigningKey: old, Issuers: []string{"https://old"}, Audiences: []string{"api"}})
	token := tokenFor(t, before, authenticationv1.TokenRequestSpec{}).Status.Token
	during := newAuthenticator(t, Options{Reader: c, SigningKey: next, VerifyKeys: []crypto.PublicKey{next.Public(), old.Public()},
		Issuers: []string{"https://new", "https://old"}, Audiences: []string{"api"}})
	after := newAuthenticator(t, Options{Reader: c, SigningKey: next, Issuers: []string{"https://new"}, Audiences: []string{"api"}})
	fresh := tokenFor(t, during, authenticationv1.TokenRequestSpec{}).Status.Token
	for name, tc := range map[string]struct {
		by    *Authenticator
		token string
		ok    bool
	}{"old, while both are there": {during, token, true}, "new, while both are there": {during, fresh, true}, "new, later": {after, fresh, true}, "old, later": {after, token, false}} {
		if _, ok, err := tc.by.AuthenticateRequest(withToken(t.Context(), tc.token)); ok != tc.ok || (err == nil) != tc.ok {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	config, keySet, err := during.OpenIDMetadata()
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Issuer        string   `json:"issuer"`
		JWKSURI       string   `json:"jwks_uri"`
		ResponseTypes []string `json:"response_types_supported"`
		SubjectTypes  []string `json:"subject_types_supported"`
		Algs          []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := json.Unmarshal(config, &document); err != nil || document.Issuer != "https://new" || document.JWKSURI != "https://new/openid/v1/jwks" ||
		!slices.Equal(document.ResponseTypes, []string{"id_token"}) || !slices.Equal(document.SubjectTypes, []string{"public"}) || !slices.Equal(document.Algs, []string{"ES256"}) {
		t.Errorf("discovery document %s, %v", config, err)
	}
	var keys struct {
		Keys []map[string]string `json:"keys"`
	}
	if err := json.Unmarshal(keySet, &keys); err != nil || len(keys.Keys) != 2 || keys.Keys[0]["use"] != "sig" || keys.Keys[0]["kty"] != "EC" || keys.Keys[0]["d"] != "" {
		t.Errorf("key set %s, %v", keySet, err)
	}
	header := strings.Split(fresh, ".")[0]
	if parsed := decodeSegment(t, header); parsed["kid"] != keys.Keys[0]["kid"] {
		t.Errorf("the token names key %v, the set has %v", parsed["kid"], keys.Keys)
	}
}

func decodeSegment(t *testing.T, segment string) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal(decodeBase64(t, segment), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAnonymousConditions(t *testing.T) {
	only := &apiserver.AnonymousAuthConfig{Enabled: true, Conditions: []apiserver.AnonymousAuthCondition{{Path: "/livez"}}}
	for name, tc := range map[string]struct {
		config *apiserver.AnonymousAuthConfig
		path   string
		ok     bool
	}{
		"by default": {nil, "/api", true}, "off": {&apiserver.AnonymousAuthConfig{}, "/livez", false},
		"a path that is open": {only, "/livez", true}, "another": {only, "/api", false}, "below it": {only, "/livez/etcd", false},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api"+tc.path, nil)
		response, ok, err := newAuthenticator(t, Options{Reader: cluster(), Anonymous: tc.config}).AuthenticateRequest(req)
		if ok != tc.ok || err != nil || (ok && response.User.GetName() != user.Anonymous) {
			t.Errorf("%s: %+v, %v, %v", name, response, ok, err)
		}
	}
}

func decodeBase64(t *testing.T, segment string) []byte {
	t.Helper()
	out, err := base64.RawURLEncoding.DecodeString(segment)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
