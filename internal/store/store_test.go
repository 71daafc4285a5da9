package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// jsonCodec keeps ConfigMaps as JSON.
type jsonCodec struct{}

func (jsonCodec) Encode(obj Object) ([]byte, error) {
	plain := *obj.(*corev1.ConfigMap)
	plain.ResourceVersion = ""
	return json.Marshal(&plain)
}

func (jsonCodec) Decode(data []byte) (Object, error) {
	obj := new(corev1.ConfigMap)
	return obj, json.Unmarshal(data, obj)
}

func (jsonCodec) JSON(obj Object) ([]byte, error) { return json.Marshal(obj) }
func (jsonCodec) Proto(Object) ([]byte, error)    { return nil, nil }

// xorSealer is no encryption, but what it stores cannot be read without it.
type xorSealer struct{}

func (xorSealer) Seal(key string, plain []byte) ([]byte, error) {
	return append([]byte(key+":"), flip(plain)...), nil
}

func (xorSealer) Open(key string, sealed []byte) ([]byte, bool, error) {
	rest, ok := bytes.CutPrefix(sealed, []byte(key+":"))
	if !ok {
		return nil, false, errors.New("sealed under another key")
	}
	return flip(rest), false, nil
}

func flip(in []byte) []byte {
	out := make([]byte, len(in))
	for i, b := range in {
		out[i] = b ^ 0x55
	}
	return out
}

func testKinds() []*Kind {
	return []*Kind{
		{
			Name: "configmaps", Prefix: "/registry/configmaps/", Namespaced: true, Codec: jsonCodec{},
			Indexes: map[string]IndexFunc{"color": func(obj Object) []string {
				if c := obj.GetLabels()["color"]; c != "" {
					return []string{c}
				}
				return nil
			}},
		},
		{Name: "sealed", Prefix: "/registry/nested/sealed/", Namespaced: true, Codec: jsonCodec{}, Sealer: xorSealer{}},
	}
}

// start runs a store in dir until the test ends or stop is called.
func start(t *testing.T, opts Options) (s *Store, stop func()) {
	t.Helper()
	opts.Kinds, opts.NoFsync = testKinds(), true
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(stop)
	select {
	case <-s.Ready():
	case err := <-ended:
		t.Fatalf("Run ended at the start: %v", err)
	}
	return s, stop
}

func configMap(name, color, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"color": color}},
		Data:       map[string]string{"k": value},
	}
}

func mustCreate(t *testing.T, s *Store, name, color, value string) *Entry {
	t.Helper()
	e, err := s.Create(t.Context(), "configmaps", "default/"+name, configMap(name, color, value))
	if err != nil {
		t.Fatalf("Create %s: %v", name, err)
	}
	return e
}

func TestWritesAreReadAtOnce(t *testing.T) {
	s, _ := start(t, Options{Dir: t.TempDir()})
	a := mustCreate(t, s, "a", "red", "1")
	if got, err := s.Get("configmaps", "default/a"); err != nil || got != a {
		t.Fatalf("Get = %v, %v; want the created entry", got, err)
	}
	if _, err := s.Create(t.Context(), "configmaps", "default/a", configMap("a", "red", "2")); !errors.Is(err, ErrExists) {
		t.Errorf("second Create = %v, want ErrExists", err)
	}
	b, err := s.Update(t.Context(), "configmaps", "default/a", a.Rev, configMap("a", "blue", "2"))
	if err != nil || b.Rev <= a.Rev || b.Object.GetResourceVersion() != fmt.Sprint(b.Rev) {
		t.Fatalf("Update = %+v, %v; want a later revision", b, err)
	}
	var conflict *ConflictError
	if _, err := s.Update(t.Context(), "configmaps", "default/a", a.Rev, configMap("a", "blue", "3")); !errors.As(err, &conflict) || conflict.Current != b {
		t.Errorf("stale Update = %v, want a conflict with the current entry", err)
	}
	for color, want := range map[string]int{"red": 0, "blue": 1} {
		list, err := s.List(t.Context(), "configmaps", ListOptions{Index: "color", Value: color})
		if err != nil || len(list.Entries) != want {
			t.Errorf("List color=%s: %d entries, %v; want %d", color, len(list.Entries), err, want)
		}
	}
	if _, err := s.Delete(t.Context(), "configmaps", "default/a", a.Rev); !errors.As(err, &conflict) {
		t.Errorf("stale Delete = %v, want a conflict", err)
	}
	gone, err := s.Delete(t.Context(), "configmaps", "default/a", b.Rev)
	if err != nil || gone.Rev <= b.Rev {
		t.Errorf("Delete = %+v, %v; want a later revision", gone, err)
	}
	if _, err := s.Get("configmaps", "default/a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get after Delete = %v, want ErrNotFound", err)
	}
}

