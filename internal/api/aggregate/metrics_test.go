package aggregate_test

import (
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	clientrest "k8s.io/client-go/rest"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration/v1/helper"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	metricsclient "k8s.io/metrics/pkg/client/clientset/versioned"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const metricsName = "v1beta1.metrics.k8s.io"

// condition waits until the APIService has the reason.
func (s *stage) condition(name, reason string) {
	s.Eventually("APIService "+name+" "+reason, func() error {
		var service apiregistrationv1.APIService
		if err := s.Client.Get(context.Background(), client.ObjectKey{Name: name}, &service); err != nil {
			return err
		}
		got := helper.GetAPIServiceConditionByType(&service, apiregistrationv1.Available)
		if got == nil || got.Reason != reason {
			return fmt.Errorf("the condition is %+v", got)
		}
		return nil
	})
}

// TestMetricsServer: an API server like metrics-server, made of upstream's library, works behind Gantry.
func TestMetricsServer(t *testing.T) {
	s := newStage(t)
	s.allow(t, "metrics-server", "system:auth-delegator", "extension-apiserver-authentication-reader")
	s.allow(t, "ann", "cluster-admin", "")
	serving := newCA(t, "metrics")
	port := int32(runExtension(t, s, serving.pair(t, pkix.Name{CommonName: "metrics"}, "metrics.kube-system.svc")))

	s.condition("v1.", "Local")
	s.condition("v1.apps", "Local")
	service := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: metricsName}, Spec: apiregistrationv1.APIServiceSpec{
		Group: "metrics.k8s.io", Version: "v1beta1", GroupPriorityMinimum: 17990, VersionPriority: 100, CABundle: serving.pem(),
		Service: &apiregistrationv1.ServiceReference{Namespace: "kube-system", Name: "metrics", Port: &port},
	}}
	if err := s.Client.Create(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	s.condition(metricsName, "ServiceNotFound")
	ann := s.config(t, "ann", "dev")
	clients, err := metricsclient.NewForConfig(ann)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := clients.MetricsV1beta1().NodeMetricses().List(t.Context(), metav1.ListOptions{}); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("before the service is there: %v, want 503", err)
	}
	if err := s.Client.Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "metrics"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}}); err != nil {
		t.Fatal(err)
	}
	s.condition(metricsName, "Passed")

	s.Eventually("a list through the aggregator", func() error {
		list, err := clients.MetricsV1beta1().NodeMetricses().List(t.Context(), metav1.ListOptions{})
		if err == nil && (len(list.Items) != 2 || list.Items[0].Annotations["user"] != "ann" || list.Items[0].Annotations["groups"] != "dev") {
			return fmt.Errorf("the list is %+v", list.Items)
		}
		return err
	})
	one, err := clients.MetricsV1beta1().NodeMetricses().Get(t.Context(), "n7", metav1.GetOptions{})
	if err != nil || one.Name != "n7" {
		t.Errorf("Get = %v, %v", one, err)
	}
	watching, err := clients.MetricsV1beta1().NodeMetricses().Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if event := <-watching.ResultChan(); event.Object.(*metricsv1beta1.NodeMetrics).Annotations["user"] != "ann" {
		t.Errorf("watch event = %+v", event)
	}
	watching.Stop()
	checkIdentity(t, s, ann)
	checkDiscovery(t, s, ann)
	checkOpenAPI(t, ann)

	if err := s.Client.Delete(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the group is gone", func() error {
		_, err := clients.MetricsV1beta1().NodeMetricses().List(t.Context(), metav1.ListOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("the list's error is %v", err)
		}
		return nil
	})
}

