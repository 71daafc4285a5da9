//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// versionHeader is where the example says which version of it answers.
const versionHeader = "X-Tasks-Version"

// taskLoad is the load on the example: readers list the tasks all the time, and a writer makes, changes, reads and removes
// one. Each request that gets no answer, or a wrong one, is counted.
type taskLoad struct {
	client  *http.Client
	url     string
	kept    string // a task that each list must show
	writing atomic.Bool
	asked   atomic.Int64
	written atomic.Int64
	// lost says that a request which got no good answer was lost with a machine that died. Such are counted apart; nil is none.
	lost func(method string, begun time.Time) bool

	mu      sync.Mutex
	seen    map[string]int64  // good answers by version
	failed  map[string]int64  // bad ones by version; "" gave no answer of the application's
	gone    []string          // what was lost with a machine
	example map[string]string // the first bad one of each

	halt  chan struct{}
	group sync.WaitGroup
}

// startTaskLoad begins to ask the application at url, which has a task of the title kept.
func startTaskLoad(client *http.Client, url, kept string, readers int, lost func(method string, begun time.Time) bool) *taskLoad {
	l := &taskLoad{client: client, url: url, kept: kept, lost: lost, halt: make(chan struct{})}
	l.writing.Store(true)
	l.reset()
	for range readers {
		l.group.Go(func() { l.repeat(20*time.Millisecond, l.read) })
	}
	l.group.Go(func() {
		l.repeat(50*time.Millisecond, func() {
			if l.writing.Load() {
				l.write()
			}
		})
	})
	return l
}

// repeat calls do until the end, with a pause that leaves two cores for what is tested.
func (l *taskLoad) repeat(pause time.Duration, do func()) {
	for {
		select {
		case <-l.halt:
			return
		case <-time.After(pause):
			do()
		}
	}
}

func (l *taskLoad) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen, l.failed, l.example, l.gone = map[string]int64{}, map[string]int64{}, map[string]string{}, nil
}

func (l *taskLoad) read() {
	l.ask("GET", "/api/tasks", "", http.StatusOK, func(body []byte) bool { return bytes.Contains(body, []byte(l.kept)) })
}

// write is the life of a task.
func (l *taskLoad) write() {
	var made struct {
		ID   int64 `json:"id"`
		Done bool  `json:"done"`
	}
	parse := func(body []byte) bool { return json.Unmarshal(body, &made) == nil && made.ID > 0 }
	if !l.ask("POST", "/api/tasks", `{"title":"written under load"}`, http.StatusCreated, parse) {
		return
	}
	one := fmt.Sprintf("/api/tasks/%d", made.ID)
	l.ask("PATCH", one, `{"done":true}`, http.StatusOK, func(body []byte) bool { return parse(body) && made.Done })
	l.ask("GET", one, "", http.StatusOK, func(body []byte) bool { return parse(body) && made.Done })
	if l.ask("DELETE", one, "", http.StatusNoContent, func([]byte) bool { return true }) {
		l.written.Add(1)
	}
}

// ask makes one request, counts it, and says whether it was answered well.
func (l *taskLoad) ask(method, path, body string, want int, good func([]byte) bool) bool {
	begun := time.Now()
	version, problem := l.once(method, path, body, want, good)
	l.asked.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if problem == "" {
		l.seen[version]++
		return true
	}
	if l.lost != nil && l.lost(method, begun) {
		l.gone = append(l.gone, begun.UTC().Format("15:04:05.000 ")+method+" "+path+": "+problem)
		return false
	}
	l.failed[version]++
	if l.example[version] == "" {
		l.example[version] = time.Now().UTC().Format("15:04:05.000 ") + method + " " + path + ": " + problem
	}
	return false
}

func (l *taskLoad) once(method, path, body string, want int, good func([]byte) bool) (version, problem string) {
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	request, err := http.NewRequest(method, l.url+path, reader)
	if err != nil {
		return "", err.Error()
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := l.client.Do(request)
	if err != nil {
		return "", err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	version = response.Header.Get(versionHeader)
	text, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return version, err.Error()
	case response.StatusCode != want, !good(text):
		return version, fmt.Sprintf("%s: %.200s", response.Status, text)
	}
	return version, ""
}

// more waits for so many further requests, and says which versions answered since the last call.
func (l *taskLoad) more(t *testing.T, n int64) {
	t.Helper()
	want := l.asked.Load() + n
	eventually(t, "requests are answered", 2*time.Minute, func() error {
		if have := l.asked.Load(); have < want {
			return fmt.Errorf("%d of %d", have, want)
		}
		return nil
	})
}

// versions are those that answered since the last check.
func (l *taskLoad) versions() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.seen))
}

// check is the count of a step: no request may have failed, but those that a release in except has answered itself.
func (l *taskLoad) check(t *testing.T, step string, except ...string) {
	t.Helper()
	l.mu.Lock()
	var good int64
	for _, n := range l.seen {
		good += n
	}
	t.Logf("%s: %d requests answered well %v, failed %v", step, good, l.seen, l.failed)
	if len(l.gone) > 0 {
		t.Logf("%s: %d requests were lost with the machine: %s", step, len(l.gone), strings.Join(l.gone, "; "))
	}
	for version, n := range l.failed {
		if version == "" || !slices.Contains(except, version) {
			t.Errorf("%s: %d requests failed (version %q), the first: %s", step, n, version, l.example[version])
		}
	}
	l.mu.Unlock()
	l.reset()
}

func (l *taskLoad) stop() {
	close(l.halt)
	l.group.Wait()
}
