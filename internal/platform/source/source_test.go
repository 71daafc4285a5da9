package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, folder string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func git(t *testing.T, folder string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed; it makes the repositories that are read here")
	}
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"}, args...)...)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func scanned(t *testing.T, folder string) *Tree {
	t.Helper()
	tree, err := Scan(t.Context(), Options{Folder: folder, Host: "laptop"})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func paths(tree *Tree) string {
	var out []string
	for _, e := range tree.Entries {
		if !e.Mode.IsDir() {
			out = append(out, e.Path)
		}
	}
	return strings.Join(out, " ")
}

func TestIgnored(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, map[string]string{
		".gitignore": "*.log\n/dist/\n!keep.log\n", "a.log": "", "keep.log": "", "dist/x": "", "sub/dist/x": "", "sub/.gitignore": "secret\n", "sub/secret": "",
		"secret": "", ".env": "A=b", "sub/.env.local": "", ".env.example": "", "main.go": "package main",
	})
	if err := os.Symlink("main.go", filepath.Join(folder, "inside")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(folder, "outside")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../..", filepath.Join(folder, "sub", "up")); err != nil {
		t.Fatal(err)
	}
	tree := scanned(t, folder)
	if got, want := paths(tree), ".env.example .gitignore inside keep.log main.go secret sub/.gitignore sub/dist/x"; got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
	notes := strings.Join(tree.Notes, "\n")
	for _, want := range []string{".env is not sent", "outside is not sent: it is a link that leads out of the folder, to /etc/passwd", "sub/up is not sent"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes do not say %q:\n%s", want, notes)
		}
	}
	if tree.Commit != "" || !strings.HasPrefix(tree.Origin, "laptop:/") {
		t.Errorf("commit %q, origin %q", tree.Commit, tree.Origin)
	}
	if _, err := tree.FS().Open("a.log"); err == nil {
		t.Error("the sent folder shows what is ignored")
	}
}

func TestNoIgnoreFile(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, map[string]string{"package.json": "{}", "node_modules/a/index.js": ""})
	if got := paths(scanned(t, folder)); got != "package.json" {
		t.Errorf("sent %q", got)
	}
}

func TestCommit(t *testing.T) {
	top := t.TempDir()
	write(t, top, map[string]string{".gitignore": "*.gen\n", "app/main.go": "package main", "app/tracked.gen": "x", "app/new.gen": "y", "other/x": ""})
	git(t, top, "init", "-q")
	if tree := scanned(t, top); tree.Commit != "" {
		t.Errorf("a commit before the first: %q", tree.Commit)
	}
	git(t, top, "add", ".")
	git(t, top, "add", "-f", "app/tracked.gen")
	git(t, top, "commit", "-q", "-m", "first")
	git(t, top, "remote", "add", "origin", "https://ann:secret@example.com/acme/shop.git")
	folder := filepath.Join(top, "app")
	tree := scanned(t, folder)
	if got, want := paths(tree), "main.go tracked.gen"; got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
	if len(tree.Commit) != 40 || tree.Origin != "https://example.com/acme/shop.git//app" || time.Since(tree.Time) > time.Hour {
		t.Errorf("commit %q of %v, origin %q", tree.Commit, tree.Time, tree.Origin)
	}
	for name, change := range map[string]func(){
		"a change elsewhere": func() { write(t, top, map[string]string{"other/x": "changed"}) },
		"dirty: changed":     func() { write(t, top, map[string]string{"app/main.go": "package other"}) },
		"dirty: new":         func() { write(t, top, map[string]string{"app/new.go": "package main"}) },
		"dirty: removed":     func() { _ = os.Remove(filepath.Join(top, "app", "main.go")) },
		"dirty: mode":        func() { _ = os.Chmod(filepath.Join(top, "app", "main.go"), 0o755) },
	} {
		change()
		if got, want := strings.HasSuffix(scanned(t, folder).Commit, "+dirty"), strings.HasPrefix(name, "dirty"); got != want {
			t.Errorf("%s: dirty is %v", name, got)
		}
		git(t, top, "reset", "-q", "--hard")
		git(t, top, "clean", "-fdq")
	}
	git(t, top, "gc", "-q")
	git(t, top, "pack-refs", "--all")
	if packed := scanned(t, folder); packed.Commit != tree.Commit {
		t.Errorf("packed: %q, want %q", packed.Commit, tree.Commit)
	}
	work := filepath.Join(t.TempDir(), "work")
	git(t, top, "worktree", "add", "-q", work)
	if linked := scanned(t, filepath.Join(work, "app")); linked.Commit != tree.Commit || linked.Origin != tree.Origin {
		t.Errorf("a work tree: %q from %q", linked.Commit, linked.Origin)
	}
}

func TestArchiveIsDeterministic(t *testing.T) {
	var archives [][]byte
	for i := range 2 {
		folder := t.TempDir()
		write(t, folder, map[string]string{"b/x": "x", "a": "a", "run.sh": "#!"})
		_ = os.Chmod(filepath.Join(folder, "run.sh"), 0o700+os.FileMode(i)*0o55)
		_ = os.Chtimes(filepath.Join(folder, "a"), time.Now(), time.Now().Add(time.Duration(i)*time.Hour))
		var buf bytes.Buffer
		if err := scanned(t, folder).Archive(t.Context(), &buf); err != nil {
			t.Fatal(err)
		}
		archives = append(archives, buf.Bytes())
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("equal folders give different archives")
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(archives[0]))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(unpacked); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, header.FileInfo().Mode().String()+" "+header.Name)
	}
	if want := []string{"-rw-r--r-- a", "drwxr-xr-x b/", "-rw-r--r-- b/x", "-rwxr-xr-x run.sh"}; !slices.Equal(got, want) {
		t.Errorf("archive holds %q, want %q", got, want)
	}
}

func TestTooLarge(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, map[string]string{"big/a": strings.Repeat("x", 3<<20), "small": "x"})
	_, err := Scan(t.Context(), Options{Folder: folder, MaxBytes: 1 << 20})
	if _, ok := errors.AsType[*TooLargeError](err); !ok || !strings.Contains(err.Error(), "largest: big (3 MB), small (0 MB)") {
		t.Errorf("error is %v", err)
	}
}