// checkIdentity: strangers are refused by the other server; impersonation arrives as whom it is about; forged headers
// do not arrive at all.
func checkIdentity(t *testing.T, s *stage, ann *clientrest.Config) {
	stranger, err := metricsclient.NewForConfig(s.config(t, "bob"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.MetricsV1beta1().NodeMetricses().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a stranger's list: %v, want 403", err)
	}
	as := clientrest.CopyConfig(ann)
	as.Impersonate = clientrest.ImpersonationConfig{UserName: "root2", Groups: []string{"system:masters"}, Extra: map[string][]string{"scopes": {"a"}}}
	other, err := metricsclient.NewForConfig(as)
	if err != nil {
		t.Fatal(err)
	}
	one, err := other.MetricsV1beta1().NodeMetricses().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil || one.Annotations["user"] != "root2" || one.Annotations["extra"] != "1" {
		t.Errorf("impersonated Get = %+v, %v", one, err)
	}
	forging := clientrest.CopyConfig(ann)
	forging.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			r = r.Clone(r.Context())
			r.Header.Set("X-Remote-User", "admin")
			r.Header.Add("X-Remote-Group", "system:masters")
			r.Header.Add("X-Remote-Extra-Scopes", "x")
			return next.RoundTrip(r)
		})
	})
	forger, err := metricsclient.NewForConfig(forging)
	if err != nil {
		t.Fatal(err)
	}
	one, err = forger.MetricsV1beta1().NodeMetricses().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil || one.Annotations["user"] != "ann" || one.Annotations["groups"] != "dev" || one.Annotations["extra"] == "2" {
		t.Errorf("Get with forged headers = %+v, %v", one, err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func checkDiscovery(t *testing.T, s *stage, ann *clientrest.Config) {
	for name, aggregated := range map[string]bool{"aggregated": true, "legacy": false} {
		s.Eventually("discovery "+name, func() error {
			found, err := discovery.NewDiscoveryClientForConfig(ann)
			if err != nil {
				return err
			}
			found.UseLegacyDiscovery = !aggregated
			groups, lists, err := found.ServerGroupsAndResources()
			if err != nil {
				return err
			}
			var order []string
			for _, group := range groups {
				order = append(order, group.Name)
			}
			// By priority: apiregistration, the core group is apart, metrics with 17990, then apps with 17800.
			if i := slices.Index(order, "metrics.k8s.io"); i < 0 || i > slices.Index(order, "apps") {
				return fmt.Errorf("the groups are %v", order)
			}
			for _, list := range lists {
				if list.GroupVersion == "metrics.k8s.io/v1beta1" && len(list.APIResources) == 1 && list.APIResources[0].Name == "nodes" {
					return nil
				}
			}
			return fmt.Errorf("metrics.k8s.io/v1beta1 has no nodes")
		})
	}
}

func checkOpenAPI(t *testing.T, ann *clientrest.Config) {
	found, err := discovery.NewDiscoveryClientForConfig(ann)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := found.OpenAPIV3().Paths()
	if err != nil || paths["apis/metrics.k8s.io/v1beta1"] == nil || paths["apis/apps/v1"] == nil {
		t.Fatalf("OpenAPI v3 has %d documents, %v", len(paths), err)
	}
	document, err := paths["apis/metrics.k8s.io/v1beta1"].Schema("application/json")
	if err != nil || !strings.Contains(string(document), "NodeMetrics") {
		t.Errorf("the schema of metrics: %.100s, %v", document, err)
	}
	data, err := found.RESTClient().Get().AbsPath("/openapi/v2").SetHeader("Accept", "application/json").DoRaw(t.Context())
	var swagger struct{ Paths map[string]json.RawMessage }
	if err == nil {
		err = json.Unmarshal(data, &swagger)
	}
	if err != nil || swagger.Paths["/apis/metrics.k8s.io/v1beta1/nodes"] == nil || swagger.Paths["/apis/apps/v1/namespaces/{namespace}/deployments"] == nil {
		t.Errorf("OpenAPI v2 has %d paths, %v", len(swagger.Paths), err)
	}
	if _, err := found.OpenAPISchema(); err != nil { // protobuf
		t.Errorf("OpenAPI v2 as protobuf: %v", err)
	}
}

// TestIncomingFrontProxy: who has a front proxy's certificate may say whom it speaks for; nobody else.
func TestIncomingFrontProxy(t *testing.T) {
	s := newStage(t)
	for name, tc := range map[string]struct {
		cert *tls.Certificate
		user string
	}{
		"front proxy":    {pointer(s.proxies.pair(t, pkix.Name{CommonName: "front-proxy-client"})), "carol"},
		"other name":     {pointer(s.proxies.pair(t, pkix.Name{CommonName: "someone"})), ""},
		"client's CA":    {pointer(s.clients.pair(t, pkix.Name{CommonName: "front-proxy-client"})), "front-proxy-client"},
		"no certificate": {nil, "system:anonymous"},
		"unknown CA":     {pointer(newCA(t, "x").pair(t, pkix.Name{CommonName: "front-proxy-client"})), ""},
	} {
		t.Run(name, func(t *testing.T) {
			config := &tls.Config{RootCAs: s.clients.pool, MinVersion: tls.VersionTLS12}
			if tc.cert != nil {
				config.Certificates = []tls.Certificate{*tc.cert}
			}
			transport := &http.Transport{TLSClientConfig: config}
			defer transport.CloseIdleConnections()
			request, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+s.address+"/apis/authentication.k8s.io/v1/selfsubjectreviews",
				strings.NewReader(`{"kind":"SelfSubjectReview","apiVersion":"authentication.k8s.io/v1"}`))
			request.Header.Set("Content-Type", "application/json")
			request.Header.Set("X-Remote-User", "carol")
			request.Header.Set("X-Remote-Group", "system:masters")
			request.Header.Set("X-Remote-Uid", "7")
			request.Header.Set("X-Remote-Extra-Team%2fcolor", "red")
			response, err := transport.RoundTrip(request)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = response.Body.Close() }()
			var review struct {
				Message string
				Status  json.RawMessage
			}
			var status struct {
				UserInfo struct {
					Username, UID string
					Groups        []string
					Extra         map[string][]string
				}
			}
			if err := json.NewDecoder(response.Body).Decode(&review); err != nil {
				t.Fatal(err)
			}
			_ = json.Unmarshal(review.Status, &status) // of an error it is a word
			got := status.UserInfo
			switch tc.user {
			case "":
				if response.StatusCode != http.StatusUnauthorized {
					t.Errorf("%s: %+v, want 401", response.Status, got)
				}
			case "carol":
				if got.Username != "carol" || got.UID != "7" || !slices.Contains(got.Groups, "system:masters") || got.Extra["team/color"][0] != "red" {
					t.Errorf("%s: %+v", response.Status, got)
				}
			default:
				if got.Username == "carol" || (got.Username != tc.user && !strings.Contains(review.Message, tc.user)) {
					t.Errorf("%s: %+v %s, want %s", response.Status, got, review.Message, tc.user)
				}
			}
		})
	}
}

func pointer[T any](value T) *T { return &value }
