package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func testApp(t *testing.T, c counter) *app {
	t.Helper()
	a, err := newApp(identity{Pod: "hello-7d9-x2", Namespace: "default", Node: "node-1", Version: "1.2"}, c, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func get(a http.Handler, path string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	a.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
	return recorder
}

func TestPage(t *testing.T) {
	a := testApp(t, &memoryCounter{})
	for _, want := range []string{"hello-7d9-x2", "node-1", "default", "1.2", `id="count">1<`} {
		if a := testApp(t, &memoryCounter{}); !strings.Contains(get(a, "/").Body.String(), want) {
			t.Errorf("the page does not hold %q", want)
		}
	}
	get(a, "/")
	var second answer
	if err := json.Unmarshal(get(a, "/hello.json").Body.Bytes(), &second); err != nil || second.Count != 2 || second.Shared || second.Pod != "hello-7d9-x2" {
		t.Errorf("second answer is %+v, %v", second, err)
	}
	if code := get(a, "/nothing").Code; code != http.StatusNotFound {
		t.Errorf("an unknown path gives %d", code)
	}
}

func TestHealthWhileDraining(t *testing.T) {
	a := testApp(t, &memoryCounter{})
	if code := get(a, "/healthz").Code; code != http.StatusOK {
		t.Errorf("healthy gives %d", code)
	}
	a.drain()
	if code := get(a, "/healthz").Code; code != http.StatusServiceUnavailable {
		t.Errorf("draining gives %d", code)
	}
	if code := get(a, "/").Code; code != http.StatusOK {
		t.Errorf("the page is gone while draining: %d", code)
	}
}

func TestEscapes(t *testing.T) {
	a, err := newApp(identity{Pod: "<script>alert(1)</script>"}, &memoryCounter{}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(get(a, "/").Body.String(), "<script>alert") {
		t.Error("the pod's name is not escaped")
	}
}

// fakeAPI is a ConfigMap behind the API's rules for create and update.
type fakeAPI struct {
	mu        sync.Mutex
	stored    *configMap
	version   int
	conflicts int
	broken    bool
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var sent configMap
	text, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(text, &sent)
	switch {
	case f.broken || r.Header.Get("Authorization") != "Bearer token":
		w.WriteHeader(http.StatusForbidden)
	case r.Method == http.MethodGet && f.stored == nil:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodGet:
		_ = json.NewEncoder(w).Encode(f.stored)
	case (r.Method == http.MethodPost) != (f.stored == nil),
		r.Method == http.MethodPut && sent.Metadata.ResourceVersion != f.stored.Metadata.ResourceVersion:
		f.conflicts++
		w.WriteHeader(http.StatusConflict)
	default:
		f.version++
		sent.Metadata.ResourceVersion = strconv.Itoa(f.version)
		f.stored = &sent
		w.WriteHeader(http.StatusOK)
	}
}

func clusterCounterAt(url string) *clusterCounter {
	return &clusterCounter{url: url + "/configmaps", token: func() (string, error) { return "token", nil }, client: http.DefaultClient, logger: quiet()}
}

func TestReplicasCountTogether(t *testing.T) {
	api := &fakeAPI{}
	server := httptest.NewServer(api)
	defer server.Close()
	var group sync.WaitGroup
	const replicas, each = 3, 20
	for range replicas {
		c := clusterCounterAt(server.URL)
		group.Go(func() {
			for range each {
				for {
					// A visitor who meets a crowd may get no shared count; here all must.
					if _, shared := c.add(context.Background()); shared {
						break
					}
				}
			}
		})
	}
	group.Wait()
	if got := api.stored.Data[counterKey]; got != strconv.Itoa(replicas*each) {
		t.Errorf("count is %s after %d requests (%d conflicts)", got, replicas*each, api.conflicts)
	}
}

func TestCounterFallsBack(t *testing.T) {
	api := &fakeAPI{broken: true}
	server := httptest.NewServer(api)
	defer server.Close()
	c := clusterCounterAt(server.URL)
	for want := int64(1); want <= 2; want++ {
		if count, shared := c.add(t.Context()); count != want || shared {
			t.Errorf("add = %d, %v; want %d of its own", count, shared, want)
		}
	}
	api.mu.Lock()
	api.broken, api.stored = false, &configMap{Data: map[string]string{counterKey: "nonsense"}}
	api.mu.Unlock()
	if count, shared := c.add(t.Context()); count != 1 || !shared {
		t.Errorf("add over nonsense = %d, %v", count, shared)
	}
	if _, ok := counterFor(func(string) string { return "" }, quiet()).(*memoryCounter); !ok {
		t.Error("a cluster was found where there is none")
	}
}

func TestUptime(t *testing.T) {
	for d, want := range map[time.Duration]string{
		7 * time.Second: "7 s", 61 * time.Second: "1 min 1 s", 3*time.Hour + 5*time.Minute: "3 h 5 min", 50 * time.Hour: "2 d 2 h",
	} {
		if got := uptime(d); got != want {
			t.Errorf("uptime(%v) = %q, want %q", d, got, want)
		}
	}
}
