package crilog

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func record(second int, stream, tag, text string) string {
	return fmt.Sprintf("2026-01-02T03:04:%02dZ %s %s %s\n", second, stream, tag, text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReadOverRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write([]byte(record(1, "stdout", "F", "one") + record(2, "stdout", "F", "two"))); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, path+".20260102-030402.gz", packed.String())
	write(t, path+".20260102-030403", record(3, "stderr", "P", "thr")+record(3, "stderr", "F", "ee"))
	write(t, path, record(4, "stdout", "F", "four")+"cut by a cra")
	for name, tc := range map[string]struct {
		opts Options
		want string
	}{
		"all":             {Options{Tail: -1}, "one\ntwo\nthree\nfour\n"},
		"tail over files": {Options{Tail: 3}, "two\nthree\nfour\n"},
		"tail of none":    {Options{Tail: 0}, ""},
		"one stream":      {Options{Tail: -1, Stream: "stderr"}, "three\n"},
		"limit":           {Options{Tail: -1, LimitBytes: 6}, "one\ntw"},
		"since":           {Options{Tail: -1, Since: time.Date(2026, 1, 2, 3, 4, 3, 0, time.UTC)}, "three\nfour\n"},
		"timestamps":      {Options{Tail: 2, Timestamps: true}, "2026-01-02T03:04:03Z three\n2026-01-02T03:04:04Z four\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Read(t.Context(), path, tc.opts, &out, &out); err != nil || out.String() != tc.want {
				t.Errorf("Read = %q, %v; want %q", out.String(), err, tc.want)
			}
		})
	}
	if got, err := Tail(path, 2, 7); err != nil || got != "e\nfour\n" {
		t.Errorf("Tail = %q, %v", got, err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func await(t *testing.T, out *lockedBuffer, want string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); out.String() != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("followed %q, want %q", out.String(), want)
		}
	}
}

func TestFollowOverRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, record(1, "stdout", "F", "one"))
	var done atomic.Bool
	out := &lockedBuffer{}
	ended := make(chan error, 1)
	go func() {
		ended <- Read(context.Background(), path, Options{Tail: -1, Follow: true, Done: done.Load}, out, out)
	}()
	await(t, out, "one\n")
	write(t, path, strings.TrimSuffix(record(2, "stdout", "F", "two"), "o\n"))
	write(t, path, "o\n")
	await(t, out, "one\ntwo\n")
	write(t, path, record(3, "stdout", "F", "three"))
	if err := os.Rename(path, path+".20260102-030404"); err != nil {
		t.Fatal(err)
	}
	write(t, path, record(4, "stdout", "F", "four"))
	await(t, out, "one\ntwo\nthree\nfour\n")
	write(t, path, record(5, "stdout", "F", "five"))
	done.Store(true)
	if err := <-ended; err != nil || out.String() != "one\ntwo\nthree\nfour\nfive\n" {
		t.Errorf("the end is %q, %v", out.String(), err)
	}
}
