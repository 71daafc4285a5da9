//go:build linux

package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pusher is a repository of somebody who pushes to a cluster with the real git.
type pusher struct {
	*cluster
	folder, remote string
}

func (p *pusher) git(ctx context.Context, args ...string) *exec.Cmd {
	cmd := p.command(ctx, "git", args...)
	cmd.Dir = p.folder
	cmd.Env = append(cmd.Env, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_SSL_NO_VERIFY=1", "NO_PROXY=*",
		"GIT_AUTHOR_NAME=ann", "GIT_AUTHOR_EMAIL=ann@example.com", "GIT_COMMITTER_NAME=ann", "GIT_COMMITTER_EMAIL=ann@example.com")
	return cmd
}

func (p *pusher) must(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := p.git(ctx, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit makes a version of the application with something large beside it.
func (p *pusher) commit(t *testing.T, version int) string {
	t.Helper()
	large := make([]byte, 12<<20)
	_, _ = rand.Read(large)
	text := fmt.Sprintf("name: shop\nimage: %s\nenv: {VERSION: \"%d\"}\nprocesses: {web: {command: \"httpd -f -p 0.0.0.0:8080\", port: 8080}}\n", busyboxImage, version)
	for name, data := range map[string][]byte{"large.bin": large, "gantry.yaml": []byte(text)} {
		if err := os.WriteFile(filepath.Join(p.folder, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.must(t, "add", ".")
	p.must(t, "commit", "-q", "-m", fmt.Sprint(version))
	return p.must(t, "rev-parse", "HEAD")
}

// whole checks that a branch of the server's repository, if there is one, has every object, and returns its commit.
func (p *pusher) whole(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(p.dir, "git", "default", "shop.git")
	packs, err := filepath.Glob(filepath.Join(dir, "objects", "pack", "*.idx"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pack := range packs {
		p.must(t, "verify-pack", pack)
	}
	text, err := os.ReadFile(filepath.Join(dir, "refs", "heads", "main"))
	if os.IsNotExist(err) {
		return ""
	}
	head := strings.TrimSpace(string(text))
	if err != nil || len(head) != 40 {
		t.Fatalf("the branch is %q, %v", text, err)
	}
	look := t.TempDir()
	p.must(t, "init", "-q", "--bare", look)
	if err := os.WriteFile(filepath.Join(look, "objects", "info", "alternates"), []byte(dir+"/objects\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.must(t, "--git-dir="+look, "rev-list", "--objects", "--quiet", head)
	return head
}

// TestPushKilled ends Gantry by force while somebody pushes, at several moments: the branch is as it was, or at the new
// commit with every object, and the same push goes through afterwards.
func TestPushKilled(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("there is no git")
	}
	c := newCluster(t)
	c.up(t)
	c.load(t, false)
	added := c.gantry(t, "", "user", "add", "ci", "--role", "deployer", "-p", "default")
	if added.code != 0 {
		t.Fatalf("user add: %v", added)
	}
	p := &pusher{cluster: c, folder: t.TempDir(), remote: "https://ci:" + strings.TrimSpace(added.stdout) + "@127.0.0.1:6443/git/default/shop.git"}
	p.must(t, "init", "-q", "-b", "main")
	before := ""
	for version, wait := range []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond, 1200 * time.Millisecond} {
		commit := p.commit(t, version)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		push := p.git(ctx, "push", p.remote, "main")
		var said strings.Builder
		push.Stdout, push.Stderr = &said, &said
		if err := push.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.NewTimer(wait) // the moment of the kill: any is right
		<-timer.C
		c.kill(t, syscall.SIGKILL)
		pushed := push.Wait()
		cancel()
		c.up(t)
		head := p.whole(t)
		t.Logf("killed after %s: the push says %v, the branch moved: %t", wait, pushed, head == commit)
		switch {
		case pushed == nil && head != commit:
			t.Errorf("the push went well and the branch is %q, not %s:\n%s", head, commit, said.String())
		case head != commit && head != before:
			t.Errorf("the branch is %q, neither %q nor %s", head, before, commit)
		}
		eventually(t, "the same push goes through", time.Minute, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if out, err := p.git(ctx, "push", p.remote, "main").CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		if before = p.whole(t); before != commit {
			t.Errorf("after the push the branch is %q, want %s", before, commit)
		}
		if left, _ := filepath.Glob(filepath.Join(c.dir, "git", "default", "shop.git", "incoming-*")); len(left) > 0 {
			t.Errorf("a killed push left %v", left)
		}
	}
}
