package api

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// events reads a watch until it has the wanted number of events or the server ends it, as "TYPE name", a bookmark with
// its revision, marked with a star at the end of the initial ones.
func (c *cluster) events(t *testing.T, query url.Values, accept string, count int) (code int, out []string) {
	t.Helper()
	transport := c.transport(t, "root", "system:masters")
	query.Set("watch", "1")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+c.addr+configMaps+"?"+query.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", accept)
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	scanner := bufio.NewScanner(response.Body)
	scanner.Buffer(nil, 1<<20)
	for len(out) < count && scanner.Scan() {
		var event struct {
			Type   string
			Object struct {
				metav1.PartialObjectMetadata
				Code int
			}
			Message string
		}
		if err := json.Unmarshal(scanner.Bytes(), &event); err != nil {
			t.Fatalf("%s: %v", scanner.Text(), err)
		}
		switch {
		case response.StatusCode != http.StatusOK:
			out = append(out, event.Message)
		case event.Type == "ERROR":
			out = append(out, fmt.Sprintf("ERROR %d", event.Object.Code))
		case event.Type == "BOOKMARK" && event.Object.Annotations[metav1.InitialEventsAnnotationKey] == "true":
			out = append(out, "BOOKMARK* "+event.Object.ResourceVersion)
		case event.Type == "BOOKMARK":
			out = append(out, "BOOKMARK "+event.Object.ResourceVersion)
		default:
			out = append(out, event.Type+" "+event.Object.Kind+" "+event.Object.Name)
		}
	}
	return response.StatusCode, out
}

