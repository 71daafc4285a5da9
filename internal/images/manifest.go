package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types, which are still common.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// Errors about manifests.
var (
	ErrManifestInvalid = errors.New("manifest invalid")
	ErrMissing         = errors.New("manifest refers to what is not there") // it is a *MissingError
)

// MissingError says what a manifest refers to that its repository does not have.
type MissingError struct {
	Digest   digest.Digest
	Manifest bool // it should be a manifest
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not in the repository: push it first", e.Digest)
}

// Unwrap has errors.Is find ErrMissing.
func (e *MissingError) Unwrap() error { return ErrMissing }

// document is what matters to a registry of all kinds of manifests.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	ArtifactType  string               `json:"artifactType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Subject       *ocispec.Descriptor  `json:"subject"`
	Annotations   map[string]string    `json:"annotations"`
}

// parseManifest reads a manifest or index, of the media type that the client announced or that it names itself.
func parseManifest(mediaType string, data []byte) (*document, error) {
	var doc document
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrManifestInvalid, err)
	}
	if mediaType == "" {
		mediaType = doc.MediaType
	}
	if doc.MediaType != "" && doc.MediaType != mediaType {
		return nil, fmt.Errorf("%w: it says that it is %s and was sent as %s", ErrManifestInvalid, doc.MediaType, mediaType)
	}
	switch {
	case doc.SchemaVersion != 2:
		return nil, fmt.Errorf("%w: schema version %d; 2 is needed", ErrManifestInvalid, doc.SchemaVersion)
	case mediaType == "":
		return nil, fmt.Errorf("%w: no media type was sent with it", ErrManifestInvalid)
	case doc.isIndex(mediaType) && (doc.Config != nil || doc.Layers != nil), !doc.isIndex(mediaType) && doc.Manifests != nil:
		return nil, fmt.Errorf("%w: it has members of an image and of an index", ErrManifestInvalid)
	case (mediaType == ocispec.MediaTypeImageManifest || mediaType == dockerManifest) && doc.Config == nil:
		return nil, fmt.Errorf("%w: it has no config", ErrManifestInvalid)
	}
	for _, child := range doc.children() {
		if err := child.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("%w: %q: %v", ErrManifestInvalid, child.Digest, err)
		}
	}
	if doc.Subject != nil {
		if err := doc.Subject.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("%w: subject %q: %v", ErrManifestInvalid, doc.Subject.Digest, err)
		}
	}
	doc.MediaType = mediaType
	return &doc, nil
}

func (*document) isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerIndex
}

// children are what the manifest is made of.
func (d *document) children() []ocispec.Descriptor {
	var all []ocispec.Descriptor
	if d.Config != nil {
		all = append(all, *d.Config)
	}
	return append(append(all, d.Layers...), d.Manifests...)
}

// foreign reports whether the content of a descriptor is somewhere else by design.
func foreign(desc ocispec.Descriptor) bool {
	switch desc.MediaType {
	case dockerForeign, ocispec.MediaTypeImageLayerNonDistributable, //nolint:staticcheck // still pushed
		ocispec.MediaTypeImageLayerNonDistributableGzip, ocispec.MediaTypeImageLayerNonDistributableZstd: //nolint:staticcheck // as above
		return true
	}
	return false
}

// Manifest is a manifest as a repository has it.
type Manifest struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	Subject   digest.Digest `json:"subject,omitempty"` // the manifest that it is about
	Pushed    time.Time     `json:"pushed"`
	Data      []byte        `json:"-"`
}

// tagFile is what a tag's file holds.
type tagFile struct {
	Digest digest.Digest `json:"digest"`
	Set    time.Time     `json:"set"`
}

