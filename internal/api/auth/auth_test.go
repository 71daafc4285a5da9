package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/component-helpers/auth/rbac/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// cluster is the objects tokens are bound to.
func cluster() client.Client {
	meta := func(name, uid string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "n1", Name: name, UID: types.UID("uid-" + uid)}
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "worker", UID: "uid-worker"}}
	return fake.NewClientBuilder().WithScheme(clientscheme.Scheme).WithObjects(node,
		&corev1.ServiceAccount{ObjectMeta: meta("sa", "sa")}, &corev1.Secret{ObjectMeta: meta("key", "key")},
		&corev1.Pod{ObjectMeta: meta("web", "web"), Spec: corev1.PodSpec{ServiceAccountName: "sa", NodeName: "worker"}},
		&corev1.Pod{ObjectMeta: meta("other", "other"), Spec: corev1.PodSpec{ServiceAccountName: "default"}}).Build()
}

func account() *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "n1", Name: "sa", UID: "uid-sa"}}
}

func newAuthenticator(t testing.TB, opts Options) *Authenticator {
	if opts.SigningKey == nil {
		opts.SigningKey = newKey(t)
	}
	a, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func tokenFor(t testing.TB, a *Authenticator, spec authenticationv1.TokenRequestSpec) *authenticationv1.TokenRequest {
	out, err := a.IssueToken(t.Context(), account(), &authenticationv1.TokenRequest{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func withToken(ctx context.Context, token string) *http.Request {
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://api/", nil)
	req.Header.Set("Authorization", "Bearer "+token)
	return req
}

func TestBoundTokenDiesWithItsObject(t *testing.T) {
	for name, tc := range map[string]struct {
		ref  *authenticationv1.BoundObjectReference
		kill client.Object
	}{
		"service account": {nil, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "n1", Name: "sa"}}},
		"pod": {&authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "web", UID: "uid-web"},
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n1", Name: "web"}}},
		"secret": {&authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: "key"},
			&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "n1", Name: "key"}}},
		"node": {&authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: "worker"},
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "worker"}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster()
			a := newAuthenticator(t, Options{Reader: c})
			token := tokenFor(t, a, authenticationv1.TokenRequestSpec{BoundObjectRef: tc.ref}).Status.Token
			for range 2 { // the second answer comes from the cache
				response, ok, err := a.AuthenticateRequest(withToken(t.Context(), token))
				if err != nil || !ok || response.User.GetName() != "system:serviceaccount:n1:sa" ||
					!slices.Contains(response.User.GetGroups(), user.AllAuthenticated) {
					t.Fatalf("AuthenticateRequest = %v, %v, %v", response, ok, err)
				}
			}
			if err := c.Delete(t.Context(), tc.kill); err != nil {
				t.Fatal(err)
			}
			if _, ok, err := a.AuthenticateRequest(withToken(t.Context(), token)); ok || err == nil {
				t.Errorf("the token outlived its %s: %v, %v", name, ok, err)
			}
		})
	}
}

func TestPodTokenNamesPodAndNode(t *testing.T) {
	a := newAuthenticator(t, Options{Reader: cluster()})
	seconds := int64(3607)
	out := tokenFor(t, a, authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds,
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "web"}})
	response, _, err := a.AuthenticateRequest(withToken(t.Context(), out.Status.Token))
	if err != nil {
		t.Fatal(err)
	}
	extra := response.User.GetExtra()
	for key, want := range map[string]string{"authentication.kubernetes.io/pod-name": "web", "authentication.kubernetes.io/node-name": "worker"} {
		if !slices.Equal(extra[key], []string{want}) {
			t.Errorf("extra %s is %v, want %s", key, extra[key], want)
		}
	}
	payload, _ := base64.RawURLEncoding.DecodeString(strings.Split(out.Status.Token, ".")[1])
	if !strings.Contains(string(payload), `"warnafter":`) {
		t.Errorf("a pod's token of 3607 s has no warnafter: %s", payload)
	}
	if left := time.Until(out.Status.ExpirationTimestamp.Time); left > time.Hour+7*time.Second || left < time.Hour {
		t.Errorf("status promises %v, want about 3607 s", left)
	}
}

