package programs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"
)

// fakeBin is an embedded folder with one program.
func fakeBin(t *testing.T, contents, sumOf string) fstest.MapFS {
	t.Helper()
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(sumOf))
	return fstest.MapFS{
		"bin/tool.zst": {Data: encoder.EncodeAll([]byte(contents), nil)},
		"bin/INDEX":    {Data: fmt.Appendf(nil, "tool %s %d v1.2.3\n", hex.EncodeToString(sum[:]), len(contents))},
	}
}

// opened is a set of dir whose programs are unpacked.
func opened(t *testing.T, files fstest.MapFS, dir string) *Set {
	t.Helper()
	set, err := open(files, "bin", dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Unpack("tool", "unknown"); err != nil {
		t.Fatal(err)
	}
	return set
}

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	files := fakeBin(t, "program", "program")
	path, err := opened(t, files, dir).Path("tool")
	if err != nil {
		t.Fatal(err)
	}
	check := func() os.FileInfo {
		data, err := os.ReadFile(path)
		if err != nil || string(data) != "program" {
			t.Errorf("unpacked %q, %v", data, err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("mode %v, %v; want 0755", info.Mode(), err)
		}
		return info
	}
	first := check()
	opened(t, files, dir)
	if second := check(); !os.SameFile(first, second) {
		t.Error("a second Unpack wrote the program again")
	}
	if err := os.Truncate(path, 3); err != nil {
		t.Fatal(err)
	}
	opened(t, files, dir)
	check()
	other, err := opened(t, fakeBin(t, "newer", "newer"), dir).Path("tool")
	if err != nil || other == path {
		t.Errorf("another program has path %s, %v; want another than %s", other, err, path)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("leftovers in %v, %v", entries, err)
	}
}

func TestUnpackRefuses(t *testing.T) {
	dir := t.TempDir()
	damaged, err := open(fakeBin(t, "program", "something else"), "bin", dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := damaged.Unpack("tool"); err == nil || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("Unpack of a damaged program: %v", err)
	}
	if path, err := damaged.Path("tool"); err != nil {
		t.Error(err)
	} else if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a damaged program is at %s: %v", path, err)
	}
	none, err := open(fstest.MapFS{"bin/.gitkeep": {}}, "bin", dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.Path(Runc); !errors.Is(err, ErrNotBuiltIn) {
		t.Errorf("path of a program that is not built in: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	below, err := open(fakeBin(t, "program", "program"), "bin", filepath.Join(file, "sub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := below.Unpack("tool"); err == nil {
		t.Error("Unpack below a file succeeded")
	}
}

func TestLibraryVersions(t *testing.T) {
	got := libraryVersions(&debug.BuildInfo{GoVersion: "go1.26.8", Deps: []*debug.Module{
		{Path: "k8s.io/kubernetes", Version: "v1.36.3"}, {Path: "github.com/containerd/containerd/v2", Version: "v2.3.7"}, {Path: "x", Version: "v1.0.0"},
	}})
	want := []Version{{"kubernetes", "v1.36.3"}, {"containerd", "v2.3.7"}, {"go", "go1.26.8"}}
	if !slices.Equal(got, want) {
		t.Errorf("libraryVersions = %v, want %v", got, want)
	}
}

func TestVersionsNameOwnProgramsByContent(t *testing.T) {
	for _, v := range Versions() {
		if v.Version == "" || v.Version == unversioned {
			t.Errorf("the version of %s is %q", v.Name, v.Version)
		}
	}
}
