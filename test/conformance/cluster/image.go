//go:build linux

package cluster

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Busybox is the image that LoadBusybox gives the node.
const Busybox = "busybox:conformance"

// image is what the node gets in place of one from a registry: this machine's busybox, and maybe
// a program.
type image struct {
	names      []string
	programs   map[string]string // path in the image to the file on this machine
	entrypoint []string
	cmd        []string
	user       string
	mode       int64 // of the programs; default 0755
}

// LoadBusybox gives the node an image with this machine's static busybox, so that pods with a
// shell can run without a registry.
func (c *Cluster) LoadBusybox(ctx context.Context) error {
	return c.load(ctx, image{names: []string{Busybox}, cmd: []string{"sh"}})
}

// LoadSuiteImages gives the node stand-ins for the images that most of upstream's tests use, under
// their names. dir holds upstream's programs: agnhost is built from upstream's source, the others are it or busybox. What they do
// not have: a shell that hands on variables whose names are no identifiers (Debian's busybox drops
// them; two tests of ConfigMap and Secret variables fail for it), and programs of other images.
func (c *Cluster) LoadSuiteImages(ctx context.Context, dir string) error {
	const registry = "registry.k8s.io/e2e-test-images/"
	programs := map[string]string{"agnhost": filepath.Join(dir, "agnhost")}
	server := []string{"/agnhost", "netexec", "--http-port=80", "--udp-port=-1"}
	for _, i := range []image{
		{names: []string{registry + "agnhost:2.63.0", registry + "agnhost:2.55"}, programs: programs, entrypoint: []string{"/agnhost"}, cmd: []string{"pause"}},
		{names: []string{registry + "busybox:1.37.0-1", "busybox:latest"}, cmd: []string{"sh"}},
		{names: []string{"registry.k8s.io/pause:3.10.2", "registry.k8s.io/pause:3.10.1"}, programs: programs, entrypoint: []string{"/agnhost", "pause"}},
		{names: []string{registry + "nginx:1.15-4", registry + "nginx:1.27-0", registry + "httpd:2.4.38-4", registry + "httpd:2.4.39-4"}, programs: programs, cmd: server},
		{names: []string{registry + "nonroot:1.5"}, cmd: []string{"sh", "-c", "id -u"}, user: "1234"},
		{names: []string{registry + "nonewprivs:1.4"}, programs: map[string]string{"bin/nnp": filepath.Join(dir, "nnp")}, cmd: []string{"nnp"}, mode: 0o4755},
		{names: []string{registry + "ipc-utils:1.4"}, cmd: []string{"sh"}},
	} {
		if err := c.load(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) load(ctx context.Context, i image) error {
	archive, err := os.CreateTemp("", "image-*.tar")
	if err != nil {
		return fmt.Errorf("cluster: make an archive: %w", err)
	}
	defer func() { _ = os.Remove(archive.Name()) }()
	if err := archive.Close(); err != nil {
		return fmt.Errorf("cluster: make an archive: %w", err)
	}
	if err := i.write(archive.Name()); err != nil {
		return err
	}
	return c.gantry(ctx, "image", "load", filepath.Clean(archive.Name()))
}

func (i image) write(path string) error {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("cluster: busybox-static must be installed: %w", err)
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("cluster: ask busybox what it has: %w", err)
	}
	content, err := i.layer(busybox, strings.Fields(string(applets)))
	if err != nil {
		return fmt.Errorf("cluster: pack %s: %w", i.names[0], err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return fmt.Errorf("cluster: pack %s: %w", i.names[0], err)
	}
	diff, err := layer.DiffID()
	if err != nil {
		return fmt.Errorf("cluster: pack %s: %w", i.names[0], err)
	}
	packed, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return fmt.Errorf("cluster: pack %s: %w", i.names[0], err)
	}
	packed, err = mutate.ConfigFile(packed, &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diff}},
		Config: v1.Config{Entrypoint: i.entrypoint, Cmd: i.cmd, User: i.user, Env: []string{"PATH=/bin"}, WorkingDir: "/"},
	})
	if err != nil {
		return fmt.Errorf("cluster: pack %s: %w", i.names[0], err)
	}
	tags := map[name.Tag]v1.Image{}
	for _, n := range i.names {
		tag, err := name.NewTag(n)
		if err != nil {
			return fmt.Errorf("cluster: name %s: %w", n, err)
		}
		tags[tag] = packed
	}
	if err := tarball.MultiWriteToFile(path, tags); err != nil {
		return fmt.Errorf("cluster: write %s: %w", i.names[0], err)
	}
	return nil
}

// accounts are the users that upstream's tests of groups expect.
const (
	users  = "root:x:0:0:root:/:/bin/sh\nuser-defined-in-image:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
	groups = "root:x:0:\ngroup-defined-in-image:x:50000:user-defined-in-image\nuser-defined-in-image:x:1000:\nnobody:x:65534:\n"
)

// layer is busybox with its commands, the image's programs, and the folders that programs expect.
func (i image) layer(busybox []byte, applets []string) ([]byte, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	put := func(header tar.Header, content []byte) error {
		header.Size = int64(len(content))
		if err := w.WriteHeader(&header); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	var errs []error
	for _, dir := range []string{"bin/", "etc/", "tmp/", "proc/", "sys/", "dev/", "usr/", "usr/bin/", "var/", "uploads/"} {
		mode := int64(0o755)
		if dir == "tmp/" || dir == "uploads/" {
			mode = 0o1777
		}
		errs = append(errs, put(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: mode}, nil))
	}
	errs = append(errs,
		put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, busybox),
		put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte(users)),
		put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte(groups)))
	// Tests of hooks call curl with an address alone.
	errs = append(errs, put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/bash", Mode: 0o755}, []byte("#!/bin/sh\nexec /bin/sh \"$@\"\n")))
	errs = append(errs, put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/curl", Mode: 0o755}, []byte("#!/bin/sh\nfor last; do :; done\nexec wget -qO- \"$last\"\n")))
	for _, applet := range applets {
		if applet != "busybox" {
			errs = append(errs, put(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, nil))
		}
	}
	for target, source := range i.programs {
		program, err := os.ReadFile(source)
		if err != nil {
			return nil, err
		}
		errs = append(errs, put(tar.Header{Typeflag: tar.TypeReg, Name: target, Mode: cmp.Or(i.mode, 0o755)}, program),
			put(tar.Header{Typeflag: tar.TypeSymlink, Name: target + "-2", Linkname: filepath.Base(target), Mode: 0o777}, nil))
	}
	if err := errors.Join(append(errs, w.Close())...); err != nil {
		return nil, err
	}
	return layer.Bytes(), nil
}