func TestRefusedTokenRequests(t *testing.T) {
	a := newAuthenticator(t, Options{Reader: cluster()})
	short := int64(10)
	for name, tc := range map[string]struct {
		request authenticationv1.TokenRequest
		check   func(error) bool
	}{
		"other pod's account": {authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "other"}}}, apierrors.IsBadRequest},
		"wrong UID": {authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "web", UID: "old"}}}, apierrors.IsConflict},
		"missing pod": {authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "gone"}}}, apierrors.IsNotFound},
		"unbindable kind": {authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "ConfigMap", Name: "x"}}}, apierrors.IsBadRequest},
		"too short":      {authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &short}}, apierrors.IsInvalid},
		"name differs":   {authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{Name: "else"}}, apierrors.IsInvalid},
		"uid of another": {authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{UID: "else"}}, apierrors.IsConflict},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := a.IssueToken(t.Context(), account(), &tc.request); !tc.check(err) {
				t.Errorf("IssueToken: %v", err)
			}
		})
	}
}

func TestRefusedTokens(t *testing.T) {
	c := cluster()
	a := newAuthenticator(t, Options{Reader: c})
	foreign := tokenFor(t, newAuthenticator(t, Options{Reader: c}), authenticationv1.TokenRequestSpec{})
	audience := tokenFor(t, a, authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}})
	for name, token := range map[string]string{"another cluster's key": foreign.Status.Token, "another audience": audience.Status.Token, "no token": "abc"} {
		t.Run(name, func(t *testing.T) {
			if _, ok, err := a.AuthenticateRequest(withToken(t.Context(), token)); ok || !errors.Is(err, ErrInvalidCredentials) {
				t.Errorf("AuthenticateRequest = %v, %v", ok, err)
			}
		})
	}
}

// certFor returns a client certificate signed by a new CA, and the CA's pool.
func certFor(t testing.TB, subject pkix.Name) (*x509.Certificate, *x509.CertPool) {
	caKey, key := newKey(t), newKey(t)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	parsed, _ := x509.ParseCertificate(der)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: subject, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if der, err = x509.CreateCertificate(rand.Reader, leaf, parsed, key.Public(), caKey); err != nil {
		t.Fatal(err)
	}
	out, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return out, pool
}

func TestClientCertificate(t *testing.T) {
	cert, pool := certFor(t, pkix.Name{CommonName: "ann", Organization: []string{"devs"}})
	current := pool
	a := newAuthenticator(t, Options{Reader: cluster(), ClientCAs: func() *x509.CertPool { return current }})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api/", nil)
	req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
	for range 2 {
		response, ok, err := a.AuthenticateRequest(req)
		if err != nil || !ok || response.User.GetName() != "ann" || !slices.Equal(response.User.GetGroups(), []string{"devs", user.AllAuthenticated}) {
			t.Fatalf("AuthenticateRequest = %+v, %v, %v", response, ok, err)
		}
	}
	_, current = certFor(t, pkix.Name{})            // the CA was replaced
	for _, other := range []string{"", "Basic x"} { // what is no credential of ours does not make it anonymous
		req.Header.Set("Authorization", other)
		if response, ok, err := a.AuthenticateRequest(req); ok || err == nil {
			t.Errorf("a certificate of the old CA passes with Authorization %q: %+v", other, response)
		}
	}
}

