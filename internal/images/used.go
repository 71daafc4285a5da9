package images

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Used is what a repository has of images in use, for a copy elsewhere.
type Used struct {
	Repository string          `json:"repository"`
	Blobs      []digest.Digest `json:"blobs"` // manifests too
	// Manifests have those that they are made of before them.
	Manifests []UsedManifest           `json:"manifests"`
	Tags      map[string]digest.Digest `json:"tags"`
}

// UsedManifest is a manifest, whose bytes are the blob of its digest.
type UsedManifest struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
}

// Used lists the images that pods, workloads and releases name.
func (c *Collector) Used(ctx context.Context) ([]Used, error) {
	keep, err := c.keep(ctx)
	if err != nil {
		return nil, err
	}
	repos, err := c.opts.Store.Repositories()
	if err != nil {
		return nil, err
	}
	var out []Used
	for _, repo := range repos {
		used, err := c.opts.Store.used(repo, keep)
		if err != nil {
			return nil, fmt.Errorf("list what is used of %s: %w", repo.Name, err)
		}
		if len(used.Blobs) > 0 {
			out = append(out, used)
		}
	}
	return out, nil
}

// used follows what keep names of one repository.
func (s *Store) used(repo Repository, keep Keep) (Used, error) {
	out := Used{Repository: repo.Name, Tags: map[string]digest.Digest{}}
	wanted := maps.Clone(keep.Digests[repo.Name])
	if wanted == nil {
		wanted = map[digest.Digest]bool{}
	}
	tags, err := s.tagsOf(repo)
	if err != nil {
		return out, err
	}
	for tag := range keep.Tags[repo.Name] {
		if file, ok := tags[tag]; ok {
			wanted[file.Digest] = true
		}
	}
	seen := map[digest.Digest]bool{}
	for d := range wanted {
		if err := s.follow(repo, d, seen, &out); err != nil {
			return out, err
		}
	}
	for tag, file := range tags {
		if seen[file.Digest] {
			out.Tags[tag] = file.Digest
		}
	}
	slices.Sort(out.Blobs)
	return out, nil
}

// follow adds a digest and all that it is made of. What is lost is left out: a pod may name what is there no more.
func (s *Store) follow(repo Repository, d digest.Digest, seen map[digest.Digest]bool, out *Used) error {
	if seen[d] || !s.has(repo, d) {
		return nil
	}
	seen[d] = true
	out.Blobs = append(out.Blobs, d)
	m, err := s.GetManifest(repo, d)
	if errors.Is(err, ErrNotFound) {
		return nil // a blob
	}
	if err != nil {
		return err
	}
	doc, err := parseManifest(m.MediaType, m.Data)
	if err != nil {
		return err
	}
	for _, child := range doc.children() {
		if err := s.follow(repo, child.Digest, seen, out); err != nil {
			return err
		}
	}
	out.Manifests = append(out.Manifests, UsedManifest{MediaType: m.MediaType, Digest: d})
	return nil
}

// Take brings in what Used listed elsewhere; path is where the content of a digest lies, and has been verified.
func (s *Store) Take(ctx context.Context, used Used, path func(digest.Digest) string, read func(digest.Digest) ([]byte, error)) error {
	repo, err := ParseRepository(used.Repository)
	if err != nil {
		return err
	}
	for _, d := range used.Blobs {
		if err := s.Adopt(ctx, repo, d, path(d)); err != nil {
			return fmt.Errorf("bring back %s of %s: %w", d, used.Repository, err)
		}
	}
	for _, m := range used.Manifests {
		data, err := read(m.Digest)
		if err != nil {
			return fmt.Errorf("bring back %s of %s: %w", m.Digest, used.Repository, err)
		}
		names := []string{""}
		for tag, d := range used.Tags {
			if d == m.Digest {
				names = append(names, tag)
			}
		}
		for _, tag := range names {
			if _, err := s.PutManifest(ctx, repo, tag, m.Digest, m.MediaType, data); err != nil {
				return fmt.Errorf("bring back %s of %s: %w", m.Digest, used.Repository, err)
			}
		}
	}
	return nil
}
