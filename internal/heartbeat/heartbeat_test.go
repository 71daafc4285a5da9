package heartbeat

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		beat Beat
		ok   bool
	}{
		"plain":           {Beat{Name: "n", BootID: "b"}, true},
		"a restart":       {Beat{Name: "n", Leaving: LeavingRestart, FenceMillis: 10000}, true},
		"no name":         {Beat{}, false},
		"a long name":     {Beat{Name: strings.Repeat("n", 300)}, false},
		"leaving for fun": {Beat{Name: "n", Leaving: "fun"}, false},
		"a day":           {Beat{Name: "n", FenceMillis: 86400000}, false},
		"before its time": {Beat{Name: "n", FenceMillis: -1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tc.beat.Check(); (err == nil) != tc.ok {
				t.Errorf("Check = %v, want ok %t", err, tc.ok)
			}
		})
	}
}

// TestRemote sends beats over TLS: all over one connection, over a new one when the server has started anew, and never for
// longer than it may.
func TestRemote(t *testing.T) {
	var connections, stuck atomic.Int64
	release := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if stuck.Load() > 0 {
			<-release
		}
		var beat Beat
		text, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(text, &beat) != nil || r.Method != http.MethodPut || r.URL.Path != Path {
			http.Error(w, "what?", http.StatusBadRequest)
			return
		}
		if beat.Name != "n" {
			http.Error(w, "who?", http.StatusForbidden)
			return
		}
		_ = json.NewEncoder(w).Encode(Answer{Leads: true, Takeover: beat.FenceMillis > 0})
	})
	server := httptest.NewTLSServer(handler)
	defer server.Close()
	pool := server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	remote := NewRemote(server.Listener.Addr().String(), func() *tls.Config {
		connections.Add(1)
		return &tls.Config{RootCAs: pool, ServerName: "example.com"}
	})
	defer remote.Close()
	for range 10 {
		answer, err := remote.Beat(t.Context(), Beat{Name: "n", FenceMillis: 1}, 10*time.Second)
		if err != nil || !answer.Leads || !answer.Takeover {
			t.Fatalf("Beat = %+v, %v", answer, err)
		}
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("10 beats took %d connections", n)
	}
	server.CloseClientConnections()
	if _, err := remote.Beat(t.Context(), Beat{Name: "n"}, 10*time.Second); err != nil || connections.Load() != 2 {
		t.Errorf("after the server has hung up: %v over connection %d", err, connections.Load())
	}
	if _, err := remote.Beat(t.Context(), Beat{Name: "m"}, 10*time.Second); err == nil || !strings.Contains(err.Error(), "403 Forbidden: who?") {
		t.Errorf("as somebody else: %v", err)
	}
	stuck.Store(1)
	defer close(release)
	if _, err := remote.Beat(t.Context(), Beat{Name: "n"}, 50*time.Millisecond); !isTimeout(err) {
		t.Errorf("a server that does not answer: %v, want a timeout", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := remote.Beat(ctx, Beat{Name: "n"}, time.Hour); err == nil {
		t.Error("a beat goes on after its context has ended")
	}
}

// counting counts beats.
type counting struct {
	name string
	mu   sync.Mutex
	got  []Beat
	down bool
}

func (c *counting) Name() string { return c.name }
func (c *counting) Close()       {}

func (c *counting) Beat(ctx context.Context, beat Beat, timeout time.Duration) (Answer, error) {
	c.mu.Lock()
	c.got = append(c.got, beat)
	down := c.down
	c.mu.Unlock()
	if down {
		select {
		case <-ctx.Done():
		case <-time.After(timeout):
		}
		return Answer{}, errors.New("down")
	}
	return Answer{Leads: true}, nil
}

func (c *counting) beats() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got)
}

// A server that does not answer does not hold up the beats to another; all are told of the end.
func TestSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two, three := &counting{name: "1"}, &counting{name: "2", down: true}, &counting{name: "3"}
		var mu sync.Mutex
		servers := []Server{one, two}
		answers := 0
		s, err := NewSender(Options{
			Node: "n", Servers: func() []Server {
				mu.Lock()
				defer mu.Unlock()
				return servers
			},
			Fence: func() time.Duration { return time.Second },
			Answered: func(Answer, Beat, time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				answers++
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := s.Run(ctx); err != nil {
				t.Errorf("Run = %v", err)
			}
		})
		time.Sleep(3*time.Second - time.Millisecond)
		if n := one.beats(); n != 10 || answers != 10 {
			t.Errorf("%d beats and %d answers in 3 s, want 10", n, answers)
		}
		mu.Lock()
		servers = []Server{one, three}
		mu.Unlock()
		time.Sleep(3 * time.Second)
		before := two.beats()
		if three.beats() == 0 {
			t.Error("a new server gets no beats")
		}
		time.Sleep(time.Second)
		if two.beats() != before {
			t.Error("a server that is gone gets beats")
		}
		cancel()
		running.Wait()
		for _, server := range []*counting{one, three} {
			if last := server.got[len(server.got)-1]; last.Leaving != LeavingRestart || last.Name != "n" || last.FenceMillis != 1000 {
				t.Errorf("the last beat is %+v, want that it announces a restart", last)
			}
		}
	})
}

// A server that leaves beats without an answer for a second is told of once, and once more when it answers again or is not
// asked any more.
func TestSenderTellsWhoIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &counting{name: "1"}
		var mu sync.Mutex
		var told []string
		start := time.Now()
		s, err := NewSender(Options{
			Node: "n", Servers: func() []Server { return []Server{server} },
			Heard: func(name string, heard bool) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, fmt.Sprintf("%s %t after %v", name, heard, time.Since(start).Round(100*time.Millisecond)))
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = s.Run(ctx) })
		set := func(down bool) {
			server.mu.Lock()
			defer server.mu.Unlock()
			server.down = down
		}
		time.Sleep(time.Minute - time.Millisecond)
		set(true)
		time.Sleep(250 * time.Millisecond)
		set(false) // shorter than it takes
		time.Sleep(9750 * time.Millisecond)
		set(true)
		time.Sleep(10 * time.Second)
		set(false)
		time.Sleep(time.Minute)
		cancel()
		running.Wait()
		want := []string{"1 false after 1m11.2s", "1 true after 1m20.2s"}
		if !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}
