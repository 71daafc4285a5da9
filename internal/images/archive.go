package images

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Source is an image in a file: a docker or OCI archive, or the folder of an OCI layout. One of Image and Index is set.
type Source struct {
	Image v1.Image
	Index v1.ImageIndex
	Name  string // that the file gives it, or ""
	close func() error
}

// Close gives the file up.
func (s *Source) Close() error { return s.close() }

// OpenSource opens an image in a file. A file with several images is refused.
func OpenSource(name string) (*Source, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	files := layoutFiles(layoutDir(name))
	done := func() error { return nil }
	if !info.IsDir() {
		archive, err := openArchive(name)
		if err != nil {
			return nil, fmt.Errorf("open image archive %s: %w", name, err)
		}
		files, done = archive, archive.file.Close
	}
	source, err := openLayout(files)
	if errors.Is(err, os.ErrNotExist) && !info.IsDir() {
		source, err = openDocker(name)
	}
	if err != nil {
		_ = done()
		return nil, fmt.Errorf("%s is neither a docker nor an OCI archive or layout: %w", name, err)
	}
	source.close = done
	return source, nil
}

// layoutFiles is where the files of an OCI layout are.
type layoutFiles interface {
	open(name string) (io.ReadCloser, error)
}

type layoutDir string

func (d layoutDir) open(name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(d), filepath.FromSlash(name)))
}

// archive is a tar file whose members are read in place.
type archive struct {
	file    *os.File
	members map[string]*io.SectionReader
}

func openArchive(name string) (*archive, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	a := &archive{file: file, members: map[string]*io.SectionReader{}}
	reader := tar.NewReader(file)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			_ = file.Close()
			return nil, err
		}
		at, err := file.Seek(0, io.SeekCurrent)
		if err != nil {
			_ = file.Close()
			return nil, err
		}
		if header.Typeflag == tar.TypeReg {
			a.members[path.Clean(header.Name)] = io.NewSectionReader(file, at, header.Size)
		}
	}
}

func (a *archive) open(name string) (io.ReadCloser, error) {
	member := a.members[name]
	if member == nil {
		return nil, fmt.Errorf("%s: %w", name, os.ErrNotExist)
	}
	return io.NopCloser(io.NewSectionReader(member, 0, member.Size())), nil
}

func openDocker(name string) (*Source, error) {
	opener := func() (io.ReadCloser, error) { return os.Open(name) }
	manifest, err := tarball.LoadManifest(opener)
	if err != nil {
		return nil, err
	}
	if len(manifest) != 1 {
		return nil, fmt.Errorf("it has %d images; push one at a time", len(manifest))
	}
	image, err := tarball.Image(opener, nil)
	if err != nil {
		return nil, err
	}
	source := &Source{Image: image}
	if len(manifest[0].RepoTags) > 0 {
		source.Name = manifest[0].RepoTags[0]
	}
	return source, nil
}

// Annotations that name an image in a layout.
const (
	annotationName    = "io.containerd.image.name"
	annotationRefName = "org.opencontainers.image.ref.name"
)

func openLayout(files layoutFiles) (*Source, error) {
	data, err := readMember(files, "index.json")
	if err != nil {
		return nil, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("it has %d images; push one at a time", len(index.Manifests))
	}
	desc := index.Manifests[0]
	source := &Source{Name: desc.Annotations[annotationName]}
	if source.Name == "" {
		source.Name = desc.Annotations[annotationRefName]
	}
	if desc.MediaType.IsIndex() {
		source.Index, err = layoutIndexOf(files, desc)
	} else {
		source.Image, err = layoutImageOf(files, desc)
	}
	return source, err
}

