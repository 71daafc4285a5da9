package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// PlatformTag begins the tags that keep nothing: a build may need one to push by, while releases say what stays.
const PlatformTag = "gantry-"

// Keep says what a collection must leave.
type Keep struct {
	// Digests are manifests and blobs in use, by repository name.
	Digests map[string]map[digest.Digest]bool
	// Tags are tags in use, by repository name; they count for platform tags too.
	Tags map[string]map[string]bool
	// Projects are those that there are; nil is any. Those of others keep nothing.
	Projects map[string]bool
	// Manifests are all in use: another server decides which are not. What it removed is removed here when it is heard of.
	Manifests bool
	// Grace is how long what nobody refers to stays; it must be longer than a push takes.
	Grace time.Duration
	// Uploads is how long an upload may rest before it counts as given up.
	Uploads time.Duration
}

// Collected counts what a collection removed.
type Collected struct {
	Manifests int   `json:"manifests"`
	Blobs     int   `json:"blobs"`
	Uploads   int   `json:"uploads"`
	Bytes     int64 `json:"bytes"` // of content; a node that runs the image may still have it
}

// Collect removes what nothing needs: uploads that were given up, manifests that neither a tag nor keep names, marks of
// content that no manifest has, and content without a mark, in this order, each step on the disk before the next. A crash
// leaves only what the next collection removes. Readers and uploads go on meanwhile.
func (s *Store) Collect(keep Keep) (Collected, error) {
	var done Collected
	if err := s.collectUploads(keep, &done); err != nil {
		return done, fmt.Errorf("collect uploads: %w", err)
	}
	if err := s.forget(); err != nil {
		return done, fmt.Errorf("forget what was removed: %w", err)
	}
	repos, err := s.Repositories()
	if err != nil {
		return done, err
	}
	for _, repo := range repos {
		if err := s.collectRepository(repo, keep, &done); err != nil {
			return done, fmt.Errorf("collect %s: %w", repo.Name, err)
		}
	}
	if err := s.collectBlobs(&done); err != nil {
		return done, fmt.Errorf("collect blobs: %w", err)
	}
	return done, nil
}

// old reports whether a file was last touched before age. One that is gone is not old.
func (s *Store) old(path string, age time.Duration) bool {
	info, err := os.Stat(path)
	return err == nil && s.opts.Now().Sub(info.ModTime()) > age
}

func (s *Store) collectUploads(keep Keep, done *Collected) error {
	list, err := names(filepath.Join(s.opts.Dir, "uploads"))
	if err != nil {
		return err
	}
	for _, name := range list {
		id := strings.TrimSuffix(name, ".json")
		path := s.uploadPath(id)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			path += ".json" // a crash left the description alone
		}
		if !s.old(path, keep.Uploads) {
			continue
		}
		s.mu.Lock()
		u := s.uploads[id]
		s.mu.Unlock()
		if u != nil && !u.writing.TryLock() {
			continue
		}
		s.removeUpload(id)
		if u != nil {
			s.drop(id, u)
		}
		if !strings.HasSuffix(name, ".json") {
			done.Uploads++
		}
	}
	return nil
}

// collectRepository removes manifests and marks of one repository.
func (s *Store) collectRepository(repo Repository, keep Keep, done *Collected) error {
	s.marks.Lock()
	defer s.marks.Unlock()
	manifests, err := s.Manifests(repo)
	if err != nil {
		return err
	}
	docs := map[digest.Digest]*document{}
	for i := range manifests {
		m, err := s.GetManifest(repo, manifests[i].Digest)
		if errors.Is(err, ErrNotFound) { // its content is lost: so is the manifest
			m, err = manifests[i], nil
		}
		if err != nil {
			return err
		}
		manifests[i] = m
		if docs[m.Digest], err = parseManifest(m.MediaType, m.Data); err != nil {
			docs[m.Digest] = &document{}
		}
	}
	roots, err := s.roots(repo, keep, manifests)
	if err != nil {
		return err
	}
	live := reach(roots, docs)
	for _, m := range manifests {
		if live[m.Digest] {
			continue
		}
		if err := s.deleteManifestLocked(repo, m, m.Pushed); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		done.Manifests++
		s.log.Info("removed an image that nothing uses", "repository", repo.Name, "digest", m.Digest.String())
	}
	if err := s.collectMarks(repo, keep, live, docs); err != nil {
		return err
	}
	s.removeEmpty(repo, keep.Grace)
	return nil
}

// roots are the digests that are kept for their own sake.
func (s *Store) roots(repo Repository, keep Keep, manifests []Manifest) (map[digest.Digest]bool, error) {
	roots := map[digest.Digest]bool{}
	for _, m := range manifests {
		if keep.Manifests || !s.old(s.mark(repo, manifestMarks, markName(m.Digest)), keep.Grace) {
			roots[m.Digest] = true
		}
	}
	if keep.Projects != nil && !keep.Projects[repo.Project] {
		return roots, nil
	}
	for d := range keep.Digests[repo.Name] {
		roots[d] = true
	}
	tags, err := s.tagsOf(repo)
	if err != nil {
		return nil, err
	}
	for tag, file := range tags {
		if !strings.HasPrefix(tag, PlatformTag) || keep.Tags[repo.Name][tag] {
			roots[file.Digest] = true
		}
	}
	return roots, nil
}

