//go:build linux

package lifecycle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mount mounts for one test.
func mount(t *testing.T, source, target, kind string, flags uintptr) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		t.Skipf("this machine does not let root mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o400); err != nil {
		t.Fatal(err)
	}
}

func TestPurge(t *testing.T) {
	base := t.TempDir()
	data, foreign := filepath.Join(base, "data"), filepath.Join(base, "foreign")
	write(t, filepath.Join(foreign, "precious"))
	write(t, filepath.Join(data, "etcd", "member", "wal"))
	if err := os.Symlink(foreign, filepath.Join(data, "link")); err != nil {
		t.Fatal(err)
	}
	mount(t, foreign, filepath.Join(data, "pods", "p", "volume"), "", unix.MS_BIND) // a bind mount of the same disk
	mount(t, "tmpfs", filepath.Join(data, "pods", "q"), "tmpfs", 0)
	mount(t, foreign, filepath.Join(data, "pods", "q", "inner"), "", unix.MS_BIND)
	if err := Purge(data); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Errorf("the data dir is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(foreign, "precious")); err != nil {
		t.Errorf("a foreign file is gone: %v", err)
	}
	if err := Purge(data); err != nil {
		t.Errorf("a second Purge: %v", err)
	}
}

func TestPurgeRefusesBusyMount(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	busy := filepath.Join(data, "pods", "busy")
	mount(t, "tmpfs", busy, "tmpfs", 0)
	write(t, filepath.Join(data, "keep"))
	file, err := os.Create(filepath.Join(busy, "open"))
	if err != nil {
		t.Fatal(err)
	}
	err = Purge(data)
	if err == nil || !strings.Contains(err.Error(), busy+" is still mounted") {
		t.Errorf("Purge = %v, want a refusal", err)
	}
	if _, err := os.Stat(filepath.Join(data, "keep")); err != nil {
		t.Errorf("a refused Purge removed something: %v", err)
	}
	_ = file.Close()
	if err := Purge(data); err != nil {
		t.Errorf("Purge after the file was closed: %v", err)
	}
}

func TestPurgeOfAMountPoint(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	mount(t, "tmpfs", data, "tmpfs", 0)
	write(t, filepath.Join(data, "etcd", "wal"))
	if err := Purge(data); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) != 0 {
		t.Errorf("the disk still holds %v, %v", entries, err)
	}
}
