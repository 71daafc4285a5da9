package gobuild

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// nonroot is the user of the image. Source: the number that distroless images use.
const nonroot = 65532

// certificatesPath is where Go looks for certificates first.
const certificatesPath = "etc/ssl/certs/ca-certificates.crt"

// maxCertificates bounds the file that is taken from this machine.
const maxCertificates = 4 << 20

// entry is one file or folder of a layer.
type entry struct {
	name string
	mode int64
	data []byte // nil is a folder
}

// pack makes the image and writes it.
func pack(opts Options, program, binary string, out io.Writer) (Result, error) {
	img, err := Image(opts, program, binary)
	if err != nil {
		return Result{}, err
	}
	return write(opts.Name, "/app/"+program, img, out)
}

// Pack makes the image of a program that is there and writes it to out as a docker archive. Of opts it uses Name, Arch and Args.
func Pack(opts Options, program, binary string, out io.Writer) (Result, error) {
	result, err := pack(opts, program, binary, out)
	if err != nil {
		return Result{}, fmt.Errorf("pack image: %w", err)
	}
	return result, nil
}

// Image makes the image of a compiled program: a layer that changes rarely and one with the
// program, which gets that name. Of opts it uses Arch, Args and Commit; nothing of it depends on the
// time, so that whoever compiles the same source gets the same image.
func Image(opts Options, program, binary string) (v1.Image, error) {
	data, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	base, err := baseEntries()
	if err != nil {
		return nil, err
	}
	img := mutate.MediaType(empty.Image, types.DockerManifestSchema2)
	for _, entries := range [][]entry{base, {{name: "app", mode: 0o755}, {name: "app/" + program, mode: 0o755, data: data}}} {
		layer, err := makeLayer(entries)
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{CreatedBy: "gantry image build"}}); err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", cmp.Or(opts.Arch, runtime.GOARCH)
	file.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	file.Config = v1.Config{
		Entrypoint: []string{"/app/" + program},
		Cmd:        opts.Args,
		User:       fmt.Sprintf("%d:%d", nonroot, nonroot),
		WorkingDir: "/app", // so that a command may be written as ./NAME
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/app", "HOME=/tmp"},
	}
	if opts.Commit != "" {
		file.Config.Labels = map[string]string{"org.opencontainers.image.revision": opts.Commit}
	}
	return mutate.ConfigFile(img, file)
}

// write writes the archive and describes the image.
func write(imageName, entryPoint string, img v1.Image, out io.Writer) (Result, error) {
	tag, err := name.NewTag(imageName)
	if err != nil {
		return Result{}, fmt.Errorf("image name %q: %w", imageName, err)
	}
	id, err := img.ConfigName()
	if err != nil {
		return Result{}, err
	}
	layers, err := img.Layers()
	if err != nil {
		return Result{}, err
	}
	result := Result{Name: imageName, Program: entryPoint, ID: id.String()}
	for _, layer := range layers {
		size, err := layer.Size()
		if err != nil {
			return Result{}, err
		}
		result.SizeBytes += size
	}
	return result, tarball.Write(tag, img, out)
}

// baseEntries is what a static program expects of a system: accounts, a folder for
// temporary files, and the certificates of this machine if it has any.
func baseEntries() ([]entry, error) {
	entries := []entry{
		{name: "etc", mode: 0o755},
		{name: "etc/passwd", mode: 0o644, data: fmt.Appendf(nil, "root:x:0:0:root:/:/\nnonroot:x:%d:%d:nonroot:/tmp:/\n", nonroot, nonroot)},
		{name: "etc/group", mode: 0o644, data: fmt.Appendf(nil, "root:x:0:\nnonroot:x:%d:\n", nonroot)},
		{name: "etc/ssl", mode: 0o755},
		{name: "etc/ssl/certs", mode: 0o755},
		{name: "tmp", mode: 0o1777},
	}
	for _, source := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"} {
		info, err := os.Stat(source)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("certificates: %w", err)
		}
		if info.Size() > maxCertificates {
			return nil, fmt.Errorf("certificates: %s has %d bytes, more than %d", source, info.Size(), maxCertificates)
		}
		data, err := os.ReadFile(source)
		if err != nil {
			return nil, fmt.Errorf("certificates: %w", err)
		}
		return append(entries, entry{name: certificatesPath, mode: 0o644, data: data}), nil
	}
	return entries, nil
}

// makeLayer makes a layer in which nothing depends on the time or the machine.
func makeLayer(entries []entry) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		header := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data)), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
		if e.data == nil {
			header.Typeflag, header.Name = tar.TypeDir, e.name+"/"
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	data := buf.Bytes()
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, tarball.WithCompressedCaching)
}
