package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// member is a server with a registry, among others.
type member struct {
	store   *Store
	replica *Replica
	handler *Handler
	url     string
	down    atomic.Bool
	clock   time.Duration // how wrong its clock is
}

// company makes servers that know each other.
func company(t *testing.T, n int) []*member {
	t.Helper()
	var mu sync.Mutex
	var all []*member
	for i := range n {
		m := &member{}
		name := fmt.Sprint("server-", i)
		var err error
		m.store, err = NewStore(StoreOptions{
			Dir: t.TempDir(), Space: func(string) (uint64, uint64, error) { return 50 << 30, 100 << 30, nil },
			Now: func() time.Time { return time.Now().Add(m.clock) },
		})
		if err != nil {
			t.Fatal(err)
		}
		m.replica, err = NewReplica(ReplicaOptions{Store: m.store, Self: name, Every: 20 * time.Millisecond, Peers: func() []Peer {
			mu.Lock()
			defer mu.Unlock()
			var peers []Peer
			for j, other := range all {
				if j != i {
					peers = append(peers, Peer{Name: fmt.Sprint("server-", j), URL: other.url, HTTP: http.DefaultClient, Votes: true})
				}
			}
			return peers
		}})
		if err != nil {
			t.Fatal(err)
		}
		if m.handler, err = NewHandler(Options{Store: m.store, Replica: m.replica}); err != nil {
			t.Fatal(err)
		}
		peersOnly := m.replica.Serve()
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case m.down.Load():
				panic(http.ErrAbortHandler)
			case Serves(r.URL.Path):
				m.handler.ServeHTTP(w, r)
			default:
				peersOnly.ServeHTTP(w, r)
			}
		}))
		t.Cleanup(server.Close)
		m.url = server.URL
		mu.Lock()
		all = append(all, m)
		mu.Unlock()
	}
	return all
}

