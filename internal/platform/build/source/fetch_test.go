package source

import (
	"errors"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// gitServer serves the repositories below root with git's own program; those below /private want ann and s3cret.
func gitServer(t *testing.T, root string) *httptest.Server {
	t.Helper()
	path, err := exec.CommandContext(t.Context(), "git", "--exec-path").Output()
	if err != nil {
		t.Skip("needs git: ", err)
	}
	backend := &cgi.Handler{Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"), Root: "/", Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"}}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, told := r.BasicAuth(); told {
			t.Error("a redirect to another server took the credentials along")
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(elsewhere.Close)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case strings.HasPrefix(r.URL.Path, "/private/") && (user != "ann" || password != "s3cret"):
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
		case strings.HasPrefix(r.URL.Path, "/moved/"):
			http.Redirect(w, r, elsewhere.URL+strings.TrimPrefix(r.URL.Path, "/moved")+"?"+r.URL.RawQuery, http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/page/"):
			_, _ = w.Write([]byte("<html>hello</html>"))
		default:
			backend.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server
}

// git runs the program in a folder and returns what it says.
func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a",
		"GIT_COMMITTER_EMAIL=a@b", "GIT_AUTHOR_DATE=2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// history makes root/shop.git with three commits on main, a branch, and two tags; it returns the commits by name.
func history(t *testing.T, root string) map[string]string {
	t.Helper()
	work := t.TempDir()
	git(t, work, "init", "-q", "-b", "main")
	commit := func(text string) string {
		write(t, work, map[string]string{"version.txt": text})
		git(t, work, "add", "-A")
		git(t, work, "commit", "-q", "-m", text)
		return git(t, work, "rev-parse", "HEAD")
	}
	commits := map[string]string{"one": commit("one")}
	git(t, work, "tag", "v1")
	commits["two"] = commit("two")
	git(t, work, "tag", "-a", "-m", "the second", "v2")
	git(t, work, "checkout", "-q", "-b", "team/next")
	commits["next"] = commit("next")
	git(t, work, "checkout", "-q", "main")
	write(t, work, map[string]string{"run.sh": "#!/bin/sh\n", ".env": "TOKEN=1", "web/index.html": "home"})
	if err := os.Chmod(filepath.Join(work, "run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("web/index.html", filepath.Join(work, "link")); err != nil {
		t.Fatal(err)
	}
	commits["three"] = commit("three")
	git(t, root, "clone", "-q", "--bare", work, "shop.git")
	if err := os.Mkdir(filepath.Join(root, "private"), 0o755); err != nil {
		t.Fatal(err)
	}
	git(t, root, "clone", "-q", "--bare", work, "private/shop.git")
	git(t, root, "init", "-q", "--bare", "empty.git")
	return commits
}

func TestFetch(t *testing.T) {
	root := t.TempDir()
	commits := history(t, root)
	server := gitServer(t, root)
	for name, tc := range map[string]struct {
		path, ref, user, password string
		want                      string // of commits, or, after "! ", an error's
	}{
		"the default branch":      {"/shop.git", "", "", "", "three"},
		"a branch":                {"/shop.git", "main", "", "", "three"},
		"a branch with a slash":   {"/shop.git", "team/next", "", "", "next"},
		"a full name":             {"/shop.git/", "refs/heads/team/next", "", "", "next"},
		"a tag":                   {"/shop.git", "v1", "", "", "one"},
		"a tag with a message":    {"/shop.git", "v2", "", "", "two"},
		"the commit of a branch":  {"/shop.git", commits["three"], "", "", "three"},
		"an earlier commit":       {"/shop.git", commits["two"], "", "", "two"},
		"a commit's beginning":    {"/shop.git", commits["one"][:9], "", "", "one"},
		"with credentials":        {"/private/shop.git", "v1", "ann", "s3cret", "one"},
		"moved":                   {"/moved/shop.git", "", "ann", "s3cret", "three"},
		"no such ref":             {"/shop.git", "nothing", "", "", "! /shop.git has no branch, tag or commit nothing; it has main, team/next, v1, v2"},
		"no such commit":          {"/shop.git", strings.Repeat("ab", 20), "", "", "! /shop.git has no branch, tag or commit abab"},
		"no such repository":      {"/none.git", "", "", "", "! there is no repository at /none.git"},
		"empty":                   {"/empty.git", "", "", "", "! the repository /empty.git is empty"},
		"without credentials":     {"/private/shop.git", "", "", "", "! /private/shop.git asks for a password: it is private, or not there"},
		"wrong credentials":       {"/private/shop.git", "", "ann", "wr0ng", "! /private/shop.git refuses the credentials of build.git.secret"},
		"no git server":           {"/page/shop.git", "", "", "", "! /page/shop.git does not answer as a git server"},
		"no host":                 {"http:shop.git", "", "", "", "! build.git: http:shop.git is fetched over SSH"},
		"nobody listens":          {"http://127.0.0.1:1/shop.git", "", "", "", "! http://127.0.0.1:1/shop.git cannot be reached from builds"},
		"SSH":                     {"git@example.com:acme/shop.git", "", "", "", "! build.git: git@example.com:acme/shop.git is fetched over SSH, which builds do not do: say https://example.com/acme/shop.git"},
		"another scheme":          {"file:///etc", "", "", "", "! build.git: the url is no address"},
		"ssh address":             {"ssh://git@example.com/shop.git", "", "", "", "! build.git: builds fetch over https or http, not ssh"},
		"a password in the url":   {"https://ann:s3cret@example.com/shop.git", "", "", "", "! build.git: the url holds a user or a password"},
		"a question in the url":   {"https://example.com/shop.git?x=y", "", "", "", "! build.git: the url has more"},
		"an option for a program": {"--upload-pack=x", "", "", "", "! build.git: the url is no address"},
	} {
		t.Run(name, func(t *testing.T) {
			from := Repository{URL: tc.path, Ref: tc.ref, User: tc.user, Password: tc.password}
			if strings.HasPrefix(tc.path, "/") {
				from.URL = server.URL + tc.path
			}
			dir := t.TempDir()
			got, err := Fetch(t.Context(), from, t.TempDir(), dir, time.Time{}, Limits{})
			if want, fails := strings.CutPrefix(tc.want, "! "); fails {
				refusal, ok := errors.AsType[*RefusedError](err)
				if !ok || !strings.HasPrefix(strings.ReplaceAll(refusal.Error(), server.URL, ""), want) {
					t.Fatalf("Fetch: %v, want %q", err, want)
				}
				if strings.Contains(err.Error(), "wr0ng") || strings.Contains(err.Error(), "s3cret") {
					t.Errorf("the error shows the password: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(filepath.Join(dir, "version.txt"))
			if err != nil || string(text) != tc.want || got.Commit != commits[tc.want] || !got.Time.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
				t.Errorf("fetched %q, %+v, %v; want %s", text, got, err, commits[tc.want])
			}
		})
	}
}

// TestCheckout looks at all files of a commit.
func TestCheckout(t *testing.T) {
	root := t.TempDir()
	history(t, root)
	server := gitServer(t, root)
	dir, at := t.TempDir(), time.Unix(1_700_000_000, 0)
	got, err := Fetch(t.Context(), Repository{URL: server.URL + "/shop.git"}, t.TempDir(), dir, at, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Notes) != 1 || !strings.HasPrefix(got.Notes[0], ".env is left out") {
		t.Errorf("notes = %q", got.Notes)
	}
	var names []string
	err = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			names = append(names, strings.TrimPrefix(path, dir+"/")+" "+info.Mode().String())
			if entry.Type().IsRegular() && !info.ModTime().Equal(at) {
				t.Errorf("%s is of %v, want %v", path, info.ModTime(), at)
			}
		}
		return err
	})
	want := "link Lrwxrwxrwx, run.sh -rwxr-xr-x, version.txt -rw-r--r--, web/index.html -rw-r--r--"
	if list := strings.Join(names, ", "); err != nil || list != want {
		t.Errorf("files = %s, %v; want %s", list, err, want)
	}
	if _, err := Fetch(t.Context(), Repository{URL: server.URL + "/shop.git"}, t.TempDir(), t.TempDir(), at, Limits{Bytes: 100}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("more than 100 bytes: %v, want ErrTooLarge", err)
	}
	if _, err := Fetch(t.Context(), Repository{URL: server.URL + "/shop.git"}, t.TempDir(), t.TempDir(), at, Limits{Entries: 2}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("more than 2 files: %v, want ErrTooLarge", err)
	}
}

// TestCheckoutUnsafe fetches a commit with a link that leads out.
func TestCheckoutUnsafe(t *testing.T) {
	root, work := t.TempDir(), t.TempDir()
	git(t, work, "init", "-q", "-b", "main")
	if err := os.Symlink("../../etc", filepath.Join(work, "etc")); err != nil {
		t.Fatal(err)
	}
	git(t, work, "add", "-A")
	git(t, work, "commit", "-q", "-m", "x")
	git(t, root, "clone", "-q", "--bare", work, "evil.git")
	server := gitServer(t, root)
	if _, err := Fetch(t.Context(), Repository{URL: server.URL + "/evil.git"}, t.TempDir(), t.TempDir(), time.Time{}, Limits{}); !errors.Is(err, ErrUnsafe) {
		t.Errorf("Fetch: %v, want ErrUnsafe", err)
	}
}
