package gantrytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/config"
)

func clientFor(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return clients
}

// whoami asks the API who the client is.
func whoami(t *testing.T, config *rest.Config) (authenticationv1.UserInfo, error) {
	t.Helper()
	review, err := clientFor(t, config).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.UserInfo{}, err
	}
	return review.Status.UserInfo, nil
}

func bindRole(t *testing.T, c *Cluster, role string, subject rbacv1.Subject) {
	t.Helper()
	subject.APIGroup = rbacv1.GroupName
	err := c.Client.Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: strings.ReplaceAll(role+"-"+subject.Name, ":", "-")},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}, Subjects: []rbacv1.Subject{subject},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func signingRequest(t *testing.T, name, signer string, subject pkix.Name, usages ...certificatesv1.KeyUsage) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificatesv1.CertificateSigningRequestSpec{
		Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: signer, Usages: usages,
	}}
}

// issued waits for the certificate of a request.
func issued(t *testing.T, c *Cluster, name string) *x509.Certificate {
	t.Helper()
	var cert *x509.Certificate
	c.Eventually("a certificate for "+name, func() error {
		var csr certificatesv1.CertificateSigningRequest
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: name}, &csr); err != nil {
			return err
		}
		block, _ := pem.Decode(csr.Status.Certificate)
		if block == nil {
			return fmt.Errorf("status is %+v", csr.Status)
		}
		var err error
		cert, err = x509.ParseCertificate(block.Bytes)
		return err
	})
	return cert
}

// A machine joins with a token and becomes a node; a person gets a certificate by hand.
func TestCertificateSigningRequests(t *testing.T) {
	c := Start(t, Options{})
	if err := c.Client.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-abcdef"}, Type: "bootstrap.kubernetes.io/token",
		StringData: map[string]string{"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"}}); err != nil {
		t.Fatal(err)
	}
	joining := c.TokenConfig("abcdef.0123456789abcdef")
	if who, err := whoami(t, joining); err != nil || who.Username != "system:bootstrap:abcdef" {
		t.Fatalf("the token is %+v's, %v", who, err)
	}
	bindRole(t, c, "system:node-bootstrapper", rbacv1.Subject{Kind: "Group", Name: "system:bootstrappers"})
	bindRole(t, c, "system:certificates.k8s.io:certificatesigningrequests:nodeclient", rbacv1.Subject{Kind: "Group", Name: "system:bootstrappers"})
	const digital, client = certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth
	subject := pkix.Name{CommonName: "system:node:n1", Organization: []string{"system:nodes"}}
	node := signingRequest(t, "node", certificatesv1.KubeAPIServerClientKubeletSignerName, subject, digital, client)
	if _, err := clientFor(t, joining).CertificatesV1().CertificateSigningRequests().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if who, err := whoami(t, c.CertConfig(issued(t, c, "node"))); err != nil || who.Username != "system:node:n1" || !slices.Contains(who.Groups, "system:nodes") {
		t.Errorf("the certificate is %+v's, %v", who, err)
	}

	admin := clientFor(t, c.Config("root", "system:masters")).CertificatesV1().CertificateSigningRequests()
	masters := signingRequest(t, "masters", certificatesv1.KubeAPIServerClientSignerName, pkix.Name{CommonName: "eve", Organization: []string{"system:masters"}}, digital, client)
	if _, err := admin.Create(t.Context(), masters, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a certificate for system:masters can be asked for: %v", err)
	}
	person, err := admin.Create(t.Context(), signingRequest(t, "person", certificatesv1.KubeAPIServerClientSignerName, pkix.Name{CommonName: "ann"}, digital, client), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	approve := certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "r", Message: "m"}
	person.Status.Conditions = append(person.Status.Conditions, approve)
	if err := c.Client.Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "approvals"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"certificatesigningrequests/approval"}, Verbs: []string{"update"}}}}); err != nil {
		t.Fatal(err)
	}
	bindRole(t, c, "approvals", rbacv1.Subject{Kind: "User", Name: "clerk"})
	clerk := clientFor(t, c.Config("clerk")).CertificatesV1().CertificateSigningRequests()
	c.Eventually("the refusal of one who may not approve for the signer", func() error { // the role is learnt after a moment
		if _, err := clerk.UpdateApproval(t.Context(), "person", person, metav1.UpdateOptions{}); err == nil || !strings.Contains(err.Error(), "user not permitted to approve requests with signerName") {
			return fmt.Errorf("the answer is %w", errors.Join(err))
		}
		return nil
	})
	if _, err := admin.UpdateApproval(t.Context(), "person", person, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if who, err := whoami(t, c.CertConfig(issued(t, c, "person"))); err != nil || who.Username != "ann" {
		t.Errorf("the certificate is %+v's, %v", who, err)
	}
}

