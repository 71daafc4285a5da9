//go:build linux

package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Busybox is the image that LoadBusybox gives the node.
const Busybox = "busybox:conformance"

// LoadBusybox gives the node an image with this machine's static busybox, so that pods with a
// shell can run without a registry.
func (c *Cluster) LoadBusybox(ctx context.Context) error {
	archive, err := os.CreateTemp("", "busybox-*.tar")
	if err != nil {
		return fmt.Errorf("cluster: make an archive: %w", err)
	}
	defer func() { _ = os.Remove(archive.Name()) }()
	if err := archive.Close(); err != nil {
		return fmt.Errorf("cluster: make an archive: %w", err)
	}
	if err := writeBusybox(archive.Name()); err != nil {
		return err
	}
	return c.gantry(ctx, "image", "load", filepath.Clean(archive.Name()))
}

func writeBusybox(path string) error {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("cluster: busybox-static must be installed: %w", err)
	}
	content, err := busyboxLayer(program)
	if err != nil {
		return fmt.Errorf("cluster: pack busybox: %w", err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return fmt.Errorf("cluster: pack busybox: %w", err)
	}
	diff, err := layer.DiffID()
	if err != nil {
		return fmt.Errorf("cluster: pack busybox: %w", err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return fmt.Errorf("cluster: pack busybox: %w", err)
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diff}},
		Config: v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}, WorkingDir: "/"},
	})
	if err != nil {
		return fmt.Errorf("cluster: pack busybox: %w", err)
	}
	tag, err := name.NewTag(Busybox)
	if err != nil {
		return fmt.Errorf("cluster: name busybox: %w", err)
	}
	if err := tarball.WriteToFile(path, tag, image); err != nil {
		return fmt.Errorf("cluster: write busybox: %w", err)
	}
	return nil
}

// busyboxLayer is busybox, the commands that tests use, and the folders that programs expect.
func busyboxLayer(program []byte) ([]byte, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	headers := []tar.Header{{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"} {
		headers = append(headers, tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755})
	}
	for _, applet := range []string{"sh", "cat", "echo", "sleep", "ls", "env", "tar", "mkdir", "hostname", "httpd", "wget", "test", "rm"} {
		headers = append(headers, tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777})
	}
	for _, header := range headers {
		if err := w.WriteHeader(&header); err != nil {
			return nil, err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if _, err := w.Write(program); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return layer.Bytes(), nil
}
