//go:build linux

package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestLevelOf(t *testing.T) {
	for name, tc := range map[string]struct {
		was  int32
		free uint64
		want int32
	}{
		"room":                  {roomEnough, 100, roomEnough},
		"just enough":           {roomEnough, 80, roomEnough},
		"too little":            {roomEnough, 79, roomForNodes},
		"nothing":               {roomEnough, 4, roomForNothing},
		"for deletes":           {roomEnough, 39, roomForDeletes},
		"a little more":         {roomForNodes, 99, roomForNodes},
		"room again":            {roomForNodes, 100, roomEnough},
		"from nothing to nodes": {roomForNothing, 40, roomForNodes},
	} {
		if got := levelOf(tc.was, tc.free, 80); got != tc.want {
			t.Errorf("%s: levelOf(%d, %d, 80) = %d, want %d", name, tc.was, tc.free, got, tc.want)
		}
	}
}

func TestWorthShrinking(t *testing.T) {
	const mib = 1 << 20
	for name, tc := range map[string]struct {
		size, used, quota int64
		want              bool
	}{
		"small":                  {20 * mib, 10 * mib, 2048 * mib, false},
		"half of it":             {40 * mib, 20 * mib, 2048 * mib, true},
		"a third of it":          {90 * mib, 60 * mib, 2048 * mib, false},
		"near the quota":         {1900 * mib, 1800 * mib, 2048 * mib, true},
		"near the quota, all in": {1900 * mib, 1899 * mib, 2048 * mib, false},
	} {
		if got := worthShrinking(tc.size, tc.used, tc.quota); got != tc.want {
			t.Errorf("%s: worthShrinking = %t", name, got)
		}
	}
}

// insist polls until check is nil.
func insist(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// TestFullDisk fills the file system of the store.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a file system of its own")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=420m"); err != nil {
		t.Skipf("no file system of its own: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	s, stop := start(t, Options{Dir: filepath.Join(dir, "etcd"), MinFreeBytes: 96 << 20})
	defer stop()
	first, err := s.Create(t.Context(), "configmaps", "default/first", namedMap("first", "x"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Create(t.Context(), "configmaps", "default/second", namedMap("second", "x"))
	if err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	fill := func(left uint64) {
		file, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		for {
			if free, err := freeBytes(dir); err != nil || free <= left {
				return
			}
			if _, err := file.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}
	fill(40 << 20)
	i := 0
	insist(t, "writes are refused", func() error {
		i++
		name := fmt.Sprintf("full-%d", i)
		if _, err := s.Create(t.Context(), "configmaps", "default/"+name, namedMap(name, "x")); !errors.Is(err, ErrDiskFull) {
			return fmt.Errorf("Create = %v, want %w", err, ErrDiskFull)
		}
		return nil
	})
	if err := s.Trouble(); !errors.Is(err, ErrDiskFull) {
		t.Errorf("Trouble = %v", err)
	}
	if _, err := s.Get("configmaps", "default/first"); err != nil {
		t.Errorf("reading with a full disk: %v", err)
	}
	if _, err := s.Delete(t.Context(), "configmaps", first.Key, first.Rev); err != nil {
		t.Errorf("deleting with a full disk: %v", err)
	}
	fill(0) // to the last byte
	if _, err := s.Delete(t.Context(), "configmaps", second.Key, second.Rev); !errors.Is(err, ErrDiskFull) {
		t.Errorf("deleting without any room: %v, want %v", err, ErrDiskFull)
	}
	if _, err := s.Get("configmaps", second.Key); err != nil {
		t.Errorf("reading without any room: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	insist(t, "writes are taken again", func() error {
		_, err := s.Create(t.Context(), "configmaps", "default/again", namedMap("again", "x"))
		return err
	})
	if err := s.Trouble(); err != nil {
		t.Errorf("Trouble = %v", err)
	}
}

// TestFullDatabase writes to the quota, deletes, and writes again.
func TestFullDatabase(t *testing.T) {
	s, stop := start(t, Options{Dir: t.TempDir(), QuotaBytes: 24 << 20})
	defer stop()
	value := string(bytes.Repeat([]byte("x"), 500<<10))
	var entries []*Entry
	insist(t, "the quota is reached", func() error {
		for range 5 {
			name := fmt.Sprintf("c%d", len(entries))
			e, err := s.Create(t.Context(), "configmaps", "default/"+name, namedMap(name, value))
			if errors.Is(err, ErrFull) {
				return nil
			}
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, e)
		}
		return errors.New("there is still room")
	})
	for _, e := range entries {
		if _, err := s.Delete(t.Context(), "configmaps", e.Key, e.Rev); err != nil {
			t.Fatal(err)
		}
	}
	insist(t, "there is room again", func() error {
		_, err := s.Create(t.Context(), "configmaps", "default/again", namedMap("again", "x"))
		return err
	})
	insist(t, "the file is small", func() error {
		if size, _ := s.SizeBytes(); size > 4<<20 {
			return fmt.Errorf("it has %d bytes", size)
		}
		return nil
	})
}
