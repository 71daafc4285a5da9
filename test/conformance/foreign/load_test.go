//go:build linux

package foreign

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// load lists the tasks, and makes and removes one, all the time. Each request that gets no answer or a wrong one is counted.
type load struct {
	client *http.Client
	url    string
	halt   chan struct{}
	group  sync.WaitGroup

	mu     sync.Mutex
	asked  int64
	failed int64
	first  string // what failed first
}

func startLoad(client *http.Client, url string) *load {
	l := &load{client: client, url: url, halt: make(chan struct{})}
	for range 3 {
		l.group.Go(func() { l.repeat(20*time.Millisecond, l.read) })
	}
	l.group.Go(func() { l.repeat(100*time.Millisecond, l.write) })
	return l
}

func (l *load) repeat(pause time.Duration, do func()) {
	for {
		select {
		case <-l.halt:
			return
		case <-time.After(pause):
			do()
		}
	}
}

func (l *load) read() {
	l.ask("GET", "/api/tasks", "", http.StatusOK, func(body string) bool { return strings.Contains(body, tourTask) })
}

func (l *load) write() {
	var made struct {
		ID int64 `json:"id"`
	}
	l.ask("POST", "/api/tasks", `{"title":"written under load"}`, http.StatusCreated, func(body string) bool { return json.Unmarshal([]byte(body), &made) == nil })
	if made.ID > 0 {
		l.ask("DELETE", fmt.Sprintf("/api/tasks/%d", made.ID), "", http.StatusNoContent, func(string) bool { return true })
	}
}

func (l *load) ask(method, path, body string, want int, good func(string) bool) {
	problem := l.once(method, path, body, want, good)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	if problem == "" {
		return
	}
	if l.failed++; l.first == "" {
		l.first = time.Now().UTC().Format("15:04:05.000 ") + method + " " + path + ": " + problem
	}
}

func (l *load) once(method, path, body string, want int, good func(string) bool) string {
	request, err := http.NewRequest(method, l.url+path, strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := l.client.Do(request)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	if response.StatusCode != want || !good(string(text)) {
		return fmt.Sprintf("%s: %.200s", response.Status, text)
	}
	return ""
}

// more waits for so many further requests.
func (tr *tour) more(t *testing.T, n int64) {
	t.Helper()
	tr.load.mu.Lock()
	want := tr.load.asked + n
	tr.load.mu.Unlock()
	tr.eventually(t, "requests are answered", func() error {
		tr.load.mu.Lock()
		defer tr.load.mu.Unlock()
		if tr.load.asked < want {
			return fmt.Errorf("%d of %d", tr.load.asked, want)
		}
		return nil
	})
}

// check is the count of a step: no request may have failed.
func (l *load) check(t *testing.T, step string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Logf("%s: %d requests, %d failed", step, l.asked, l.failed)
	if l.failed > 0 {
		t.Errorf("%s: %d of %d requests failed, the first: %s", step, l.failed, l.asked, l.first)
	}
	l.asked, l.failed, l.first = 0, 0, ""
}

func (l *load) stop() {
	close(l.halt)
	l.group.Wait()
}