// TestRemovedNode refuses what a node got before it was removed, and believes what it gets after joining again.
func TestRemovedNode(t *testing.T) {
	cert, pool := certFor(t, pkix.Name{CommonName: "system:node:w", Organization: []string{"system:nodes"}})
	issued := cert.NotBefore.Add(issuedAfter)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api/", nil)
	req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
	for name, tc := range map[string]struct {
		node string
		at   time.Time
		good bool
	}{
		"after it got its certificate":  {"w", issued.Add(time.Minute), false},
		"before it got its certificate": {"w", issued.Add(-time.Minute), true},
		"another":                       {"v", issued.Add(time.Minute), true},
	} {
		a := newAuthenticator(t, Options{
			Reader: cluster(), ClientCAs: func() *x509.CertPool { return pool },
			RemovedNode: func(_ context.Context, node string) (time.Time, bool) { return tc.at, node == tc.node },
		})
		for range 2 { // the second time from what was verified before
			if _, ok, err := a.AuthenticateRequest(req); ok != tc.good || (err == nil) != tc.good {
				t.Errorf("%s: %v, %v; want %v", name, ok, err, tc.good)
			}
		}
	}
}

func TestAnonymous(t *testing.T) {
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api/", nil)
	response, ok, err := newAuthenticator(t, Options{Reader: cluster()}).AuthenticateRequest(req)
	if err != nil || !ok || response.User.GetName() != user.Anonymous {
		t.Errorf("AuthenticateRequest = %+v, %v, %v", response, ok, err)
	}
}

func TestNodeMayReadItsPodsSecrets(t *testing.T) {
	a := bootstrapped()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n1", Name: "web", UID: "1"}, Spec: corev1.PodSpec{NodeName: "worker", ServiceAccountName: "sa",
		Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "key"}}}}}}
	a.setPod(nil, pod)
	may := func(verb, resource, subresource, name string) bool {
		decision, _, err := a.Authorize(t.Context(), &authorizer.AttributesRecord{
			User: &user.DefaultInfo{Name: "system:node:worker", Groups: []string{user.NodesGroup, user.AllAuthenticated}},
			Verb: verb, Namespace: "n1", Resource: resource, Subresource: subresource, Name: name, ResourceRequest: true})
		return err == nil && decision == authorizer.DecisionAllow
	}
	if !may("get", "secrets", "", "key") || may("get", "secrets", "", "other") || !may("create", "serviceaccounts", "token", "sa") || may("delete", "secrets", "", "key") {
		t.Error("the node graph does not decide as upstream's")
	}
	a.deletePod(pod)
	if may("get", "secrets", "", "key") {
		t.Error("the node reads the secret of a pod that is gone")
	}
}

func TestCheckEscalation(t *testing.T) {
	a := bootstrapped()
	ann := &user.DefaultInfo{Name: "ann", Groups: []string{user.AllAuthenticated}}
	role := func(resource string) *rbacv1.Role {
		return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "n1", Name: "r"},
			Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{resource}}}}
	}
	binding := func(name string) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "n1", Name: "b"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}}
	}
	for name, tc := range map[string]struct {
		info        user.Info
		object, old client.Object
		forbidden   bool
	}{
		"what one has":           {ann, role("pods"), nil, false},
		"what one has not":       {ann, role("nodes"), nil, true},
		"masters":                {&user.DefaultInfo{Groups: []string{user.SystemPrivilegedGroup}}, role("nodes"), nil, false},
		"binding one's own":      {ann, binding("view"), nil, false},
		"binding cluster-admin":  {ann, binding("cluster-admin"), nil, true},
		"only a finalizer moved": {ann, binding("cluster-admin"), binding("cluster-admin"), false},
		"another kind":           {ann, &corev1.Pod{}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := a.CheckEscalation(t.Context(), tc.info, tc.object, tc.old); apierrors.IsForbidden(err) != tc.forbidden || (err != nil) != tc.forbidden {
				t.Errorf("CheckEscalation = %v", err)
			}
		})
	}
}