// TestWatchStarts holds the beginnings of watches against the table in Kubernetes' documentation (API concepts,
// "Streaming lists" and "resourceVersion in watch").
func TestWatchStarts(t *testing.T) {
	c := start(t, Options{})
	c.listen(t)
	first := c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}).GetResourceVersion()
	last := c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "b", Labels: map[string]string{"x": "y"}}}).GetResourceVersion()
	const plain = "application/json"
	both := []string{"ADDED ConfigMap a", "ADDED ConfigMap b"}
	for name, tc := range map[string]struct {
		query string
		code  int
		want  []string
	}{
		"unset: state, then changes":       {"", 200, both},
		"0: any state, then changes":       {"resourceVersion=0", 200, both},
		"revision: changes after it":       {"resourceVersion=" + first, 200, []string{"ADDED ConfigMap b"}},
		"revision 1: too old":              {"resourceVersion=1&timeoutSeconds=1", 200, nil},
		"streaming list":                   {"sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", 200, append(slices.Clone(both), "BOOKMARK* "+last)},
		"streaming list from 0":            {"sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=0", 200, append(slices.Clone(both), "BOOKMARK* "+last)},
		"streaming list not older":         {"sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=" + first, 200, append(slices.Clone(both), "BOOKMARK* "+last)},
		"streaming list of a selection":    {"sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=x%3Dy", 200, []string{"ADDED ConfigMap b", "BOOKMARK* " + last}},
		"streaming list of nothing":        {"sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=x%3Dz", 200, []string{"BOOKMARK* " + last}},
		"streaming list without bookmarks": {"sendInitialEvents=true&resourceVersionMatch=NotOlderThan", 200, both},
		"no initial events":                {"sendInitialEvents=false&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1", 200, []string{"BOOKMARK " + last}},
		"initial events without match":     {"sendInitialEvents=true", 422, []string{"sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"}},
		"match without initial events":     {"resourceVersionMatch=NotOlderThan", 422, []string{"resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"}},
		"exact match":                      {"sendInitialEvents=true&resourceVersionMatch=Exact", 422, []string{"supported values"}},
		"streaming list of the far future": {"sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=999999", 504, []string{"Too large resource version"}},
	} {
		t.Run(name, func(t *testing.T) {
			query, err := url.ParseQuery(tc.query)
			if err != nil {
				t.Fatal(err)
			}
			code, got := c.events(t, query, plain, max(1, len(tc.want)))
			if code != tc.code {
				t.Fatalf("%d %v, want %d", code, got, tc.code)
			}
			if code != http.StatusOK {
				if !strings.Contains(got[0], tc.want[0]) {
					t.Errorf("%q, want %q in it", got[0], tc.want[0])
				}
				return
			}
			if tc.want == nil { // the history of a new store reaches back to its first revision, or it says 410
				return
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}

// TestMetadataOnly: gets, lists, watches and their bookmarks come as metadata when a client asks for no more.
func TestMetadataOnly(t *testing.T) {
	c := start(t, Options{})
	c.listen(t)
	last := c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"k": "hidden"}}).GetResourceVersion()
	const one, list = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
	for path, tc := range map[string]struct{ accept, kind string }{
		configMaps + "/a": {one, "PartialObjectMetadata"}, configMaps: {list, "PartialObjectMetadataList"},
	} {
		w := c.do(t, "root", "GET", path, nil, "Accept", tc.accept)
		if w.Code != 200 || !strings.HasPrefix(w.Body.String(), `{"kind":"`+tc.kind+`","apiVersion":"meta.k8s.io/v1"`) || strings.Contains(w.Body.String(), "hidden") ||
			!strings.Contains(w.Body.String(), `"name":"a"`) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	query := url.Values{"sendInitialEvents": {"true"}, "resourceVersionMatch": {"NotOlderThan"}, "allowWatchBookmarks": {"true"}}
	_, got := c.events(t, query, one, 2)
	if want := []string{"ADDED PartialObjectMetadata a", "BOOKMARK* " + last}; !slices.Equal(got, want) {
		t.Errorf("watch: %v, want %v", got, want)
	}
	if w := c.do(t, "root", "GET", configMaps, nil, "Accept", one); w.Code != 406 && w.Code != 200 {
		t.Errorf("a list as one object: %d", w.Code)
	}
}

// TestInformerStreamsItsList: client-go's reflector fills itself by a streaming list, and is synced by the bookmark.
func TestInformerStreamsItsList(t *testing.T) {
	c := start(t, Options{})
	for i := range 20 {
		c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%d", i)}})
	}
	config := c.config(t, "root", "application/vnd.kubernetes.protobuf", "system:masters")
	seen := make(chan string, 100)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			seen <- r.URL.RawQuery
			return next.RoundTrip(r)
		})
	})
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	factory := informers.NewSharedInformerFactory(clients, 0)
	informer := factory.Core().V1().ConfigMaps().Informer()
	stop := make(chan struct{})
	factory.Start(stop)
	defer factory.Shutdown()
	defer close(stop)
	deadline := time.After(30 * time.Second)
	for !informer.HasSynced() {
		select {
		case <-deadline:
			t.Fatal("the informer is not synced")
		case <-time.After(5 * time.Millisecond):
		}
	}
	if !cache.WaitForCacheSync(stop, informer.HasSynced) || len(informer.GetStore().List()) != 20 {
		t.Errorf("the informer has %d objects", len(informer.GetStore().List()))
	}
	if query := <-seen; !strings.Contains(query, "sendInitialEvents=true") {
		t.Errorf("its first request was %q", query)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestDeleteCollection: what a selector, a limit and a namespace select is deleted and returned, and nothing else.
func TestDeleteCollection(t *testing.T) {
	c := start(t, Options{})
	c.mustCreate(t, "namespaces", "", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
	for _, name := range []string{"a", "b", "c", "d"} {
		c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"odd": fmt.Sprint(name == "a" || name == "c")}}})
	}
	c.mustCreate(t, "configmaps", "other", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "e", Labels: map[string]string{"odd": "true"}}})
	left := func() []string {
		_, all := c.page(t, url.Values{})
		return all.names()
	}
	for _, tc := range []struct {
		query, body string
		code        int
		left        []string
	}{
		{"labelSelector=odd%3Dtrue&dryRun=All", "", 200, []string{"a", "b", "c", "d"}},
		{"labelSelector=odd%3Dtrue", `{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"resourceVersion":"1"}}`, 409, []string{"a", "b", "c", "d"}},
		{"labelSelector=odd%3Dtrue", "", 200, []string{"b", "d"}},
		{"fieldSelector=metadata.name%3Dd", `{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}`, 200, []string{"b"}},
		{"labelSelector=%28", "", 400, []string{"b"}},
		{"", "", 200, nil},
	} {
		w := c.do(t, "root", "DELETE", configMaps+"?"+tc.query, strings.NewReader(tc.body), "Content-Type", "application/json")
		if got := left(); w.Code != tc.code || !slices.Equal(got, tc.left) {
			t.Errorf("%s %s: %d %s leaves %v, want %d and %v", tc.query, tc.body, w.Code, w.Body, got, tc.code, tc.left)
		}
	}
	if w := c.do(t, "root", "GET", "/api/v1/namespaces/other/configmaps/e", nil); w.Code != 200 {
		t.Errorf("another namespace's object: %d", w.Code)
	}
	if w := c.do(t, "root", "DELETE", "/api/v1/configmaps", nil); w.Code != 405 {
		t.Errorf("of all namespaces: %d", w.Code)
	}
}