// reach adds to roots what they are made of and what is about them.
func reach(roots map[digest.Digest]bool, docs map[digest.Digest]*document) map[digest.Digest]bool {
	live := map[digest.Digest]bool{}
	about := map[digest.Digest][]digest.Digest{}
	for d, doc := range docs {
		if doc.Subject != nil {
			about[doc.Subject.Digest] = append(about[doc.Subject.Digest], d)
		}
	}
	next := make([]digest.Digest, 0, len(roots))
	for d := range roots {
		next = append(next, d)
	}
	for len(next) > 0 {
		d := next[len(next)-1]
		next = next[:len(next)-1]
		if live[d] {
			continue
		}
		live[d] = true
		next = append(next, about[d]...)
		if doc := docs[d]; doc != nil {
			for _, child := range doc.children() {
				next = append(next, child.Digest)
			}
		}
	}
	return live
}

// collectMarks takes the repository's right to serve what no manifest has. Content that came a short while ago stays: its
// manifest may be on its way.
func (s *Store) collectMarks(repo Repository, keep Keep, live map[digest.Digest]bool, docs map[digest.Digest]*document) error {
	list, err := names(s.mark(repo, blobMarks))
	if err != nil {
		return err
	}
	for _, name := range list {
		d, ok := fromMark(name)
		path := s.mark(repo, blobMarks, name)
		if ok && live[d] || !s.old(path, keep.Grace) {
			continue
		}
		if err := removeDurably(path); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	// Of referrers whose manifest is gone.
	subjects, err := names(s.mark(repo, referrerMarks))
	if err != nil {
		return err
	}
	for _, subject := range subjects {
		list, err := names(s.mark(repo, referrerMarks, subject))
		if err != nil {
			return err
		}
		for _, name := range list {
			if d, ok := fromMark(name); ok && docs[d] != nil && live[d] {
				continue
			}
			if err := removeDurably(s.mark(repo, referrerMarks, subject, name)); err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

// removeEmpty removes folders that hold nothing, and before them what a crash left of files that were being written. The
// system refuses to remove the other folders.
func (s *Store) removeEmpty(repo Repository, grace time.Duration) {
	for _, kind := range []string{manifestMarks, tagMarks} {
		entries, err := os.ReadDir(s.mark(repo, kind))
		if err != nil {
			continue
		}
		for _, entry := range entries {
			if path := s.mark(repo, kind, entry.Name()); strings.HasPrefix(entry.Name(), ".") && s.old(path, grace) {
				_ = os.Remove(path)
			}
		}
	}
	if subjects, err := names(s.mark(repo, referrerMarks)); err == nil {
		for _, subject := range subjects {
			_ = os.Remove(s.mark(repo, referrerMarks, subject))
		}
	}
	for _, kind := range []string{blobMarks, manifestMarks, tagMarks, referrerMarks} {
		_ = os.Remove(s.mark(repo, kind))
	}
	for dir := s.repoDir(repo); dir != s.reposDir(); dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			return
		}
	}
}

// collectBlobs removes content that no repository may serve.
func (s *Store) collectBlobs(done *Collected) error {
	s.marks.Lock()
	defer s.marks.Unlock()
	repos, err := s.Repositories()
	if err != nil {
		return err
	}
	marked := map[string]bool{}
	for _, repo := range repos {
		for _, kind := range []string{blobMarks, manifestMarks} {
			list, err := names(s.mark(repo, kind))
			if err != nil {
				return err
			}
			for _, name := range list {
				marked[name] = true
			}
		}
	}
	return filepath.WalkDir(filepath.Join(s.opts.Dir, "blobs"), func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		algorithm := filepath.Base(filepath.Dir(filepath.Dir(path)))
		if marked[algorithm+"-"+entry.Name()] {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		done.Blobs++
		done.Bytes += info.Size()
		return nil
	})
}

// Entry is one image of a repository, for people.
type Entry struct {
	Repository string        `json:"repository"`
	Tags       []string      `json:"tags,omitempty"`
	Digest     digest.Digest `json:"digest"`
	MediaType  string        `json:"mediaType"`
	SizeBytes  int64         `json:"sizeBytes"` // of manifest, config and layers; layers may be shared
	Pushed     time.Time     `json:"pushed"`
}

// Entries lists the images of a repository: its manifests less those that are parts of an index or about another one.
func (s *Store) Entries(repo Repository) ([]Entry, error) {
	manifests, err := s.Manifests(repo)
	if err != nil {
		return nil, err
	}
	tags, err := s.tagsOf(repo)
	if err != nil {
		return nil, err
	}
	part := map[digest.Digest]bool{}
	sizes := map[digest.Digest]int64{}
	docs := map[digest.Digest]*document{}
	for _, m := range manifests {
		full, err := s.GetManifest(repo, m.Digest)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		doc, err := parseManifest(full.MediaType, full.Data)
		if err != nil {
			return nil, err
		}
		docs[m.Digest] = doc
		sizes[m.Digest] = m.Size
		for _, child := range doc.children() {
			sizes[m.Digest] += child.Size
		}
		for _, child := range doc.Manifests {
			part[child.Digest] = true
		}
		part[m.Digest] = part[m.Digest] || doc.Subject != nil
	}
	var out []Entry
	for _, m := range manifests {
		if docs[m.Digest] == nil {
			continue
		}
		entry := Entry{Repository: repo.Name, Digest: m.Digest, MediaType: m.MediaType, Pushed: m.Pushed, SizeBytes: sizes[m.Digest]}
		for _, child := range docs[m.Digest].Manifests {
			entry.SizeBytes += max(0, sizes[child.Digest]-child.Size)
		}
		for tag, file := range tags {
			if file.Digest == m.Digest {
				entry.Tags = append(entry.Tags, tag)
			}
		}
		slices.Sort(entry.Tags)
		if part[m.Digest] && len(entry.Tags) == 0 {
			continue
		}
		out = append(out, entry)
	}
	slices.SortFunc(out, func(a, b Entry) int { return b.Pushed.Compare(a.Pushed) })
	return out, nil
}
