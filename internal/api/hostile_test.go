package api

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const configMaps = "/api/v1/namespaces/default/configmaps"

// heap is how many bytes are in use after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools let go of
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapInuse + stats.StackInuse)
}

// refused checks that an answer is a Status of one of the codes.
func refused(t *testing.T, what string, code int, body []byte, want ...int) {
	t.Helper()
	var status metav1.Status
	if err := json.Unmarshal(body, &status); err != nil || status.Kind != "Status" || status.Message == "" {
		t.Errorf("%s: %d %.200s; want a Status with a message", what, code, body)
		return
	}
	for _, one := range want {
		if code == one {
			return
		}
	}
	t.Errorf("%s: %d %.200s; want %v", what, code, status.Message, want)
}

// TestHugeBodies: bodies over 3 MB are refused with 413, whether they say their length or not.
func TestHugeBodies(t *testing.T) {
	c := start(t, Options{})
	c.listen(t)
	huge := `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data":{"k":"` + strings.Repeat("x", 4<<20) + `"}}`
	patches := map[string]string{"json": "application/json-patch+json", "merge": "application/merge-patch+json",
		"strategic": "application/strategic-merge-patch+json", "apply": "application/apply-patch+yaml"}
	for name, proto := range map[string]string{"HTTP/1.1": "", "HTTP/2": "h2"} {
		transport := c.transport(t, "root", "system:masters")
		if proto == "" {
			transport.ForceAttemptHTTP2, transport.TLSNextProto = false, map[string]func(string, *tls.Conn) http.RoundTripper{}
		}
		for _, known := range []bool{true, false} {
			send := func(method, path, contentType string) {
				t.Helper()
				var body io.Reader = strings.NewReader(huge)
				if !known {
					body = io.MultiReader(body)
				}
				request, err := http.NewRequestWithContext(t.Context(), method, "https://"+c.addr+path, body)
				if err != nil {
					t.Fatal(err)
				}
				request.Header.Set("Content-Type", contentType)
				response, err := transport.RoundTrip(request)
				if err != nil {
					t.Fatalf("%s %s: %v", name, method, err)
				}
				data, _ := io.ReadAll(response.Body)
				_ = response.Body.Close()
				refused(t, fmt.Sprintf("%s, %s, length known %v", name, method, known), response.StatusCode, data, http.StatusRequestEntityTooLarge)
			}
			send("POST", configMaps, "application/json")
			send("PUT", configMaps+"/a", "application/yaml")
			send("DELETE", configMaps, "application/json")
			for _, kind := range patches {
				send("PATCH", configMaps+"/a", kind)
			}
		}
	}
}

