package applog_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gantry.dev/gantry/internal/applog"
)

// begun is a time of the tests: lines are some seconds after it.
func begun() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func write(t *testing.T, path string, lines ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// cri is a line of a container's log.
func cri(second int, text string) string {
	return begun().Add(time.Duration(second)*time.Second).Format(time.RFC3339Nano) + " stdout F " + text + "\n"
}

type rig struct {
	*applog.Keeper
	t    *testing.T
	pods string
	dir  string
}

func newRig(t *testing.T, change func(*applog.Options)) *rig {
	t.Helper()
	base := t.TempDir()
	r := &rig{t: t, pods: filepath.Join(base, "pods"), dir: filepath.Join(base, "apps")}
	opts := applog.Options{PodsDir: r.pods, Dir: r.dir}
	if change != nil {
		change(&opts)
	}
	var err error
	if r.Keeper, err = applog.New(opts); err != nil {
		t.Fatal(err)
	}
	return r
}

// pod makes a pod with the log of one container.
func (r *rig) pod(name, app, process, release string, second int, attempts ...[]string) {
	r.t.Helper()
	if err := r.Begin(applog.Pod{Namespace: "default", Name: name, UID: "u-" + name, App: app, Process: process, Release: release,
		Began: begun().Add(time.Duration(second) * time.Second)}); err != nil {
		r.t.Fatal(err)
	}
	for i, lines := range attempts {
		write(r.t, filepath.Join(r.pods, "default_"+name+"_u-"+name, "main", fmt.Sprint(i)+".log"), lines...)
	}
}

func (r *rig) end(name string, want bool) {
	r.t.Helper()
	if kept, err := r.End("default", name, "u-"+name); err != nil || kept != want {
		r.t.Fatalf("End(%s) = %t, %v; want %t", name, kept, err, want)
	}
}

// read returns "source text" of each line.
func (r *rig) read(q applog.Query, more ...applog.Source) (out []string) {
	r.t.Helper()
	q.Namespace = "default"
	var before time.Time
	if err := r.Read(r.t.Context(), q, more, func(l applog.Line) error {
		if l.Time.Before(before) {
			r.t.Errorf("%v %s comes after %v", l.Time, l.Text, before)
		}
		before = l.Time
		out = append(out, l.Source+" "+l.Text)
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	return out
}

func TestReadMergesAll(t *testing.T) {
	r := newRig(t, nil)
	r.pod("shop-web-1", "shop", "web", "1", 0, []string{cri(1, "one"), cri(4, "one crashes")}, []string{cri(6, "one again")})
	r.pod("shop-web-2", "shop", "web", "2", 7, []string{cri(8, "two")})
	r.pod("shop-worker-1", "shop", "worker", "1", 0, []string{cri(2, "work"), cri(9, "more work")})
	r.pod("shop-b-web-1", "shop-b", "web", "1", 0, []string{cri(3, "another app's")})
	write(t, filepath.Join(r.pods, "default_plain_u-plain", "main", "0.log"), cri(1, "of no app"))
	for second, text := range map[int]string{0: "v1 is live", 7: "v2 rolls"} {
		if err := r.Note("default", "shop", applog.Line{Time: begun().Add(time.Duration(second) * time.Second), Source: applog.SourcePlatform, ID: text, Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	r.end("shop-web-1", true) // a pod that is gone, with a container that was restarted
	r.end("plain", false)
	if _, err := os.Stat(filepath.Join(r.pods, "default_shop-web-1_u-shop-web-1")); err == nil {
		t.Error("the logs of a pod that is gone still lie with the others")
	}
	gateway := func() applog.Source {
		return applog.Decode(io.NopCloser(strings.NewReader(
			`{"time":"2026-03-01T12:00:05Z","source":"gateway","text":"GET / 502"}` + "\n" + `{"time":"2026-03-01T12:00:08.5Z","source":"gateway","text":"GET / 200"}` + "\nhalf a li")))
	}
	all := []string{
		"platform v1 is live", "shop-web-1 one", "shop-worker-1 work", "shop-web-1 one crashes", "gateway GET / 502", "shop-web-1 one again",
		"platform v2 rolls", "shop-web-2 two", "gateway GET / 200", "shop-worker-1 more work",
	}
	for name, tc := range map[string]struct {
		query applog.Query
		want  []string
	}{
		"all":            {applog.Query{}, all},
		"the last three": {applog.Query{Tail: 3}, all[7:]},
		"of a process":   {applog.Query{Process: "worker"}, []string{"shop-worker-1 work", "gateway GET / 502", "gateway GET / 200", "shop-worker-1 more work"}},
		"brief":          {applog.Query{Brief: true}, []string{"platform v1 is live", "gateway GET / 502", "platform v2 rolls", "gateway GET / 200"}},
		"since":          {applog.Query{Since: begun().Add(8 * time.Second)}, []string{"gateway GET / 502", "shop-web-2 two", "gateway GET / 200", "shop-worker-1 more work"}},
	} {
		t.Run(name, func(t *testing.T) {
			tc.query.App = "shop"
			if got := r.read(tc.query, gateway()); !slices.Equal(got, tc.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
	if got := r.read(applog.Query{App: "shop-b"}); len(got) != 1 {
		t.Errorf("of shop-b: %q", got)
	}
}

func TestKeptIsBounded(t *testing.T) {
	big := strings.Repeat("x", 1000)
	r := newRig(t, func(o *applog.Options) { o.MaxBytes = 5000 })
	for i := range 12 {
		name := fmt.Sprintf("shop-web-%02d", i)
		r.pod(name, "shop", "web", "1", i, []string{cri(i, big)})
		r.end(name, true)
		at := time.Now().Add(time.Duration(i-20) * time.Minute)
		if err := os.Chtimes(filepath.Join(r.dir, "default", "shop", "pods", name+"_u-"+name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	lines := r.read(applog.Query{App: "shop"})
	if len(lines) == 0 || len(lines) > 5 || !strings.HasPrefix(lines[len(lines)-1], "shop-web-11 ") {
		t.Errorf("%d lines are kept; want the newest, within 5,000 bytes", len(lines))
	}
}

func TestOldIsRemoved(t *testing.T) {
	r := newRig(t, func(o *applog.Options) { o.MaxAge, o.Sweep = time.Hour, time.Millisecond })
	for _, name := range []string{"shop-web-old", "shop-web-new"} {
		r.pod(name, "shop", "web", "1", 0, []string{cri(0, name)})
		r.end(name, true)
	}
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(filepath.Join(r.dir, "default", "shop", "pods", "shop-web-old_u-shop-web-old"), old, old); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.Run(t.Context()) }()
	for deadline := time.Now().Add(20 * time.Second); len(r.read(applog.Query{App: "shop"})) != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what is too old stays")
		}
	}
	if got := r.read(applog.Query{App: "shop"}); got[0] != "shop-web-new shop-web-new" {
		t.Errorf("kept: %q", got)
	}
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// What several nodes noted of one thing is one line.
func TestMergeDropsWhatIsTheSame(t *testing.T) {
	const text = `{"time":"2026-03-01T12:00:05Z","source":"platform","id":"e1/2","text":"woke"}` + "\n"
	var out []string
	source := func() applog.Source { return applog.Decode(io.NopCloser(strings.NewReader(text))) }
	if err := applog.Merge(t.Context(), []applog.Source{source(), source()}, 0, func(l applog.Line) error { out = append(out, l.Text); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(out) != 1 {
		t.Errorf("got %q", out)
	}
}