// PutManifest stores a manifest under its digest and, if given, a tag. What it is made of must be in the repository. want
// is the digest that the client expects, or "". When it returns nil everything is on the disk.
func (s *Store) PutManifest(ctx context.Context, repo Repository, tag string, want digest.Digest, mediaType string, data []byte) (Manifest, error) {
	doc, err := parseManifest(mediaType, data)
	if err != nil {
		return Manifest{}, err
	}
	d := digest.FromBytes(data)
	if want != "" {
		if d = want.Algorithm().FromBytes(data); d != want {
			return Manifest{}, fmt.Errorf("manifest: %w: what came is %s, not %s", ErrDigest, d, want)
		}
	}
	m := Manifest{MediaType: doc.MediaType, Digest: d, Size: int64(len(data)), Data: data}
	if doc.Subject != nil {
		m.Subject = doc.Subject.Digest
	}
	if err := s.PutBlob(ctx, repo, d, m.Size, bytes.NewReader(data)); err != nil {
		return Manifest{}, err
	}
	s.marks.RLock()
	defer s.marks.RUnlock()
	s.tagging.Lock()
	defer s.tagging.Unlock()
	m.Pushed = s.stamp(s.gone(repo, manifestMarks, markName(d)))
	if err := s.writeManifest(repo, m, doc); err != nil {
		return Manifest{}, err
	}
	if tag != "" {
		var there tagFile
		_ = readJSON(s.mark(repo, tagMarks, tag), &there) // zero where there is none
		at := s.stamp(m.Pushed, there.Set, s.gone(repo, tagMarks, tag))
		if err := s.putJSON(s.mark(repo, tagMarks, tag), tagFile{d, at}); err != nil {
			return Manifest{}, err
		}
	}
	s.changes.Add(1)
	return m, nil
}

// writeManifest makes the marks of a manifest whose bytes are here. s.marks is held for reading.
func (s *Store) writeManifest(repo Repository, m Manifest, doc *document) error {
	if err := s.missing(repo, doc); err != nil {
		return err
	}
	if doc.Subject != nil { // first: a referrer that is listed and not there is left out of lists
		if err := s.putMark(s.mark(repo, referrerMarks, markName(doc.Subject.Digest), markName(m.Digest)), nil); err != nil {
			return err
		}
	}
	defer s.changes.Add(1)
	return s.putJSON(s.mark(repo, manifestMarks, markName(m.Digest)), m)
}

// missing says what a manifest refers to that the repository cannot serve. What is there counts as new, so that it stays
// until the manifest is.
func (s *Store) missing(repo Repository, doc *document) error {
	for _, child := range doc.children() {
		isManifest := slices.ContainsFunc(doc.Manifests, func(m ocispec.Descriptor) bool { return m.Digest == child.Digest })
		if foreign(child) || s.has(repo, child.Digest) {
			s.touch(s.mark(repo, blobMarks, markName(child.Digest)))
			continue
		}
		return &MissingError{Digest: child.Digest, Manifest: isManifest}
	}
	return nil
}

func (s *Store) putJSON(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	return s.putMark(path, data)
}

// Resolve returns the digest that a tag means, or ErrNotFound.
func (s *Store) Resolve(repo Repository, tag string) (digest.Digest, error) {
	var file tagFile
	if err := readJSON(s.mark(repo, tagMarks, tag), &file); err != nil {
		return "", fmt.Errorf("%s:%s: %w", repo.Name, tag, err)
	}
	return file.Digest, nil
}

// StatManifest returns a manifest without its bytes, or ErrNotFound.
func (s *Store) StatManifest(repo Repository, d digest.Digest) (Manifest, error) {
	var m Manifest
	if err := readJSON(s.mark(repo, manifestMarks, markName(d)), &m); err != nil {
		return Manifest{}, fmt.Errorf("%s@%s: %w", repo.Name, d, err)
	}
	return m, nil
}

// GetManifest returns a manifest, or ErrNotFound.
func (s *Store) GetManifest(repo Repository, d digest.Digest) (Manifest, error) {
	m, err := s.StatManifest(repo, d)
	if err != nil {
		return Manifest{}, err
	}
	blob, err := s.OpenBlob(repo, d)
	if err != nil {
		return Manifest{}, err
	}
	defer func() { _ = blob.Close() }()
	if m.Data, err = io.ReadAll(blob); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	return m, nil
}

// DeleteManifest removes a manifest and the tags that mean it. Its layers go with the next collection.
func (s *Store) DeleteManifest(repo Repository, d digest.Digest) error {
	m, err := s.GetManifest(repo, d)
	if err != nil {
		return err
	}
	s.marks.Lock()
	defer s.marks.Unlock()
	return s.deleteManifestLocked(repo, m, s.stamp(m.Pushed))
}

