package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
)

func TestErrorsAreUpstreams(t *testing.T) {
	c := start(t, Options{MaxBodyBytes: 2000})
	const maps = "/api/v1/namespaces/default/configmaps"
	for name, tc := range map[string]struct {
		as, method, path, body, header, value string
		code                                  int
		reason                                metav1.StatusReason
		say                                   string
	}{
		"anonymous":          {"", "GET", maps, "", "", "", 403, "Forbidden", `configmaps is forbidden: User "system:anonymous" cannot list resource "configmaps" in API group "" in the namespace "default"`},
		"bad token":          {"", "GET", maps, "", "Authorization", "Bearer x", 401, "Unauthorized", "Unauthorized"},
		"not allowed":        {"ann", "GET", "/api/v1/nodes/n", "", "", "", 403, "Forbidden", `nodes "n" is forbidden: User "ann" cannot get resource "nodes" in API group "" at the cluster scope`},
		"path not allowed":   {"ann", "GET", "/metrics", "", "", "", 403, "Forbidden", `forbidden: User "ann" cannot get path "/metrics"`},
		"no object":          {"root", "GET", maps + "/x", "", "", "", 404, "NotFound", `configmaps "x" not found`},
		"no resource":        {"root", "GET", "/api/v1/foos", "", "", "", 404, "NotFound", "the server could not find the requested resource"},
		"no method":          {"root", "PUT", maps, "{}", "", "", 405, "MethodNotAllowed", "the server does not allow this method on the requested resource"},
		"create everywhere":  {"root", "POST", "/api/v1/configmaps", "{}", "", "", 405, "MethodNotAllowed", ""},
		"not acceptable":     {"root", "GET", maps, "", "Accept", "text/html", 406, "NotAcceptable", "only the following media types are accepted: application/json"},
		"unsupported body":   {"root", "POST", maps, "{}", "Content-Type", "text/plain", 415, "UnsupportedMediaType", "the body of the request was in an unknown format"},
		"unsupported patch":  {"root", "PATCH", maps + "/x", "{}", "Content-Type", "application/json", 415, "UnsupportedMediaType", "application/apply-patch+yaml"},
		"too large":          {"root", "POST", maps, strings.Repeat(" ", 3000), "", "", 413, "RequestEntityTooLarge", "Request entity too large: limit is 2000"},
		"no JSON":            {"root", "POST", maps, "{", "", "", 400, "BadRequest", "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error"},
		"another kind":       {"root", "POST", maps, `{"kind":"Pod","apiVersion":"v1"}`, "", "", 400, "BadRequest", "Pod in version \"v1\" cannot be handled as a ConfigMap"},
		"another version":    {"root", "POST", maps, `{"kind":"Deployment","apiVersion":"apps/v1"}`, "", "", 400, "BadRequest", ""},
		"unknown field":      {"root", "POST", maps + "?fieldValidation=Strict", `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"s"},"daat":{}}`, "", "", 400, "BadRequest", `ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "daat"`},
		"duplicate field":    {"root", "POST", maps + "?fieldValidation=Strict", `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"s","name":"t"}}`, "", "", 400, "BadRequest", `duplicate field "metadata.name"`},
		"bad directive":      {"root", "POST", maps + "?fieldValidation=Maybe", `{}`, "", "", 422, "Invalid", "fieldValidation"},
		"bad selector":       {"root", "GET", maps + "?labelSelector=%21%21", "", "", "", 400, "BadRequest", "unable to parse requirement"},
		"bad continue":       {"root", "GET", maps + "?continue=zzz", "", "", "", 400, "BadRequest", "continue key is not valid"},
		"wrong scope":        {"root", "GET", "/api/v1/namespaces/default/nodes/n", "", "", "", 404, "NotFound", ""},
		"impersonate no one": {"root", "GET", maps, "", "Impersonate-Group", "g", 400, "BadRequest", "without impersonating a user"},
		"impersonate ann":    {"root", "GET", "/api/v1/nodes", "", "Impersonate-User", "ann", 403, "Forbidden", `User "ann" cannot list resource "nodes"`},
		"may not":            {"ann", "GET", maps, "", "Impersonate-User", "root", 403, "Forbidden", `configmaps is forbidden: User "ann" cannot impersonate-on:user-info:list resource "configmaps" in API group "" in the namespace "default"`},
		"no subresource":     {"root", "GET", maps + "/x/status", "", "", "", 404, "NotFound", ""},
		"log of no pod":      {"root", "GET", "/api/v1/namespaces/default/pods/x/log", "", "", "", 404, "NotFound", `pods "x" not found`},
	} {
		t.Run(name, func(t *testing.T) {
			header := []string{}
			if tc.header != "" {
				header = []string{tc.header, tc.value}
			}
			w := c.do(t, tc.as, tc.method, tc.path, strings.NewReader(tc.body), header...)
			var status metav1.Status
			if err := json.Unmarshal(w.Body.Bytes(), &status); err != nil {
				t.Fatalf("%d %s: %v", w.Code, w.Body, err)
			}
			if w.Code != tc.code || status.Reason != tc.reason || status.Kind != "Status" || !strings.Contains(status.Message, tc.say) {
				t.Errorf("%d %s; want %d %s: %s", w.Code, w.Body, tc.code, tc.reason, tc.say)
			}
			if w.Header().Get("Audit-Id") == "" || w.Header().Get("Cache-Control") != "no-cache, private" {
				t.Errorf("headers are %v", w.Header())
			}
		})
	}
}