func TestConcurrentWritersOfOneKey(t *testing.T) {
	s, _ := start(t, Options{Dir: t.TempDir()})
	mustCreate(t, s, "n", "red", "0")
	const writers, each = 8, 25
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for range each {
				for {
					e, err := s.Get("configmaps", "default/n")
					if err != nil {
						t.Error(err)
						return
					}
					var n int
					fmt.Sscan(e.Object.(*corev1.ConfigMap).Data["k"], &n)
					_, err = s.Update(t.Context(), "configmaps", "default/n", e.Rev, configMap("n", "red", fmt.Sprint(n+1)))
					if err == nil {
						break
					}
					if conflict := new(ConflictError); !errors.As(err, &conflict) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	group.Wait()
	e, _ := s.Get("configmaps", "default/n")
	if got := e.Object.(*corev1.ConfigMap).Data["k"]; got != fmt.Sprint(writers*each) {
		t.Errorf("counter is %s after %d increments", got, writers*each)
	}
}

// next reads n events from w.
func next(t *testing.T, w *Watch, n int) []Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var all []Event
	for len(all) < n {
		events, _, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("Next after %d of %d events: %v", len(all), n, err)
		}
		all = append(all, events...)
	}
	return all
}

func describe(events []Event) []string {
	var out []string
	for _, e := range events {
		out = append(out, fmt.Sprintf("%d %s", e.Type, e.Entry.Object.(*corev1.ConfigMap).Data["k"]))
	}
	return out
}