func readMember(files layoutFiles, name string) ([]byte, error) {
	file, err := files.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	return io.ReadAll(io.LimitReader(file, 16<<20))
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// layoutImage implements partial.CompressedImageCore.
type layoutImage struct {
	files    layoutFiles
	desc     v1.Descriptor
	raw      []byte
	manifest *v1.Manifest
}

func layoutImageOf(files layoutFiles, desc v1.Descriptor) (v1.Image, error) {
	raw, err := readMember(files, blobName(desc.Digest))
	if err != nil {
		return nil, err
	}
	l := &layoutImage{files: files, desc: desc, raw: raw, manifest: &v1.Manifest{}}
	if err := json.Unmarshal(raw, l.manifest); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	return partial.CompressedToImage(l)
}

// MediaType implements partial.CompressedImageCore.
func (l *layoutImage) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }

// RawManifest implements partial.CompressedImageCore.
func (l *layoutImage) RawManifest() ([]byte, error) { return l.raw, nil }

// RawConfigFile implements partial.CompressedImageCore.
func (l *layoutImage) RawConfigFile() ([]byte, error) {
	return readMember(l.files, blobName(l.manifest.Config.Digest))
}

// LayerByDigest implements partial.CompressedImageCore.
func (l *layoutImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if h == l.manifest.Config.Digest {
		return partial.CompressedLayer(layoutLayer{l.files, l.manifest.Config}), nil
	}
	for _, desc := range l.manifest.Layers {
		if desc.Digest == h {
			return layoutLayer{l.files, desc}, nil
		}
	}
	return nil, fmt.Errorf("layer %s: %w", h, os.ErrNotExist)
}

// layoutLayer implements partial.CompressedLayer.
type layoutLayer struct {
	files layoutFiles
	desc  v1.Descriptor
}

// Digest implements partial.CompressedLayer.
func (l layoutLayer) Digest() (v1.Hash, error) { return l.desc.Digest, nil }

// Compressed implements partial.CompressedLayer.
func (l layoutLayer) Compressed() (io.ReadCloser, error) {
	return l.files.open(blobName(l.desc.Digest))
}

// Size implements partial.CompressedLayer.
func (l layoutLayer) Size() (int64, error) { return l.desc.Size, nil }

// MediaType implements partial.CompressedLayer.
func (l layoutLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }

// layoutIndex implements v1.ImageIndex.
type layoutIndex struct {
	files    layoutFiles
	desc     v1.Descriptor
	raw      []byte
	manifest *v1.IndexManifest
}

func layoutIndexOf(files layoutFiles, desc v1.Descriptor) (v1.ImageIndex, error) {
	raw, err := readMember(files, blobName(desc.Digest))
	if err != nil {
		return nil, err
	}
	l := &layoutIndex{files: files, desc: desc, raw: raw, manifest: &v1.IndexManifest{}}
	if err := json.Unmarshal(raw, l.manifest); err != nil {
		return nil, fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	return l, nil
}

// MediaType implements v1.ImageIndex.
func (l *layoutIndex) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }

// Digest implements v1.ImageIndex.
func (l *layoutIndex) Digest() (v1.Hash, error) { return l.desc.Digest, nil }

// Size implements v1.ImageIndex.
func (l *layoutIndex) Size() (int64, error) { return int64(len(l.raw)), nil }

// IndexManifest implements v1.ImageIndex.
func (l *layoutIndex) IndexManifest() (*v1.IndexManifest, error) { return l.manifest, nil }

// RawManifest implements v1.ImageIndex.
func (l *layoutIndex) RawManifest() ([]byte, error) { return l.raw, nil }

func (l *layoutIndex) find(h v1.Hash) (v1.Descriptor, error) {
	for _, desc := range l.manifest.Manifests {
		if desc.Digest == h {
			return desc, nil
		}
	}
	return v1.Descriptor{}, fmt.Errorf("manifest %s: %w", h, os.ErrNotExist)
}

// Image implements v1.ImageIndex.
func (l *layoutIndex) Image(h v1.Hash) (v1.Image, error) {
	desc, err := l.find(h)
	if err != nil {
		return nil, err
	}
	return layoutImageOf(l.files, desc)
}

// ImageIndex implements v1.ImageIndex.
func (l *layoutIndex) ImageIndex(h v1.Hash) (v1.ImageIndex, error) {
	desc, err := l.find(h)
	if err != nil {
		return nil, err
	}
	return layoutIndexOf(l.files, desc)
}