// deleteManifestLocked removes a manifest that was pushed until at. Tags go first: one that means nothing must never be seen.
// s.marks is held for writing.
func (s *Store) deleteManifestLocked(repo Repository, m Manifest, at time.Time) error {
	defer s.changes.Add(1)
	if err := s.remember(repo, manifestMarks, markName(m.Digest), at); err != nil {
		return err
	}
	tags, err := s.tagsOf(repo)
	if err != nil {
		return err
	}
	for tag, file := range tags {
		if file.Digest == m.Digest {
			if err := s.remember(repo, tagMarks, tag, file.Set); err != nil {
				return err
			}
			if err := removeDurably(s.mark(repo, tagMarks, tag)); err != nil && !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("remove tag: %w", err)
			}
		}
	}
	if err := removeDurably(s.mark(repo, manifestMarks, markName(m.Digest))); err != nil {
		return fmt.Errorf("remove manifest: %w", err)
	}
	if doc, err := parseManifest(m.MediaType, m.Data); err == nil && doc.Subject != nil {
		err := removeDurably(s.mark(repo, referrerMarks, markName(doc.Subject.Digest), markName(m.Digest)))
		if err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("remove referrer: %w", err)
		}
	}
	err = removeDurably(s.mark(repo, blobMarks, markName(m.Digest)))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("remove manifest: %w", err)
	}
	return nil
}

// DeleteTag removes a tag; the manifest stays until it is collected.
func (s *Store) DeleteTag(repo Repository, tag string) error {
	s.marks.Lock()
	defer s.marks.Unlock()
	var file tagFile
	if err := readJSON(s.mark(repo, tagMarks, tag), &file); err != nil {
		return fmt.Errorf("%s:%s: %w", repo.Name, tag, err)
	}
	if err := s.remember(repo, tagMarks, tag, s.stamp(file.Set)); err != nil {
		return err
	}
	if err := removeDurably(s.mark(repo, tagMarks, tag)); err != nil {
		return fmt.Errorf("%s:%s: %w", repo.Name, tag, err)
	}
	return nil
}

// Tags lists the tags of a repository in order.
func (s *Store) Tags(repo Repository) ([]string, error) {
	found, err := names(s.mark(repo, tagMarks))
	if err != nil {
		return nil, fmt.Errorf("list tags: %w", err)
	}
	return found, nil
}

// Exists reports whether a repository holds anything.
func (s *Store) Exists(repo Repository) bool {
	for _, kind := range []string{manifestMarks, blobMarks} {
		if found, err := names(s.mark(repo, kind)); err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

func (s *Store) tagsOf(repo Repository) (map[string]tagFile, error) {
	list, err := s.Tags(repo)
	if err != nil {
		return nil, err
	}
	tags := make(map[string]tagFile, len(list))
	for _, tag := range list {
		var file tagFile
		if err := readJSON(s.mark(repo, tagMarks, tag), &file); err != nil {
			if errors.Is(err, ErrNotFound) {
				continue
			}
			return nil, fmt.Errorf("read tag %s of %s: %w", tag, repo.Name, err)
		}
		tags[tag] = file
	}
	return tags, nil
}

// Manifests lists the manifests of a repository, without their bytes, by digest.
func (s *Store) Manifests(repo Repository) ([]Manifest, error) {
	list, err := names(s.mark(repo, manifestMarks))
	if err != nil {
		return nil, fmt.Errorf("list manifests: %w", err)
	}
	var out []Manifest
	for _, name := range list {
		d, ok := fromMark(name)
		if !ok {
			continue
		}
		m, err := s.StatManifest(repo, d)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// Referrers lists the manifests that are about a manifest, which need not be there, as an index.
func (s *Store) Referrers(repo Repository, subject digest.Digest, artifactType string) (ocispec.Index, error) {
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{},
	}
	list, err := names(s.mark(repo, referrerMarks, markName(subject)))
	if err != nil {
		return index, fmt.Errorf("list referrers: %w", err)
	}
	for _, name := range list {
		d, ok := fromMark(name)
		if !ok {
			continue
		}
		m, err := s.GetManifest(repo, d)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return index, err
		}
		doc, err := parseManifest(m.MediaType, m.Data)
		if err != nil {
			return index, err
		}
		kind := doc.ArtifactType
		if kind == "" && doc.Config != nil {
			kind = doc.Config.MediaType
		}
		if artifactType != "" && kind != artifactType {
			continue
		}
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: m.MediaType, Digest: d, Size: m.Size, ArtifactType: kind, Annotations: doc.Annotations,
		})
	}
	return index, nil
}