func TestServiceAccountTokens(t *testing.T) {
	c := Start(t, Options{Nodes: 2})
	root := clientFor(t, c.Config("root", "system:masters"))
	account, err := root.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "web"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	held := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "held", Annotations: map[string]string{"kubernetes.io/service-account.name": "web"}}, Type: corev1.SecretTypeServiceAccountToken}
	if _, err := root.CoreV1().Secrets("default").Create(t.Context(), held, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Eventually("a token in the Secret", func() error {
		secret, err := root.CoreV1().Secrets("default").Get(t.Context(), "held", metav1.GetOptions{})
		if err == nil && len(secret.Data["token"]) == 0 {
			err = errors.New("it has none")
		}
		held = secret
		return err
	})
	who, err := whoami(t, c.TokenConfig(string(held.Data["token"])))
	if err != nil || who.Username != "system:serviceaccount:default:web" || who.UID != string(account.UID) || string(held.Data["ca.crt"]) != "test" || string(held.Data["namespace"]) != "default" {
		t.Errorf("the token in the Secret is %+v's, %v", who, err)
	}
	request := func(clients *kubernetes.Clientset, spec authenticationv1.TokenRequestSpec) (string, error) {
		out, err := clients.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "web", &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
		if err != nil {
			return "", err
		}
		return out.Status.Token, nil
	}
	vault, err := request(root, authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := whoami(t, c.TokenConfig(vault)); !apierrors.IsUnauthorized(err) {
		t.Errorf("a token for another audience: %v", err)
	}
	for audience, want := range map[string]bool{"vault": true, "other": false} {
		review, err := root.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: vault, Audiences: []string{audience}}}, metav1.CreateOptions{})
		if err != nil || review.Status.Authenticated != want || want && !slices.Equal(review.Status.Audiences, []string{"vault"}) {
			t.Errorf("TokenReview for %s: %+v, %v", audience, review.Status, err)
		}
	}
	c.nodeTokens(t, root, request)
}

// nodeTokens checks that a node gets tokens for its own pods only, bound to them.
func (c *Cluster) nodeTokens(t *testing.T, root *kubernetes.Clientset, request func(*kubernetes.Clientset, authenticationv1.TokenRequestSpec) (string, error)) {
	t.Helper()
	pods := map[string]*corev1.Pod{}
	for _, node := range []string{"node-0", "node-1"} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "on-" + node}, Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "web", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
		made, err := root.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pods[node] = made
	}
	bound := func(node string) authenticationv1.TokenRequestSpec {
		return authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pods[node].Name, UID: pods[node].UID}}
	}
	node := clientFor(t, c.Config("system:node:node-0", "system:nodes"))
	token, err := request(node, bound("node-0"))
	if err != nil {
		t.Fatalf("a node cannot ask for its pod's token: %v", err)
	}
	if who, err := whoami(t, c.TokenConfig(token)); err != nil || !slices.Equal([]string(who.Extra["authentication.kubernetes.io/node-name"]), []string{"node-0"}) {
		t.Errorf("the token is %+v's, %v", who, err)
	}
	for name, spec := range map[string]authenticationv1.TokenRequestSpec{"unbound": {}, "of another node's pod": bound("node-1")} {
		if _, err := request(node, spec); !apierrors.IsForbidden(err) {
			t.Errorf("a node gets a token %s: %v", name, err)
		}
	}
	none := int64(0)
	if err := root.CoreV1().Pods("default").Delete(t.Context(), "on-node-0", metav1.DeleteOptions{GracePeriodSeconds: &none}); err != nil {
		t.Fatal(err)
	}
	if _, err := whoami(t, c.TokenConfig(token)); !apierrors.IsUnauthorized(err) {
		t.Errorf("the token outlived its pod: %v", err)
	}
}