func TestUnknownPathIsPlain404(t *testing.T) {
	c := start(t, Options{})
	for _, path := range []string{"/foo", "/apis/none.example.com/v1/things", "/apis/none.example.com", "/healthz/none"} {
		if w := c.do(t, "root", "GET", path, nil); w.Code != 404 || w.Body.String() != "404 page not found\n" {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestFieldValidationWarns(t *testing.T) {
	c := start(t, Options{})
	body := `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"w"},"daat":{}}`
	w := c.do(t, "root", "POST", "/api/v1/namespaces/default/configmaps", strings.NewReader(body))
	if w.Code != 201 || w.Header().Get("Warning") != `299 - "unknown field \"daat\""` {
		t.Errorf("%d %s, warning %q", w.Code, w.Body, w.Header().Get("Warning"))
	}
	w = c.do(t, "root", "POST", "/api/v1/namespaces/default/configmaps?fieldValidation=Ignore&dryRun=All", strings.NewReader(strings.Replace(body, `"w"`, `"v"`, 1)))
	if w.Code != 201 || w.Header().Get("Warning") != "" {
		t.Errorf("%d %s, warning %q", w.Code, w.Body, w.Header().Get("Warning"))
	}
	if w = c.do(t, "root", "GET", "/api/v1/namespaces/default/configmaps/v", nil); w.Code != 404 {
		t.Errorf("a dry run left %s", w.Body)
	}
}

func TestDeleteAnswers(t *testing.T) {
	c := start(t, Options{})
	made := c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "d"}})
	wrong := `{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"x"}}`
	if w := c.do(t, "root", "DELETE", "/api/v1/namespaces/default/configmaps/d", strings.NewReader(wrong)); w.Code != 409 {
		t.Errorf("with another UID: %d %s", w.Code, w.Body)
	}
	w := c.do(t, "root", "DELETE", "/api/v1/namespaces/default/configmaps/d?propagationPolicy=Background", nil)
	want := `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success","details":{"name":"d","kind":"configmaps","uid":"` + string(made.GetUID()) + `"}}` + "\n"
	if w.Code != 200 || w.Body.String() != want {
		t.Errorf("%d %s, want %s", w.Code, w.Body, want)
	}
	held := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "h", Finalizers: []string{"example.com/f"}}}
	c.mustCreate(t, "configmaps", "default", held)
	if w = c.do(t, "root", "DELETE", "/api/v1/namespaces/default/configmaps/h", nil); w.Code != 200 || !strings.Contains(w.Body.String(), `"deletionTimestamp"`) {
		t.Errorf("held by a finalizer: %d %s", w.Code, w.Body)
	}
}

func TestEncodings(t *testing.T) {
	c := start(t, Options{})
	c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "e"}, Data: map[string]string{"big": strings.Repeat("x", 200_000)}})
	const path = "/api/v1/namespaces/default/configmaps/e"
	if w := c.do(t, "root", "GET", path, nil, "Accept", "application/yaml"); !strings.HasPrefix(w.Body.String(), "apiVersion: v1\n") || w.Header().Get("Content-Type") != "application/yaml" {
		t.Errorf("YAML: %.80s", w.Body)
	}
	if w := c.do(t, "root", "GET", path+"?pretty=true", nil); !strings.HasPrefix(w.Body.String(), "{\n  \"kind\": \"ConfigMap\",\n") {
		t.Errorf("pretty: %.80s", w.Body)
	}
	if w := c.do(t, "root", "GET", path, nil, "Accept-Encoding", "gzip"); w.Header().Get("Content-Encoding") != "gzip" || w.Body.Len() > 10_000 {
		t.Errorf("gzip: %v, %d bytes", w.Header(), w.Body.Len())
	}
	yaml := "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yaml\n"
	if w := c.do(t, "root", "POST", "/api/v1/namespaces/default/configmaps", strings.NewReader(yaml), "Content-Type", "application/yaml"); w.Code != 201 {
		t.Errorf("YAML body: %d %s", w.Code, w.Body)
	}
	if w := c.do(t, "root", "GET", path, nil, "Accept", "application/json;q=0.1, application/vnd.kubernetes.protobuf"); !strings.HasPrefix(w.Body.String(), "k8s\x00") {
		t.Errorf("quality: %.20q", w.Body)
	}
}

