package api

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fuzzed is an API with a few ConfigMaps, and a function that sends it requests as the administrator.
func fuzzed(f *testing.F) func(method, target, contentType, body string) *httptest.ResponseRecorder {
	c := start(f, Options{})
	for _, name := range []string{"a", "b", "c", "d"} {
		c.mustCreate(f, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Data: map[string]string{"k": "v"}})
	}
	certPEM, _ := c.pki.leaf(f, "root", "system:masters")
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		f.Fatal(err)
	}
	return func(method, target, contentType, body string) *httptest.ResponseRecorder {
		request := httptest.NewRequest(method, target, strings.NewReader(body))
		request.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		if contentType != "" {
			request.Header.Set("Content-Type", contentType)
		}
		w := httptest.NewRecorder()
		c.ServeHTTP(w, request)
		return w
	}
}

// checkRefusal checks that what is no success is a Status that blames the client.
func checkRefusal(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	if w.Code < 300 {
		return
	}
	var status metav1.Status
	err := json.Unmarshal(w.Body.Bytes(), &status)
	if err == nil && strings.HasPrefix(status.Message, "failed to create typed patch object") {
		return // an apply with fields that the kind has not: upstream calls it 500
	}
	if err != nil || status.Kind != "Status" || int(status.Code) != w.Code || w.Code >= 500 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// FuzzBody: whatever a body holds, the answer is an object or a refusal.
func FuzzBody(f *testing.F) {
	const object = `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"new"},"data":{"k":"v"}}`
	for _, body := range []string{
		object, "kind: ConfigMap\napiVersion: v1\nmetadata: {generateName: x-}\n", "", "{", "null", "[]", `"x"`, "k8s\x00", "k8s\x00\n\x0f\n\x02v1\x12\tConfigMap\x12\x00",
		`{"kind":"Pod","apiVersion":"v1"}`, `{"kind":"ConfigMap","apiVersion":"v2"}`, `{"data":{"k":1}}`, `{"metadata":{"managedFields":[{"fieldsV1":{"f:x":1}}]}}`,
		"a: &a [*a]", "a: &a [x]\nb: [*a,*a]", "---\n---\n", `{"metadata":{"creationTimestamp":"x"}}`, strings.Repeat("[", 200), `{"binaryData":{"k":"%"}}`,
	} {
		for _, format := range []uint8{0, 1, 2} {
			f.Add(format, body)
		}
	}
	send := fuzzed(f)
	f.Fuzz(func(t *testing.T, format uint8, body string) {
		contentType := []string{typeJSON, typeYAML, typeProto}[format%3]
		checkRefusal(t, send(http.MethodPost, configMaps+"?dryRun=All", contentType, body))
		checkRefusal(t, send(http.MethodPut, configMaps+"/a?dryRun=All&fieldValidation=Strict", contentType, body))
		checkRefusal(t, send(http.MethodDelete, configMaps+"/a?dryRun=All", contentType, body))
	})
}

// FuzzPatch: whatever a patch holds, the answer is the object or a refusal, and the object stays as it is.
func FuzzPatch(f *testing.F) {
	for _, patch := range []string{
		`{"data":{"k":"w"}}`, `{"data":null}`, `{"data":{"k":null}}`, `[{"op":"add","path":"/data/x","value":"y"}]`, `[{"op":"remove","path":"/metadata"}]`,
		`[{"op":"copy","from":"/data","path":"/data/x"}]`, `[{"op":"move","from":"","path":"/data"}]`, `[{"op":"test","path":"/data/k","value":"v"}]`, `[{"op":"add","path":"/metadata/labels/-1","value":1}]`,
		"kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\ndata: {k: w}\n", `{"$patch":"replace"}`, `{"metadata":{"$patch":"delete"}}`, `{"metadata":{"finalizers":["x"],"$setElementOrder/finalizers":["x"]}}`,
		`{"metadata":{"$deleteFromPrimitiveList/finalizers":["x"]}}`, `{"metadata":{"$retainKeys":["name"]}}`, "", "null", "[]", "{", "a: &a [*a]", `{"metadata":{"managedFields":null}}`, `{"metadata":{"resourceVersion":"1"}}`,
		`[{"op":"test","path":""}]`, "kind: ConfigMap\napiVersion: v1\n0:", // made the server answer with 500 once
	} {
		for _, kind := range []uint8{0, 1, 2, 3} {
			f.Add(kind, patch)
		}
	}
	send := fuzzed(f)
	before := send(http.MethodGet, configMaps+"/a", "", "").Body.String()
	f.Fuzz(func(t *testing.T, kind uint8, patch string) {
		contentType := patchTypes(false)[kind%4]
		query := "?dryRun=All"
		if kind%4 == 3 {
			query += "&fieldManager=m&force=true"
		}
		checkRefusal(t, send(http.MethodPatch, configMaps+"/a"+query, contentType, patch))
		if after := send(http.MethodGet, configMaps+"/a", "", "").Body.String(); after != before {
			t.Errorf("a dry run changed the object from %s to %s", before, after)
		}
	})
}

// FuzzSelector: whatever the query of a list holds, it is read or refused, and reading it again gives the same.
func FuzzSelector(f *testing.F) {
	for _, query := range []string{
		"labelSelector=a=b", "labelSelector=a%20in%20(b,c),!d", "labelSelector=a>1", "labelSelector=a%20notin%20()", "labelSelector=(", "fieldSelector=metadata.name=a", "fieldSelector=metadata.name!=a,b=c",
		"fieldSelector=%5C", "watch=1", "watch=x", "limit=-1", "limit=1e9", "timeoutSeconds=99999999999999999999", "resourceVersion=-1", "resourceVersionMatch=Exact", "sendInitialEvents=true&watch=1",
		"continue=%00", "labelSelector=a&labelSelector=b", ";", "%", "&&&=", "allowWatchBookmarks=maybe",
	} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got, err := parseList(query)
		if err != nil {
			if status := (apierrors.APIStatus)(nil); !asStatus(err, &status) || status.Status().Code >= 500 {
				t.Errorf("%q: %v", query, err)
			}
			return
		}
		again := url.Values{}
		if got.Labels != nil {
			again.Set("labelSelector", got.Labels.String())
		}
		if got.Fields != nil {
			again.Set("fieldSelector", got.Fields.String())
		}
		twice, err := parseList(again.Encode())
		if err != nil {
			t.Fatalf("%q is read as %q, which is refused: %v", query, again.Encode(), err)
		}
		if got.Labels != nil && twice.Labels != nil && got.Labels.String() != twice.Labels.String() {
			t.Errorf("%q: labels %q, then %q", query, got.Labels, twice.Labels)
		}
	})
}