// The bootstrap policy is whole, repaired at the next start, and left alone where an annotation says so.
func TestBootstrapPolicy(t *testing.T) {
	dir := t.TempDir()
	c := Start(t, Options{Dir: dir})
	for _, role := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		var got rbacv1.ClusterRole
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: role.Name}, &got); err != nil {
			t.Errorf("%s: %v", role.Name, err)
			continue
		}
		if len(got.Rules) == 0 || got.Labels["kubernetes.io/bootstrapping"] != "rbac-defaults" || got.Annotations["rbac.authorization.kubernetes.io/autoupdate"] != "true" {
			t.Errorf("%s is %+v", role.Name, got)
		}
	}
	for _, binding := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: binding.Name}, &rbacv1.ClusterRoleBinding{}); err != nil {
			t.Errorf("%s: %v", binding.Name, err)
		}
	}
	change := func(name string, change func(*rbacv1.ClusterRole)) {
		t.Helper()
		var role rbacv1.ClusterRole
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: name}, &role); err != nil {
			t.Fatal(err)
		}
		next := role.DeepCopy()
		change(next)
		if err := c.Client.Update(t.Context(), next); err != nil {
			t.Fatal(err)
		}
	}
	added := rbacv1.PolicyRule{APIGroups: []string{"example.com"}, Resources: []string{"things"}, Verbs: []string{"get"}}
	change("system:basic-user", func(role *rbacv1.ClusterRole) { role.Rules = []rbacv1.PolicyRule{added} })
	change("system:discovery", func(role *rbacv1.ClusterRole) {
		role.Annotations["rbac.authorization.kubernetes.io/autoupdate"] = "false"
		role.Rules = []rbacv1.PolicyRule{added}
	})
	if err := c.Client.Delete(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "view"}}); err != nil {
		t.Fatal(err)
	}
	c.Stop()
	c = Start(t, Options{Dir: dir})
	rules := func(name string) int {
		var role rbacv1.ClusterRole
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: name}, &role); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return len(role.Rules)
	}
	if rules("system:basic-user") < 2 || rules("system:discovery") != 1 || rules("view") == 0 {
		t.Errorf("after a restart: basic-user has %d rules, discovery %d, view %d", rules("system:basic-user"), rules("system:discovery"), rules("view"))
	}
}