// follow runs a member's replica until the test ends.
func (m *member) follow(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.replica.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (m *member) do(t *testing.T, method, path, body string, headers ...string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, m.url+path, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	drop(answer)
	return answer.StatusCode
}

// pushBlob and pushImage push content of a name as a client does.
func (m *member) pushBlob(t *testing.T, content string) digest.Digest {
	t.Helper()
	d := digest.FromString(content)
	if code := m.do(t, http.MethodPost, "/v2/shop/web/blobs/uploads/?digest="+d.String(), content); code != http.StatusCreated {
		t.Fatalf("blob: %d", code)
	}
	return d
}

func imageOf(content string) (digest.Digest, string) {
	manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":"x","digest":%q,"size":%d},"layers":[]}`, digest.FromString(content), len(content))
	return digest.FromString(manifest), manifest
}

func (m *member) pushImage(t *testing.T, content, tag string) (digest.Digest, int) {
	t.Helper()
	m.pushBlob(t, content)
	d, manifest := imageOf(content)
	return d, m.do(t, http.MethodPut, "/v2/shop/web/manifests/"+tag, manifest, "Content-Type", "application/vnd.oci.image.manifest.v1+json")
}

func shopWeb() Repository { return Repository{"shop", "web", "shop/web"} }

// whole reports whether a store has an image by itself.
func (m *member) whole(content string) error {
	d, _ := imageOf(content)
	if _, err := m.store.GetManifest(shopWeb(), d); err != nil {
		return err
	}
	blob, err := m.store.OpenBlob(shopWeb(), digest.FromString(content))
	if err != nil {
		return err
	}
	return blob.Close()
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestReplicas pushes to one server: what it acknowledged is on another one already, and every server serves it.
func TestReplicas(t *testing.T) {
	servers := company(t, 3)
	d, code := servers[0].pushImage(t, "one", "v1")
	if code != http.StatusCreated {
		t.Fatalf("push: %d", code)
	}
	if !slices.ContainsFunc(servers[1:], func(m *member) bool { return m.whole("one") == nil }) {
		t.Fatal("acknowledged, and on no other server")
	}
	servers[0].down.Store(true)
	for _, m := range servers[1:] {
		for _, reference := range []string{"v1", d.String()} {
			if code := m.do(t, http.MethodGet, "/v2/shop/web/manifests/"+reference, ""); code != http.StatusOK {
				t.Errorf("%s: %d", reference, code)
			}
		}
		if code := m.do(t, http.MethodGet, "/v2/shop/web/blobs/"+digest.FromString("one").String(), ""); code != http.StatusOK {
			t.Errorf("blob: %d", code)
		}
	}
	// Two of three go on; what one of them misses it finds by itself. One of three does not.
	if _, code := servers[1].pushImage(t, "two", "v1"); code != http.StatusCreated {
		t.Errorf("push with one server down: %d", code)
	}
	servers[2].down.Store(true)
	if _, code := servers[1].pushImage(t, "three", "v1"); code != http.StatusServiceUnavailable {
		t.Errorf("push with two servers down: %d", code)
	}
	servers[0].down.Store(false)
	servers[2].down.Store(false)
	servers[0].follow(t)
	eventually(t, "the server that was away", func() error { return errors.Join(servers[0].whole("two"), servers[0].whole("three")) })
	if code := servers[1].do(t, http.MethodPut, "/gantry/v1/images/changed", ""); code != http.StatusNotFound {
		t.Errorf("unknown method: %d", code)
	}
}

// TestReplicaTags: a tag means the same at all servers, also where one missed it and clocks are wrong; removed, it stays so.
func TestReplicaTags(t *testing.T) {
	servers := company(t, 3)
	servers[0].clock, servers[2].clock = time.Hour, -time.Hour
	means := func(m *member, content string) {
		t.Helper()
		want, _ := imageOf(content)
		m.replica.Fresh(t.Context(), shopWeb())
		if got, err := m.store.Resolve(shopWeb(), "live"); err != nil || got != want {
			t.Errorf("live is %v %v, want %v", got, err, want)
		}
	}
	for i, content := range []string{"a", "b", "c", "d"} {
		by := servers[i%3]
		missing := servers[(i+1)%3]
		missing.down.Store(true)
		if _, code := by.pushImage(t, content, "live"); code != http.StatusCreated {
			t.Fatalf("push %s: %d", content, code)
		}
		missing.down.Store(false)
		for _, m := range servers {
			eventually(t, "asked again", func() error {
				if len(m.replica.voters()) != 2 {
					return errors.New("no company")
				}
				return nil
			})
			means(m, content)
		}
	}
	servers[1].down.Store(true)
	if code := servers[2].do(t, http.MethodDelete, "/v2/shop/web/manifests/live", ""); code != http.StatusAccepted {
		t.Fatalf("delete: %d", code)
	}
	servers[1].down.Store(false)
	if code := servers[1].do(t, http.MethodGet, "/v2/shop/web/manifests/live", ""); code != http.StatusNotFound {
		t.Errorf("a removed tag: %d", code)
	}
	if _, code := servers[2].pushImage(t, "e", "live"); code != http.StatusCreated {
		t.Errorf("push after removal: %d", code)
	}
	means(servers[0], "e")
	means(servers[1], "e")
}

// TestReplicaCollection: what the server that leads collects goes from all, does not come back, and may be pushed again.
func TestReplicaCollection(t *testing.T) {
	servers := company(t, 2)
	for _, m := range servers {
		m.follow(t)
	}
	for _, content := range []string{"kept", "gone"} {
		if _, code := servers[0].pushImage(t, content, "gantry-"+content); code != http.StatusCreated {
			t.Fatalf("push: %d", code)
		}
	}
	kept, _ := imageOf("kept")
	keep := Keep{Digests: map[string]map[digest.Digest]bool{"shop/web": {kept: true}}, Uploads: time.Hour}
	other := keep
	other.Manifests = true
	servers[1].clock = time.Minute // everything is old there
	if done, err := servers[1].store.Collect(other); err != nil || done.Manifests != 0 {
		t.Fatalf("a server that does not lead collected %+v %v", done, err)
	}
	servers[0].clock = time.Minute
	if done, err := servers[0].store.Collect(keep); err != nil || done.Manifests != 1 {
		t.Fatalf("collected %+v %v", done, err)
	}
	eventually(t, "the other server hears of it", func() error {
		if servers[1].whole("gone") == nil {
			return errors.New("still there")
		}
		return nil
	})
	for _, m := range servers {
		other := other
		if _, err := m.store.Collect(other); err != nil {
			t.Fatal(err)
		}
		if err := m.whole("kept"); err != nil {
			t.Errorf("what is used: %v", err)
		}
		if err := m.whole("gone"); err == nil {
			t.Error("what was collected came back")
		}
		if _, err := m.store.OpenBlob(shopWeb(), digest.FromString("gone")); !errors.Is(err, ErrNotFound) {
			t.Errorf("its layer: %v", err)
		}
	}
	if _, code := servers[1].pushImage(t, "gone", "v2"); code != http.StatusCreated {
		t.Fatalf("push again: %d", code)
	}
	for _, m := range servers {
		eventually(t, "it is there again", func() error { return m.whole("gone") })
	}
}

// TestReplicaJoins: a server that comes later fetches what is there, indexes with their parts before them.
func TestReplicaJoins(t *testing.T) {
	servers := company(t, 2)
	first := servers[0].store
	repo := shopWeb()
	put := func(content string) {
		if err := first.PutBlob(t.Context(), repo, digest.FromString(content), int64(len(content)), bytes.NewReader([]byte(content))); err != nil {
			t.Fatal(err)
		}
	}
	put("part")
	part, manifest := imageOf("part")
	if _, err := first.PutManifest(t.Context(), repo, "", part, "application/vnd.oci.image.manifest.v1+json", []byte(manifest)); err != nil {
		t.Fatal(err)
	}
	index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":%d}]}`, part, len(manifest))
	m, err := first.PutManifest(t.Context(), repo, "all", "", "application/vnd.oci.image.index.v1+json", []byte(index))
	if err != nil {
		t.Fatal(err)
	}
	servers[1].follow(t)
	eventually(t, "the index", func() error {
		got, err := servers[1].store.Resolve(repo, "all")
		if err == nil && got != m.Digest {
			err = fmt.Errorf("it is %s", got)
		}
		return errors.Join(err, servers[1].whole("part"))
	})
	// Layers at one server, the manifest at another.
	servers[0].pushBlob(t, "split")
	split, manifest := imageOf("split")
	if code := servers[1].do(t, http.MethodPut, "/v2/shop/web/manifests/"+split.String(), manifest, "Content-Type", "application/vnd.oci.image.manifest.v1+json"); code != http.StatusCreated {
		t.Errorf("a manifest whose layer is elsewhere: %d", code)
	}
}
