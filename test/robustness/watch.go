package robustness

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// watcher follows all keys, over as many connections as it takes. It goes on where it stopped, at the next server of its
// list, and lists anew only when a server says that the past is gone.
type watcher struct {
	name  string
	at    []*api               // in turn
	pause func() time.Duration // before it reads on; for readers that are slow
	h     *History

	mu        sync.Mutex // guards the fields below
	stretches []Stretch
	problems  []string
	connected int // how often
	expired   int
}

// note keeps what a watch must never do.
func (w *watcher) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.problems) < maxBroken {
		w.problems = append(w.problems, w.name+": "+fmt.Sprintf(format, args...))
	}
}

// reached is the revision up to which the watcher has heard everything.
func (w *watcher) reached() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.stretches) == 0 {
		return 0
	}
	return w.stretches[len(w.stretches)-1].To
}

// run follows until ctx ends.
func (w *watcher) run(ctx context.Context) {
	for turn := 0; ctx.Err() == nil; turn++ {
		a := w.at[turn%len(w.at)]
		if w.reached() == 0 && !w.begin(ctx, a) {
			pauseFor(ctx, 100*time.Millisecond)
			continue
		}
		if gone := w.follow(ctx, a); gone {
			w.mu.Lock()
			w.expired++
			w.mu.Unlock()
			for ctx.Err() == nil && !w.begin(ctx, a) {
				pauseFor(ctx, 100*time.Millisecond)
			}
		}
		pauseFor(ctx, 50*time.Millisecond)
	}
}

func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// begin lists, and starts a stretch there.
func (w *watcher) begin(ctx context.Context, a *api) bool {
	l, outcome, _ := a.list(ctx, w.h)
	if outcome != Done {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stretches = append(w.stretches, Stretch{Watcher: w.name, From: l.RV, To: l.RV, Begin: l.Items})
	return true
}

// silence is how long a watch may say nothing: its bookmarks come once a minute. The load writes all the time, but a
// server that is cut off says nothing and keeps the connection.
const silence = 15 * time.Second

// follow watches at one server until the connection ends. gone says that the past is no longer kept.
func (w *watcher) follow(ctx context.Context, a *api) (gone bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	alive := time.AfterFunc(silence, cancel)
	defer alive.Stop()
	url := fmt.Sprintf("%s%s?watch=1&allowWatchBookmarks=true&resourceVersion=%d", a.base, a.maps(), w.reached())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		w.note("%v", err)
		return false
	}
	response, err := a.client.Do(r)
	if err != nil {
		return false
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode == http.StatusGone {
		return true
	}
	if response.StatusCode != http.StatusOK {
		return false
	}
	w.mu.Lock()
	w.connected++
	w.mu.Unlock()
	decoder := json.NewDecoder(response.Body)
	for {
		var event struct {
			Type   string
			Object object
		}
		if decoder.Decode(&event) != nil {
			return false // cut off in the middle of an event too
		}
		alive.Reset(silence)
		if event.Type == "ERROR" {
			if event.Object.Code != http.StatusGone && event.Object.Code < 500 && event.Object.Code != http.StatusTooManyRequests {
				w.note("server %d ended the watch with %d %s", a.server, event.Object.Code, event.Object.Message)
			}
			return event.Object.Code == http.StatusGone
		}
		w.heard(event.Type, event.Object)
		if w.pause != nil {
			pauseFor(ctx, w.pause())
		}
	}
}

func (w *watcher) heard(kind string, o object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.stretches[len(w.stretches)-1]
	rv := o.Metadata.revision()
	if kind == "BOOKMARK" {
		if rv < s.To {
			w.problems = append(w.problems, fmt.Sprintf("%s: a bookmark of revision %d after %d", w.name, rv, s.To))
		}
		s.To = max(s.To, rv)
		return
	}
	if isKey(o.Metadata.Name) {
		s.Events = append(s.Events, Event{Type: kind, Key: o.Metadata.Name, Value: o.Data[valueKey], RV: rv, At: w.h.Now()})
	} else if rv <= s.To {
		w.problems = append(w.problems, fmt.Sprintf("%s: revision %d of %s after %d", w.name, rv, o.Metadata.Name, s.To))
	}
	s.To = max(s.To, rv)
}

// taken is all it heard. Call it when run has returned.
func (w *watcher) taken() (stretches []Stretch, problems []string, connected, expired int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stretches, w.problems, w.connected, w.expired
}