func TestReviews(t *testing.T) {
	c := Start(t, Options{})
	bindRole(t, c, "view", rbacv1.Subject{Kind: "User", Name: "ann"})
	ann, asker := clientFor(t, c.Config("ann")).AuthorizationV1(), clientFor(t, c.Config("root", "system:masters")).AuthorizationV1()
	about := func(verb, resource string) *authorizationv1.ResourceAttributes {
		return &authorizationv1.ResourceAttributes{Namespace: "default", Verb: verb, Resource: resource}
	}
	c.Eventually("ann's role", func() error {
		review, err := ann.SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: about("get", "pods")}}, metav1.CreateOptions{})
		if err == nil && (!review.Status.Allowed || review.Status.Reason != `RBAC: allowed by ClusterRoleBinding "view-ann" of ClusterRole "view" to User "ann"`) {
			err = fmt.Errorf("status %+v", review.Status)
		}
		return err
	})
	rules, err := ann.SelfSubjectRulesReviews().Create(t.Context(), &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"}}, metav1.CreateOptions{})
	covers := func(verb, resource string) bool {
		return slices.ContainsFunc(rules.Status.ResourceRules, func(rule authorizationv1.ResourceRule) bool {
			return slices.Contains(rule.Verbs, verb) && slices.Contains(rule.Resources, resource)
		})
	}
	paths := slices.ContainsFunc(rules.Status.NonResourceRules, func(rule authorizationv1.NonResourceRule) bool {
		return slices.Contains(rule.NonResourceURLs, "/healthz")
	})
	if err != nil || !covers("get", "pods") || covers("delete", "pods") || covers("get", "secrets") || !paths || rules.Status.Incomplete {
		t.Errorf("rules %+v, %v", rules.Status, err)
	}
	for name, tc := range map[string]struct {
		spec    authorizationv1.SubjectAccessReviewSpec
		allowed bool
		refused func(error) bool
	}{
		"a user":        {authorizationv1.SubjectAccessReviewSpec{User: "ann", ResourceAttributes: about("list", "pods")}, true, nil},
		"may not":       {authorizationv1.SubjectAccessReviewSpec{User: "ann", ResourceAttributes: about("list", "secrets")}, false, nil},
		"by group":      {authorizationv1.SubjectAccessReviewSpec{Groups: []string{"system:masters"}, ResourceAttributes: about("delete", "secrets")}, true, nil},
		"nobody":        {authorizationv1.SubjectAccessReviewSpec{ResourceAttributes: about("get", "pods")}, false, apierrors.IsInvalid},
		"about both":    {authorizationv1.SubjectAccessReviewSpec{User: "ann", ResourceAttributes: about("get", "pods"), NonResourceAttributes: &authorizationv1.NonResourceAttributes{}}, false, apierrors.IsInvalid},
		"about nothing": {authorizationv1.SubjectAccessReviewSpec{User: "ann"}, false, apierrors.IsInvalid},
		"elsewhere": {authorizationv1.SubjectAccessReviewSpec{User: "ann", ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "other", Verb: "get", Resource: "pods"}},
			true, apierrors.IsInvalid}, // only the local review minds
	} {
		t.Run(name, func(t *testing.T) {
			review, err := asker.SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: tc.spec}, metav1.CreateOptions{})
			if name != "elsewhere" && tc.refused != nil && !tc.refused(err) || (tc.refused == nil || name == "elsewhere") && (err != nil || review.Status.Allowed != tc.allowed) {
				t.Errorf("SubjectAccessReview: %+v, %v", review, err)
			}
			local, err := asker.LocalSubjectAccessReviews("default").Create(t.Context(),
				&authorizationv1.LocalSubjectAccessReview{ObjectMeta: metav1.ObjectMeta{Namespace: "default"}, Spec: tc.spec}, metav1.CreateOptions{})
			if tc.refused != nil && err == nil || tc.refused == nil && (err != nil || local.Status.Allowed != tc.allowed) {
				t.Errorf("LocalSubjectAccessReview: %+v, %v", local, err)
			}
		})
	}
	if _, err := ann.SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("anybody may ask about others: %v", err)
	}
}

// What admission annotates, and why a request was allowed, is in the log.
func TestAuditLogOfACluster(t *testing.T) {
	dir := t.TempDir()
	policy, path := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "audit.log")
	if err := os.WriteFile(policy, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- {level: Metadata, resources: [{resources: [pods]}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Start(t, Options{Access: &config.Access{AnonymousAuth: true, Audit: config.Audit{PolicyFile: policy, LogPath: path}}})
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	root := clientFor(t, c.Config("root", "system:masters"))
	if err := c.Client.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	if _, err := root.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for line := range strings.Lines(string(data)) {
		var event auditv1.Event
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatal(err)
		}
		if event.Verb == "create" && event.Stage == auditv1.StageResponseComplete && event.ObjectRef.Name == "p" {
			found = event.Annotations["pod-security.kubernetes.io/enforce-policy"] != "" && event.Annotations["authorization.k8s.io/decision"] == "allow"
		}
	}
	if !found {
		t.Errorf("no event with admission's annotations in\n%s", data)
	}
}
