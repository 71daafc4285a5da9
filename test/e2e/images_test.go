//go:build linux

package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const (
	busyboxImage = "busybox:e2e"
	appImage     = "app:e2e"
)

// busyboxArchive writes a docker archive of Debian's static busybox.
func busyboxArchive(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install busybox-static (\"make deps\")", err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	write := func(h tar.Header, body []byte) {
		t.Helper()
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "proc/", "sys/", "dev/", "home/"} {
		write(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	write(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	write(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/home:/bin/sh\n"))
	write(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nweb:x:1000:\n"))
	for _, applet := range []string{
		"sh", "cat", "echo", "sleep", "ls", "env", "id", "nslookup", "wget", "httpd", "nc", "ps", "kill", "tar", "mkdir", "touch",
		"true", "false", "test", "stat", "hostname", "date", "grep", "head", "seq", "find", "readlink", "rm", "mv", "cp", "trap", "stty", "tty",
	} {
		write(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	packed, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, packed)
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: "amd64", OS: "linux", RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin", "FROM_IMAGE=yes"}, WorkingDir: "/"},
	})
	if err != nil {
		t.Fatal(err)
	}
	// mutate.ConfigFile replaces the whole file, so that the layer's hash comes once more.
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	diff, err := packed.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	config.RootFS.DiffIDs = []v1.Hash{diff}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(busyboxImage)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "busybox.tar")
	if err := tarball.WriteToFile(path, tag, image); err != nil {
		t.Fatal(err)
	}
	return path
}

// built remembers archives for all tests: a Go program is compiled once.
var built sync.Map // folder to func() ([]byte, error)

// load gives the cluster the busybox image and, with app, that of testdata/app.
func (c *cluster) load(t *testing.T, app bool) {
	t.Helper()
	c.mustGantry(t, "image", "load", busyboxArchive(t))
	if app {
		c.loadProgram(t, "testdata/app", appImage)
	}
}

// loadProgram builds a folder's Go program and loads its image.
func (c *cluster) loadProgram(t *testing.T, folder, tag string) {
	t.Helper()
	build, _ := built.LoadOrStore(folder, sync.OnceValues(func() ([]byte, error) {
		path := filepath.Join(t.TempDir(), "image.tar")
		// Not on the machine of the test: the go command may have to ask the module proxy.
		cmd := exec.CommandContext(t.Context(), filepath.Join(c.bin, "gantry"), "image", "build", folder, "--tag", tag, "--output", path)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("gantry image build %s: %v\n%s", folder, err, out)
		}
		return os.ReadFile(path)
	}))
	archive, err := build.(func() ([]byte, error))()
	if err != nil {
		t.Fatal(err)
	}
	if r := c.gantry(t, string(archive), "image", "load", "-"); r.code != 0 {
		t.Fatalf("gantry image load: %v", r)
	}
}