func TestWatchWithFilterSeesTransitions(t *testing.T) {
	s, _ := start(t, Options{Dir: t.TempDir()})
	a := mustCreate(t, s, "a", "red", "1")
	w, err := s.Watch(t.Context(), "configmaps", WatchOptions{Initial: true, Filter: func(e *Entry) bool {
		return e.Object.GetLabels()["color"] == "red"
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	b, _ := s.Update(t.Context(), "configmaps", "default/a", a.Rev, configMap("a", "blue", "2"))
	c, _ := s.Update(t.Context(), "configmaps", "default/a", b.Rev, configMap("a", "red", "3"))
	if _, err := s.Delete(t.Context(), "configmaps", "default/a", c.Rev); err != nil {
		t.Fatal(err)
	}
	events := next(t, w, 4)
	if got, want := fmt.Sprint(describe(events)), "[1 1 3 1 1 3 3 3]"; got != want {
		t.Errorf("events %s, want %s (added, deleted with the old content, added, deleted)", got, want)
	}
	if got := events[1].Entry.Object.GetResourceVersion(); got != fmt.Sprint(b.Rev) {
		t.Errorf("the object that stopped matching is at revision %s, want that of the change %d", got, b.Rev)
	}
}

func TestWatchResumesOverARestart(t *testing.T) {
	dir := t.TempDir()
	s, stop := start(t, Options{Dir: dir})
	a := mustCreate(t, s, "a", "red", "1")
	b, _ := s.Update(t.Context(), "configmaps", "default/a", a.Rev, configMap("a", "blue", "2"))
	sealed, err := s.Create(t.Context(), "sealed", "default/s", configMap("s", "red", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	stop()

	s, _ = start(t, Options{Dir: dir})
	w, err := s.Watch(t.Context(), "configmaps", WatchOptions{Since: a.Rev})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	events := next(t, w, 1)
	if events[0].Rev != b.Rev || events[0].Type != Modified || events[0].Prev == nil {
		t.Errorf("first event after the restart is %+v, want the change at %d with what was before", events[0], b.Rev)
	}
	e, err := s.Get("sealed", "default/s")
	if err != nil || e.Rev != sealed.Rev || e.Object.(*corev1.ConfigMap).Data["k"] != "secret" {
		t.Errorf("sealed object after the restart: %+v, %v", e, err)
	}
}

func TestListAtARevisionAndInPages(t *testing.T) {
	s, _ := start(t, Options{Dir: t.TempDir()})
	for i := range 5 {
		mustCreate(t, s, fmt.Sprintf("c%d", i), "red", "1")
	}
	first, err := s.List(t.Context(), "configmaps", ListOptions{Limit: 2})
	if err != nil || len(first.Entries) != 2 || !first.More || first.Remaining != 3 {
		t.Fatalf("first page: %d entries, more %v, remaining %d, %v", len(first.Entries), first.More, first.Remaining, err)
	}
	last, _ := s.Get("configmaps", "default/c4")
	if _, err := s.Delete(t.Context(), "configmaps", "default/c4", last.Rev); err != nil {
		t.Fatal(err)
	}
	rest, err := s.List(t.Context(), "configmaps", ListOptions{After: first.LastKey, Rev: first.Rev})
	if err != nil || len(rest.Entries) != 3 || rest.Rev != first.Rev {
		t.Errorf("the rest as of the first page: %d entries at %d, %v; want 3 at %d", len(rest.Entries), rest.Rev, err, first.Rev)
	}
	if _, err := s.List(t.Context(), "configmaps", ListOptions{Rev: first.Rev + 100}); !errors.Is(err, ErrFuture) {
		t.Errorf("List of the future = %v, want ErrFuture", err)
	}
}

func TestSlowWatcherIsCutOff(t *testing.T) {
	s, _ := start(t, Options{Dir: t.TempDir()})
	w, err := s.Watch(t.Context(), "configmaps", WatchOptions{Queue: 2, Initial: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range 4 {
		mustCreate(t, s, fmt.Sprintf("c%d", i), "red", "1")
	}
	if _, _, err := w.Next(t.Context()); !errors.Is(err, ErrSlow) {
		t.Errorf("Next = %v, want ErrSlow", err)
	}
}

func TestQuota(t *testing.T) {
	s, _ := start(t, Options{Dir: t.TempDir(), QuotaBytes: 1 << 20})
	var err error
	value := string(bytes.Repeat([]byte("x"), 100<<10))
	var last *Entry
	// etcd learns its size when it commits, ten times a second.
	deadline := time.Now().Add(30 * time.Second)
	for i := 0; err == nil && time.Now().Before(deadline); i++ {
		var e *Entry
		name := fmt.Sprintf("c%d", i)
		if e, err = s.Create(t.Context(), "configmaps", "default/"+name, configMap(name, "red", value)); err == nil {
			last = e
		}
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("writing beyond the quota = %v, want ErrFull", err)
	}
	if _, err := s.Delete(t.Context(), "configmaps", last.Key, last.Rev); err != nil {
		t.Errorf("Delete in a full database = %v, want it to work", err)
	}
}

func TestCompactionInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stop := start(t, Options{Dir: t.TempDir(), History: 1, Tick: 100 * time.Millisecond})
		defer stop()
		a := mustCreate(t, s, "a", "red", "1")
		for i := range 4 {
			a, _ = s.Update(t.Context(), "configmaps", "default/a", a.Rev, configMap("a", "red", fmt.Sprint(i)))
		}
		time.Sleep(11 * time.Minute) // virtual
		if _, err := s.List(t.Context(), "configmaps", ListOptions{Rev: 2}); !errors.Is(err, ErrGone) {
			t.Errorf("List of a compacted revision = %v, want ErrGone", err)
		}
		if _, err := s.Watch(t.Context(), "configmaps", WatchOptions{Since: 1}); !errors.Is(err, ErrGone) {
			t.Errorf("Watch from a compacted revision = %v, want ErrGone", err)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	for _, workers := range []int{1, 32} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			s, err := New(Options{Dir: b.TempDir(), Kinds: testKinds()})
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx) }()
			<-s.Ready()
			b.ReportAllocs()
			b.SetParallelism(workers)
			var serial sync.Mutex
			var n int
			b.ResetTimer()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					serial.Lock()
					n++
					name := fmt.Sprintf("c%d", n)
					serial.Unlock()
					if _, err := s.Create(ctx, "configmaps", "default/"+name, configMap(name, "red", "1")); err != nil {
						b.Error(err)
					}
				}
			})
			b.StopTimer()
			cancel()
			<-ended
		})
	}
}
