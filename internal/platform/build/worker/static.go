//go:build linux

package worker

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"gantry.dev/gantry/internal/platform/build/job"
)

// staticImage makes an image of the file server and the files of a folder.
func (e *engine) staticImage(ctx context.Context, r job.Request, folder string, out *reporter) (string, []material, error) {
	program, err := e.serverProgram()
	if err != nil {
		return "", nil, err
	}
	out.say(job.Event{Type: job.Step, Text: "1/2 pack files"})
	server, err := layer(func(w *tar.Writer) error { return addFile(w, "gantry-static", 0o755, program, time.Unix(0, 0)) })
	if err != nil {
		return "", nil, fmt.Errorf("packing the file server: %w", err)
	}
	files, err := layer(func(w *tar.Writer) error { return addTree(w, folder, epoch(r)) })
	if err != nil {
		return "", nil, fmt.Errorf("packing the site: %w", err)
	}
	img, err := staticConfig(r, server, files)
	if err != nil {
		return "", nil, fmt.Errorf("packing the site: %w", err)
	}
	out.say(job.Event{Type: job.Step, Text: "2/2 push"})
	sum, err := e.push(ctx, r.Repository, img)
	return sum, nil, err
}

// staticConfig puts the layers together.
func staticConfig(r job.Request, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range layers {
		var err error
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{CreatedBy: "gantry deploy"}}); err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", runtime.GOARCH, v1.Time{Time: epoch(r)}
	file.Config = v1.Config{Entrypoint: []string{"/gantry-static"}, Cmd: []string{"-dir", "/site"}, User: "65532:65532", WorkingDir: "/"}
	if r.Args["SPA"] == "true" {
		file.Config.Cmd = append(file.Config.Cmd, "-spa")
	}
	if r.Commit != "" {
		file.Config.Labels = map[string]string{labelRevision: r.Commit}
	}
	return mutate.ConfigFile(img, file)
}

// layer makes a layer of what write puts into it.
func layer(write func(*tar.Writer) error) (v1.Layer, error) {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	if err := errors.Join(write(w), w.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(blob(buffer.Bytes()), tarball.WithCompressedCaching, tarball.WithMediaType(types.OCILayer))
}

func addFile(w *tar.Writer, name string, mode int64, data []byte, at time.Time) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data)), ModTime: at, Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// maxSite bounds a static site; what is larger belongs into an image of its own kind.
const maxSite = 1 << 30

// addTree adds the files of a folder as /site, in the order of their names. Hidden files stay out, except .well-known;
// links are followed inside of the folder alone.
func addTree(w *tar.Writer, folder string, at time.Time) error {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	var total int64
	return fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(entry.Name(), ".") && name != "." && entry.Name() != ".well-known"
		switch {
		case hidden && entry.IsDir():
			return fs.SkipDir
		case hidden || name == "node_modules":
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case entry.IsDir():
			return w.WriteHeader(&tar.Header{Name: path.Join("site", name) + "/", Mode: 0o755, ModTime: at, Typeflag: tar.TypeDir})
		}
		file, err := root.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		if total += info.Size(); total > maxSite {
			return &userError{text: fmt.Sprintf("the site has more than %d MiB", maxSite>>20)}
		}
		data, err := io.ReadAll(file)
		if err != nil {
			return err
		}
		return addFile(w, path.Join("site", name), 0o644, data, at)
	})
}