// TestDeepAndExplodingBodies: what is nested 100,000 deep, and what grows when it is read, is refused as bad input, soon,
// and without the memory that it asks for.
func TestDeepAndExplodingBodies(t *testing.T) {
	const depth = 100_000
	deep := func(open, end string) string { return strings.Repeat(open, depth) + "1" + strings.Repeat(end, depth) }
	object := func(value string) string {
		return `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data":` + value + `}`
	}
	bomb := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 10; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	bomb = "kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\n" + bomb
	copies := `[{"op":"add","path":"/data/k0","value":"` + strings.Repeat("x", 1000) + `"}`
	for i := range 200 {
		copies += fmt.Sprintf(`,{"op":"copy","from":"/data","path":"/data/k%d"}`, i+1)
	}
	operations := "[" + strings.TrimSuffix(strings.Repeat(`{"op":"test","path":"/data/a","value":"b"},`, 20_000), ",") + "]"
	c := start(t, Options{})
	c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"a": "b"}})
	before := heap()
	for _, tc := range []struct{ what, method, path, contentType, body string }{
		{"deep object", "POST", configMaps, "application/json", object(deep(`{"a":`, "}"))},
		{"deep list", "POST", configMaps, "application/json", object(deep("[", "]"))},
		{"deep YAML", "POST", configMaps, "application/yaml", object(deep("[", "]"))},
		{"deep unknown field", "POST", configMaps, "application/json", `{"kind":"ConfigMap","apiVersion":"v1","x":` + deep("[", "]") + `}`},
		{"deep managed fields", "POST", configMaps, "application/json", `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"b","managedFields":[{"manager":"m","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":` + deep(`{"f:a":`, "}") + `}]}}`},
		{"deep update", "PUT", configMaps + "/a", "application/json", object(deep(`{"a":`, "}"))},
		{"deep merge patch", "PATCH", configMaps + "/a", "application/merge-patch+json", `{"data":` + deep(`{"a":`, "}") + `}`},
		{"deep strategic patch", "PATCH", configMaps + "/a", "application/strategic-merge-patch+json", `{"data":` + deep(`{"a":`, "}") + `}`},
		{"deep JSON patch", "PATCH", configMaps + "/a", "application/json-patch+json", `[{"op":"add","path":"/data","value":` + deep("[", "]") + `}]`},
		{"deep apply", "PATCH", configMaps + "/a?fieldManager=m", "application/apply-patch+yaml", object(deep(`{"a":`, "}"))},
		{"deep options", "DELETE", configMaps + "/a", "application/json", `{"kind":"DeleteOptions","apiVersion":"v1","x":` + deep("[", "]") + `}`},
		{"deep review", "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "application/json", `{"spec":` + deep(`{"a":`, "}") + `}`},
		{"YAML bomb", "POST", configMaps, "application/yaml", bomb},
		{"YAML bomb in an apply", "PATCH", configMaps + "/a?fieldManager=m", "application/apply-patch+yaml", bomb},
		{"YAML bomb in options", "DELETE", configMaps + "/a", "application/yaml", bomb},
		{"copying patch", "PATCH", configMaps + "/a", "application/json-patch+json", copies + "]"},
		{"many operations", "PATCH", configMaps + "/a", "application/json-patch+json", operations},
	} {
		t.Run(tc.what, func(t *testing.T) {
			began := time.Now()
			w := c.do(t, "root", tc.method, tc.path, strings.NewReader(tc.body), "Content-Type", tc.contentType)
			refused(t, tc.what, w.Code, w.Body.Bytes(), http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge)
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	if grown := heap() - before; grown > 64<<20 {
		t.Errorf("%d MB are held afterwards", grown>>20)
	}
	if w := c.do(t, "root", "GET", configMaps+"/a", nil); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"data":{"a":"b"}`) {
		t.Errorf("the object afterwards: %d %s", w.Code, w.Body)
	}
}

// TestSlowBody: a body that does not come is given up after the request timeout, over both protocols.
func TestSlowBody(t *testing.T) {
	c := start(t, Options{RequestTimeout: 300 * time.Millisecond})
	c.listen(t)
	for _, h2 := range []bool{true, false} {
		transport := c.transport(t, "root", "system:masters")
		if !h2 {
			transport.ForceAttemptHTTP2, transport.TLSNextProto = false, map[string]func(string, *tls.Conn) http.RoundTripper{}
		}
		never, feed := io.Pipe()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+c.addr+configMaps, never)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.ContentLength = 2 << 20
		go func() { _, _ = feed.Write([]byte(`{"kind":`)) }()
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatalf("HTTP/2 %v: %v", h2, err)
		}
		data, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		_ = feed.Close()
		refused(t, fmt.Sprintf("HTTP/2 %v", h2), response.StatusCode, data, http.StatusGatewayTimeout)
	}
}

// TestManyIdleWatches: thousands of watches cost little, and all are told of a change.
func TestManyIdleWatches(t *testing.T) {
	const connections, each = 20, 100
	c := start(t, Options{})
	c.listen(t)
	before := heap()
	var group sync.WaitGroup
	got := make(chan error, connections*each)
	started := make(chan struct{}, connections*each)
	for range connections {
		transport := c.transport(t, "root", "system:masters")
		for range each {
			group.Go(func() {
				request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+c.addr+configMaps+"?watch=1", nil)
				response, err := transport.RoundTrip(request)
				started <- struct{}{}
				if err != nil {
					got <- err
					return
				}
				defer func() { _ = response.Body.Close() }()
				var event struct{ Type string }
				err = json.NewDecoder(response.Body).Decode(&event)
				if err == nil && event.Type != "ADDED" {
					err = errors.New(event.Type)
				}
				got <- err
			})
		}
	}
	for range connections * each {
		<-started
	}
	grown := heap() - before
	t.Logf("%d watches: %d KB each, client and server together", connections*each, grown/connections/each>>10)
	if grown > connections*each*100<<10 {
		t.Errorf("%d watches hold %d MB", connections*each, grown>>20)
	}
	began := time.Now()
	c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "news"}})
	group.Wait()
	t.Logf("all were told after %v", time.Since(began))
	for range connections * each {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
}

// TestClientsThatNeverRead: watches and lists that nobody reads hold bounded memory, are ended, and disturb no other.
func TestClientsThatNeverRead(t *testing.T) {
	const (
		silent  = 20
		objects = 100
		size    = 100 << 10
		rounds  = 4 // 40 MB of changes: more than a watch may be behind
	)
	c := start(t, Options{RequestTimeout: 2 * time.Second})
	c.listen(t)
	text := strings.Repeat("x", size)
	for i := range objects {
		c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%d", i)}, Data: map[string]string{"k": text}})
	}
	open := func(user, query string, h2 bool) *http.Response {
		transport := c.transport(t, user)
		if !h2 { // Go's HTTP/2 client takes 4 MB for a reader that is away, HTTP/1.1 leaves all to the server
			transport.ForceAttemptHTTP2, transport.TLSNextProto = false, map[string]func(string, *tls.Conn) http.RoundTripper{}
		}
		request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+c.addr+configMaps+query, nil)
		request.Header.Set("Accept-Encoding", "identity")
		response, err := transport.RoundTrip(request)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v %v", query, response, err)
		}
		t.Cleanup(func() { _ = response.Body.Close() })
		return response
	}
	before := heap()
	var mute []*http.Response
	for i := range silent {
		mute = append(mute, open("ann", "?watch=1", i == 0), open("ann", "", i == 0))
	}
	reader := dialRoot(t, c, "?watch=1")
	seen := make(chan int, 1)
	go func() {
		decoder, count := json.NewDecoder(reader.Body), 0
		for count < objects*(rounds+1) {
			var event struct{ Type string }
			if err := decoder.Decode(&event); err != nil {
				break
			}
			count++
		}
		seen <- count
	}()
	for range rounds {
		for i := range objects {
			text = text[1:] + "y"
			body := fmt.Sprintf(`{"data":{"k":%q}}`, text)
			if w := c.do(t, "root", "PATCH", fmt.Sprintf("%s/m%d", configMaps, i), strings.NewReader(body), "Content-Type", "application/merge-patch+json"); w.Code != http.StatusOK {
				t.Fatal(w.Code)
			}
		}
	}
	if count := <-seen; count != objects*(rounds+1) {
		t.Errorf("the one that reads got %d events, want %d", count, objects*(rounds+1))
	}
	grown := heap() - before
	t.Logf("%d silent clients and 40 MB of changes: %d MB more", 2*silent, grown>>20)
	if grown > 200<<20 {
		t.Errorf("%d MB are held", grown>>20)
	}
	for i, response := range mute { // what the client buffered is still there; then its stream ends
		done := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, response.Body)
			done <- err
		}()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Fatalf("stream %d still stands", i)
		}
	}
}

func dialRoot(t *testing.T, c *cluster, query string) *http.Response {
	t.Helper()
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+c.addr+configMaps+query, nil)
	response, err := c.transport(t, "root", "system:masters").RoundTrip(request)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v %v", query, response, err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	return response
}