func asStatus(err error, status *apierrors.APIStatus) bool {
	found, ok := err.(apierrors.APIStatus)
	*status = found
	return ok
}

// FuzzContinueToken: whatever a token holds, the answer is a refusal or a page of the same namespace, in order.
func FuzzContinueToken(f *testing.F) {
	send := fuzzed(f)
	var first page
	if err := json.Unmarshal(send(http.MethodGet, configMaps+"?limit=1", "", "").Body.Bytes(), &first); err != nil {
		f.Fatal(err)
	}
	for _, token := range []string{
		first.Metadata.Continue, "", "x", "e30", forged(`{"v":"meta.k8s.io/v1","rv":-1,"start":"default/a\u0000"}`), forged(`{"v":"meta.k8s.io/v1","rv":-1,"start":"kube-system/a\u0000"}`),
		forged(`{"v":"meta.k8s.io/v1","rv":9223372036854775807,"start":"a\u0000"}`), forged(`{"v":"meta.k8s.io/v1","rv":1,"start":"../../secrets\u0000"}`), forged(`{"v":"meta.k8s.io/v1","rv":2,"start":"\u0000"}`),
		forged(`null`), forged(`[]`), forged(`{"rv":"1"}`), forged("{\"v\":\"meta.k8s.io/v1\",\"rv\":-1,\"start\":\"\xff\xff\\u0000\"}"),
	} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		w := send(http.MethodGet, configMaps+"?limit=2&continue="+url.QueryEscape(token), "", "")
		if w.Code == http.StatusGatewayTimeout { // a revision that may come
			return
		}
		if checkRefusal(t, w); w.Code != http.StatusOK {
			return
		}
		var got page
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		for i := range got.Items {
			if got.Items[i].Namespace != "default" {
				t.Errorf("an item of namespace %q", got.Items[i].Namespace)
			}
		}
		if names := got.names(); !slices.IsSorted(names) || len(names) > 2 {
			t.Errorf("the page holds %v", names)
		}
	})
}
