package custom_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	clientset "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/internal/gantrytest"
)

// cluster is a control plane with its API on loopback and clients that may do everything.
type cluster struct {
	*gantrytest.Cluster
	config  *rest.Config
	crds    *clientset.Clientset
	dynamic dynamic.Interface

	warnings *warnings
}

// warnings keeps what the server warned of.
type warnings struct{ texts chan string }

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	select {
	case w.texts <- text:
	default:
	}
}

// take returns the warnings since it was called last.
func (w *warnings) take() []string {
	var out []string
	for {
		select {
		case text := <-w.texts:
			out = append(out, text)
		default:
			return out
		}
	}
}

func start(t testing.TB, opts gantrytest.Options) *cluster {
	t.Helper()
	c := &cluster{Cluster: gantrytest.Start(t, opts), warnings: &warnings{make(chan string, 100)}}
	server := httptest.NewUnstartedServer(c.Handler)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	c.config = &rest.Config{
		Host: server.URL, BearerToken: c.token(t), QPS: -1, UserAgent: "customtest/1", WarningHandler: c.warnings,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true},
	}
	var err error
	if c.crds, err = clientset.NewForConfig(c.config); err != nil {
		t.Fatal(err)
	}
	if c.dynamic, err = dynamic.NewForConfig(c.config); err != nil {
		t.Fatal(err)
	}
	return c
}

// token is of a service account that may do everything.
func (c *cluster) token(t testing.TB) string {
	t.Helper()
	ctx := context.Background()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "tester"}}
	if err := c.Client.Create(ctx, account); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "tester"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "kube-system", Name: "tester"}}}
	if err := c.Client.Create(ctx, binding); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	hour := int64(3600)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hour}}
	if err := c.Client.SubResource("token").Create(ctx, account, request); err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}

// define creates a definition and waits until it is established.
func (c *cluster) define(t testing.TB, manifest string) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	crd := parse(t, manifest)
	made, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), crd, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("creating %s: %v", crd.Name, err)
	}
	return c.established(t, made.Name)
}

func parse(t testing.TB, manifest string) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict([]byte(manifest), crd); err != nil {
		t.Fatalf("reading a definition: %v", err)
	}
	return crd
}

func (c *cluster) established(t testing.TB, name string) (crd *apiextensionsv1.CustomResourceDefinition) {
	t.Helper()
	c.Eventually(name+" is established", func() (err error) {
		crd, err = c.crds.ApiextensionsV1().CustomResourceDefinitions().Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && !apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			err = fmt.Errorf("conditions are %+v", crd.Status.Conditions)
		}
		return err
	})
	return crd
}

// update changes a definition and waits until that is served.
func (c *cluster) update(t testing.TB, name string, change func(crd *apiextensionsv1.CustomResourceDefinition)) {
	t.Helper()
	c.Eventually("changing "+name, func() error {
		crd, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(crd)
		_, err = c.crds.ApiextensionsV1().CustomResourceDefinitions().Update(t.Context(), crd, metav1.UpdateOptions{})
		if apierrors.IsInvalid(err) {
			t.Fatal(err)
		}
		return err
	})
}

func (c *cluster) of(resource schema.GroupVersionResource) dynamic.ResourceInterface {
	return c.dynamic.Resource(resource).Namespace("default")
}

// do sends a request with a body and returns code and body of the answer.
func (c *cluster) do(t testing.TB, method, path, body string, header ...string) (int, string) {
	t.Helper()
	client, err := rest.HTTPClientFor(c.config)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, c.config.Host+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

// document reads a JSON document.
func (c *cluster) document(t testing.TB, path string, into any) {
	t.Helper()
	code, body := c.do(t, http.MethodGet, path, "", "Accept", "application/json")
	if code != http.StatusOK {
		t.Fatalf("GET %s: %d %s", path, code, body)
	}
	if err := json.Unmarshal([]byte(body), into); err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
}

// within runs check until it is nil, for as long as a client may have to wait.
func within(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	begin := time.Now()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Since(begin) > limit {
			t.Fatalf("%s after %v: %v", what, limit, err)
		}
		<-time.After(2 * time.Millisecond)
	}
}

var errPending = errors.New("not yet")