func TestEnsurePolicy(t *testing.T) {
	c := fake.NewClientBuilder().WithScheme(clientscheme.Scheme).Build()
	if err := EnsurePolicy(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	var admin, view rbacv1.ClusterRole
	if err := errors.Join(c.Get(t.Context(), client.ObjectKey{Name: "admin"}, &admin), c.Get(t.Context(), client.ObjectKey{Name: "view"}, &view)); err != nil {
		t.Fatal(err)
	}
	if len(view.Rules) == 0 || len(admin.Rules) <= len(view.Rules) {
		t.Errorf("admin has %d rules, view %d", len(admin.Rules), len(view.Rules))
	}
	var node rbacv1.ClusterRole
	if err := c.Get(t.Context(), client.ObjectKey{Name: "system:node-proxier"}, &node); err != nil {
		t.Fatal(err)
	}
	whole := node.Rules
	node.Rules = node.Rules[:1:1]
	view.Annotations["rbac.authorization.kubernetes.io/autoupdate"] = "false"
	view.AggregationRule, view.Rules = nil, nil
	if err := errors.Join(c.Update(t.Context(), &node), c.Update(t.Context(), &view), EnsurePolicy(t.Context(), c)); err != nil {
		t.Fatal(err)
	}
	_ = c.Get(t.Context(), client.ObjectKey{Name: "system:node-proxier"}, &node)
	_ = c.Get(t.Context(), client.ObjectKey{Name: "view"}, &view)
	if covered, missing := validation.Covers(node.Rules, whole); !covered || view.AggregationRule != nil {
		t.Errorf("after the second run %v are missing, aggregation is %v", missing, view.AggregationRule)
	}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "kube-system", Name: "extension-apiserver-authentication-reader"}, &rbacv1.Role{}); err != nil {
		t.Error(err)
	}
}

func TestReviews(t *testing.T) {
	authn, authz := newAuthenticator(t, Options{Reader: cluster()}), bootstrapped()
	r := NewReviewer(authn, authz)
	ann := &user.DefaultInfo{Name: "ann", Groups: []string{user.AllAuthenticated}}
	attributes := &authorizationv1.ResourceAttributes{Namespace: "n1", Verb: "create", Resource: "pods"}
	answer, err := r.Review(t.Context(), ann, "", &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: attributes}})
	if err != nil || !answer.(*authorizationv1.SelfSubjectAccessReview).Status.Allowed {
		t.Errorf("SelfSubjectAccessReview: %+v, %v", answer, err)
	}
	answer, err = r.Review(t.Context(), ann, "n1", &authorizationv1.LocalSubjectAccessReview{ObjectMeta: metav1.ObjectMeta{Namespace: "n1"},
		Spec: authorizationv1.SubjectAccessReviewSpec{User: "bob", ResourceAttributes: attributes}})
	if err != nil || answer.(*authorizationv1.LocalSubjectAccessReview).Status.Allowed {
		t.Errorf("LocalSubjectAccessReview: %+v, %v", answer, err)
	}
	answer, err = r.Review(t.Context(), ann, "", &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "n1"}})
	if err != nil || len(answer.(*authorizationv1.SelfSubjectRulesReview).Status.ResourceRules) < 10 {
		t.Errorf("SelfSubjectRulesReview: %+v, %v", answer, err)
	}
	token := tokenFor(t, authn, authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}}).Status.Token
	answer, err = r.Review(t.Context(), ann, "", &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{"vault"}}})
	if err != nil || !answer.(*authenticationv1.TokenReview).Status.Authenticated {
		t.Errorf("TokenReview: %+v, %v", answer, err)
	}
	answer, err = r.Review(t.Context(), ann, "", &authenticationv1.SelfSubjectReview{})
	if err != nil || answer.(*authenticationv1.SelfSubjectReview).Status.UserInfo.Username != "ann" {
		t.Errorf("SelfSubjectReview: %+v, %v", answer, err)
	}
}

func BenchmarkAuthenticateToken(b *testing.B) {
	a := newAuthenticator(b, Options{Reader: onlyUID{}})
	issuer := newAuthenticator(b, Options{Reader: cluster(), SigningKey: a.opts.SigningKey})
	req := withToken(b.Context(), tokenFor(b, issuer, authenticationv1.TokenRequestSpec{}).Status.Token)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok, err := a.AuthenticateRequest(req); !ok {
			b.Fatal(err)
		}
	}
}

// onlyUID answers every Get at once, so that the benchmark measures only this package.
type onlyUID struct{ client.Reader }

func (onlyUID) Get(_ context.Context, key client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	object.SetUID(types.UID("uid-" + key.Name))
	return nil
}