func TestHealth(t *testing.T) {
	broken := errors.New("no disk")
	c := start(t, Options{Checks: []Check{{Name: "etcd", Live: true, Probe: func(context.Context) error { return nil }},
		{Name: "disk", Probe: func(context.Context) error { return broken }}}})
	for path, want := range map[string]struct {
		code int
		body string
	}{
		"/livez":               {200, "ok"},
		"/livez?verbose":       {200, "[+]ping ok\n[+]etcd ok\nlivez check passed\n"},
		"/readyz":              {500, "[+]ping ok\n[+]etcd ok\n[-]disk failed: reason withheld\nreadyz check failed\n"},
		"/readyz?exclude=disk": {200, "ok"},
		"/healthz/etcd":        {200, "ok"},
	} {
		if w := c.do(t, "", "GET", path, nil); w.Code != want.code || w.Body.String() != want.body {
			t.Errorf("%s: %d %q, want %d %q", path, w.Code, w.Body, want.code, want.body)
		}
	}
}

func TestMetricsCountRequests(t *testing.T) {
	c := start(t, Options{})
	c.do(t, "root", "GET", "/api/v1/namespaces/default/configmaps/none", nil)
	w := c.do(t, "root", "GET", "/metrics", nil)
	want := `apiserver_request_total{code="404",component="apiserver",group="",resource="configmaps",scope="resource",subresource="",verb="GET",version="v1"} 1`
	if !strings.Contains(w.Body.String(), want) {
		t.Errorf("/metrics lacks %s", want)
	}
}

func TestAggregatedDiscoveryIsNotSentTwice(t *testing.T) {
	c := start(t, Options{})
	const accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
	w := c.do(t, "ann", "GET", "/apis", nil, "Accept", accept)
	if w.Code != 200 || !strings.Contains(w.Header().Get("Content-Type"), "as=APIGroupDiscoveryList") {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	if w = c.do(t, "ann", "GET", "/apis", nil, "Accept", accept, "If-None-Match", w.Header().Get("ETag")); w.Code != 304 || w.Body.Len() != 0 {
		t.Errorf("with the ETag: %d, %d bytes", w.Code, w.Body.Len())
	}
}

// FuzzPathAgainstUpstream holds the parser of paths against upstream's.
func FuzzPathAgainstUpstream(f *testing.F) {
	for _, path := range []string{
		"/", "/api", "/api/", "/api/v1", "/api/v1/pods", "/api/v1/namespaces/a", "/api/v1/namespaces/a/status", "/api/v1/namespaces/a/finalize",
		"/api/v1/namespaces/a/pods", "/api/v1/namespaces/a/pods/b/log", "/api/v1/namespaces/a/services/b/proxy/x/y/", "/apis", "/apis/apps",
		"/apis/apps/v1", "/apis/apps/v1/deployments", "/apis/apps/v1/namespaces/a/deployments/b/scale", "/api/v1/watch/pods", "/api/v1/watch",
		"/api/v1/proxy/nodes/a", "/api/v1/watch/namespaces/a/pods/b", "//api//v1", "/api/v1//pods", "/healthz/ping", "/api/v1/namespaces//pods",
	} {
		for _, method := range []string{"GET", "POST", "DELETE", "OPTIONS"} {
			f.Add(method, path)
		}
	}
	upstream := request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	f.Fuzz(func(t *testing.T, method, path string) {
		want, err := upstream.NewRequestInfo(&http.Request{Method: method, URL: &url.URL{Path: path}})
		got := parsePath(method, path)
		if got.bad != (err != nil) {
			t.Fatalf("%s %q: bad is %v, upstream says %v", method, path, got.bad, err)
		}
		if err != nil {
			return
		}
		want.Parts, want.APIPrefix, got.APIPrefix = nil, "", ""
		a, _ := json.Marshal(want)
		b, _ := json.Marshal(&got.RequestInfo)
		if string(a) != string(b) {
			t.Fatalf("%s %q:\n%s\nupstream:\n%s", method, path, b, a)
		}
	})
}

// FuzzQueryAndBody looks for panics and for answers that are no Status.
func FuzzQueryAndBody(f *testing.F) {
	f.Add("GET", "limit=1&continue=x", "application/json", "{}")
	f.Add("POST", "dryRun=All", "application/yaml", "a: b")
	f.Add("PATCH", "fieldManager=x&force=true", "application/apply-patch+yaml", "kind: ConfigMap")
	f.Add("PATCH", "", "application/json-patch+json", "[]")
	f.Add("DELETE", "gracePeriodSeconds=-1", "application/vnd.kubernetes.protobuf", "k8s\x00")
	c := start(f, Options{RequestTimeout: 1 << 30})
	root := c.do(f, "root", "GET", "/version", nil)
	if root.Code != 200 {
		f.Fatal(root.Body)
	}
	f.Fuzz(func(t *testing.T, method, query, contentType, body string) {
		switch method {
		case "GET", "POST", "PATCH", "DELETE", "PUT":
		default:
			return
		}
		if strings.Contains(query, "watch") {
			return
		}
		req := httptest.NewRequestWithContext(t.Context(), method, "/api/v1/namespaces/default/configmaps/f", strings.NewReader(body))
		req.URL.RawQuery = query
		req.Header.Set("Content-Type", contentType)
		req.TLS = rootTLS(t, c)
		w := httptest.NewRecorder()
		c.ServeHTTP(w, req)
		if w.Code == 500 && strings.Contains(w.Body.String(), "panic") || w.Code >= 400 && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}
