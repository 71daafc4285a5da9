package git_test

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/platform/access"
	"gantry.dev/gantry/internal/platform/deploy/deploytest"
)

// work is a repository of somebody who pushes with the real git.
type work struct {
	t      *testing.T
	folder string
}

func newWork(t *testing.T) *work {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("there is no git")
	}
	w := &work{t, t.TempDir()}
	w.must("init", "-q", "-b", "main")
	return w
}

func (w *work) git(args ...string) (string, error) {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), "git", args...)
	cmd.Dir = w.folder
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_SSL_NO_VERIFY=1", "NO_PROXY=127.0.0.1",
		"GIT_AUTHOR_NAME=ann", "GIT_AUTHOR_EMAIL=ann@example.com", "GIT_COMMITTER_NAME=ann", "GIT_COMMITTER_EMAIL=ann@example.com")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (w *work) must(args ...string) string {
	w.t.Helper()
	out, err := w.git(args...)
	if err != nil {
		w.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// commit writes a file and commits it.
func (w *work) commit(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.folder, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.must("add", ".")
	w.must("commit", "-q", "-m", name)
}

func (w *work) refused(what, target, branch, want string) {
	w.t.Helper()
	out, err := w.git("push", target, branch)
	if err == nil || !strings.Contains(out, want) {
		w.t.Errorf("%s: %v, want %q in\n%s", what, err, want, out)
	}
}

// remote is the address that somebody with a token pushes to.
func remote(t *testing.T, server, token, app string) string {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	u.User, u.Path = url.UserPassword("ci", token), "/git/default/"+app+".git"
	return u.String()
}

// TestPush takes an application from its first push to a refused and a repeated one.
func TestPush(t *testing.T) {
	p := deploytest.Start(t)
	users, err := access.Connect(p.Config)
	if err != nil {
		t.Fatal(err)
	}
	token, err := users.AddUser(t.Context(), access.AddRequest{Name: "ci", Grant: access.Grant{Role: access.Deployer, Project: "default"}})
	if err != nil {
		t.Fatal(err)
	}
	only, err := users.AddUser(t.Context(), access.AddRequest{Name: "only", Grant: access.Grant{Role: access.Deployer, Project: "default", App: "shop"}})
	if err != nil {
		t.Fatal(err)
	}
	w := newWork(t)
	shop := remote(t, p.Config.Host, token, "shop")
	w.commit("gantry.yaml", "name: shop\nimge: shop:1\n")
	w.refused("a wrong token", remote(t, p.Config.Host, "nonsense", "shop"), "main", "Authentication failed")
	w.refused("another's application", remote(t, p.Config.Host, only, "other"), "main", "403")
	w.refused("another branch", shop, "main:next", "only the branch main is deployed")
	w.refused("a wrong file", shop, "main", "gantry.yaml:2:1")
	w.commit("gantry.yaml", "name: shop\nport: 80\n")
	w.refused("nothing to build", shop, "main", "nothing to build")
	if out, err := w.git("ls-remote", shop); err == nil {
		t.Errorf("a fetch is let in: %s", out)
	}
	w.commit("gantry.yaml", "name: shop\nimage: shop:1\n")
	out := w.must("push", shop, "main")
	if !strings.Contains(out, "remote: shop v1 serves") || !strings.Contains(out, "[new branch]") {
		t.Errorf("the first push says\n%s", out)
	}
	app, err := p.Cluster.App(t.Context(), types.NamespacedName{Namespace: "default", Name: "shop"})
	if err != nil || app.Spec.Image != "shop:1" || app.Spec.Source == nil || app.Spec.Source.By != "ci" || !strings.HasPrefix(w.must("rev-parse", "HEAD"), app.Spec.Source.Commit) {
		t.Errorf("the application is %+v, %v", app, err)
	}
	served := w.must("rev-parse", "HEAD")
	w.commit("gantry.yaml", "name: shop\nimage: crash:2\n")
	w.refused("a release that crashes", shop, "main", "deploy failed")
	w.must("reset", "-q", "--hard", served[:40])
	if out := w.must("push", shop, "main"); !strings.Contains(out, "up-to-date") {
		t.Errorf("the branch moved with a failed deploy:\n%s", out)
	}
	w.commit("gantry.yaml", "name: shop\nimage: shop:3\n")
	if out := w.must("push", remote(t, p.Config.Host, only, "shop"), "main"); !strings.Contains(out, "serves") {
		t.Errorf("the push of who may only this application says\n%s", out)
	}
	t.Run("at once", func(t *testing.T) { testAtOnce(t, w, shop) })
}

// testAtOnce pushes two different commits at the same time: one becomes the branch, the other is told to look.
func testAtOnce(t *testing.T, w *work, target string) {
	w.must("branch", "other")
	w.commit("gantry.yaml", "name: shop\nimage: shop:4\n")
	w.must("checkout", "-q", "other")
	w.commit("gantry.yaml", "name: shop\nimage: shop:5\n")
	outs, errs := make([]string, 2), make([]error, 2)
	var group sync.WaitGroup
	for i, branch := range []string{"main", "other:main"} {
		group.Go(func() { outs[i], errs[i] = w.git("push", target, branch) })
	}
	group.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Errorf("want one of two to win, got %v and %v:\n%s\n%s", errs[0], errs[1], outs[0], outs[1])
	}
}
