package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// goneFor is how long it is remembered that something was removed: a server that was away longer may bring it back.
const goneFor = 30 * 24 * time.Hour

// State is what a repository holds, and what was taken out of it, as servers tell each other.
type State struct {
	Repository       string                      `json:"repository"`
	Manifests        []Manifest                  `json:"manifests,omitempty"`
	Tags             map[string]tagFile          `json:"tags,omitempty"`
	RemovedManifests map[digest.Digest]time.Time `json:"removedManifests,omitempty"` // those pushed until then
	RemovedTags      map[string]time.Time        `json:"removedTags,omitempty"`      // those set until then
}

// goneFile is what is left of something that was removed.
type goneFile struct {
	At time.Time `json:"at"`
}

func (s *Store) gonePath(repo Repository, kind, name string) string {
	return filepath.Join(s.opts.Dir, "gone", filepath.FromSlash(repo.Name), kind, name)
}

// gone is until when something was removed; zero: it was not.
func (s *Store) gone(repo Repository, kind, name string) time.Time {
	var file goneFile
	if readJSON(s.gonePath(repo, kind, name), &file) != nil {
		return time.Time{}
	}
	return file.At
}

// remember notes that what there was until at is removed. It comes before the removal.
func (s *Store) remember(repo Repository, kind, name string, at time.Time) error {
	if !at.After(s.gone(repo, kind, name)) {
		return nil
	}
	defer s.changes.Add(1) // after the write: who has asked before it asks again
	return s.putJSON(s.gonePath(repo, kind, name), goneFile{At: at.UTC()})
}

// stamp is a time for something new: now, and later than all that it replaces by whatever clock.
func (s *Store) stamp(older ...time.Time) time.Time {
	at := s.opts.Now().UTC()
	for _, old := range older {
		if !at.After(old) {
			at = old.Add(time.Nanosecond)
		}
	}
	return at
}

// State tells what a repository holds.
func (s *Store) State(repo Repository) (State, error) {
	out := State{Repository: repo.Name, RemovedManifests: map[digest.Digest]time.Time{}, RemovedTags: map[string]time.Time{}}
	s.marks.RLock()
	defer s.marks.RUnlock()
	var err error
	if out.Manifests, err = s.Manifests(repo); err != nil {
		return out, err
	}
	if out.Tags, err = s.tagsOf(repo); err != nil {
		return out, err
	}
	for _, kind := range []string{manifestMarks, tagMarks} {
		list, err := names(filepath.Dir(s.gonePath(repo, kind, "x")))
		if err != nil {
			return out, fmt.Errorf("list what was removed from %s: %w", repo.Name, err)
		}
		for _, name := range list {
			at := s.gone(repo, kind, name)
			if d, ok := fromMark(name); ok && kind == manifestMarks {
				out.RemovedManifests[d] = at
			} else if kind == tagMarks {
				out.RemovedTags[name] = at
			}
		}
	}
	return out, nil
}

// States tells what all repositories hold. version changes whenever that does.
func (s *Store) States() (all []State, version uint64, err error) {
	version = s.changes.Load() // before: what changes meanwhile is told once more
	repos, err := s.Repositories()
	if err != nil {
		return nil, 0, err
	}
	known := map[Repository]bool{}
	for _, repo := range repos {
		known[repo] = true
	}
	err = s.walkGone(func(repo Repository, _ string) error { known[repo] = true; return nil })
	if err != nil {
		return nil, 0, err
	}
	for repo := range known {
		state, err := s.State(repo)
		if err != nil {
			return nil, 0, err
		}
		all = append(all, state)
	}
	slices.SortFunc(all, func(a, b State) int { return strings.Compare(a.Repository, b.Repository) })
	return all, version, nil
}

// walkGone calls visit for each file that says that something was removed.
func (s *Store) walkGone(visit func(repo Repository, path string) error) error {
	top := filepath.Join(s.opts.Dir, "gone")
	return filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(top, filepath.Dir(filepath.Dir(path)))
		if err != nil {
			return err
		}
		repo, err := ParseRepository(filepath.ToSlash(name))
		if err != nil {
			return nil //nolint:nilerr // not ours
		}
		return visit(repo, path)
	})
}

// forget drops the memory of what was removed long ago.
func (s *Store) forget() error {
	return s.walkGone(func(_ Repository, path string) error {
		if s.old(path, goneFor) {
			s.changes.Add(1)
			return os.Remove(path)
		}
		return nil
	})
}

// difference is what one repository must take over from another one of the same name.
type difference struct {
	manifests []Manifest // to fetch
	newer     []Manifest // that are here, and were pushed again there
	tags      map[string]tagFile
}

// compare is what is new in theirs. It is pure.
func compare(ours, theirs State) difference {
	out := difference{tags: map[string]tagFile{}}
	here := map[digest.Digest]Manifest{}
	for _, m := range ours.Manifests {
		here[m.Digest] = m
	}
	for _, m := range theirs.Manifests {
		mine, have := here[m.Digest]
		switch {
		case have && m.Pushed.After(mine.Pushed):
			out.newer = append(out.newer, m)
		case have, !m.Pushed.After(ours.RemovedManifests[m.Digest]), !m.Pushed.After(theirs.RemovedManifests[m.Digest]):
		default:
			out.manifests = append(out.manifests, m)
		}
	}
	for tag, file := range theirs.Tags {
		mine, have := ours.Tags[tag]
		if !file.Set.After(ours.RemovedTags[tag]) || !file.Set.After(theirs.RemovedTags[tag]) {
			continue
		}
		if !have || file.Set.After(mine.Set) || file.Set.Equal(mine.Set) && file.Digest > mine.Digest {
			out.tags[tag] = file
		}
	}
	return out
}

// applyRemovals removes what another server says is removed, and remembers that it is.
func (s *Store) applyRemovals(repo Repository, theirs State) error {
	s.marks.Lock()
	defer s.marks.Unlock()
	for _, tag := range slices.Sorted(maps.Keys(theirs.RemovedTags)) {
		at := theirs.RemovedTags[tag]
		if !validTag(tag) || !at.After(s.gone(repo, tagMarks, tag)) {
			continue
		}
		if err := s.remember(repo, tagMarks, tag, at); err != nil {
			return err
		}
		var file tagFile
		if readJSON(s.mark(repo, tagMarks, tag), &file) == nil && !file.Set.After(at) {
			if err := removeDurably(s.mark(repo, tagMarks, tag)); err != nil && !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("remove tag: %w", err)
			}
		}
	}
	for _, d := range slices.Sorted(maps.Keys(theirs.RemovedManifests)) {
		at := theirs.RemovedManifests[d]
		if d.Validate() != nil || !at.After(s.gone(repo, manifestMarks, markName(d))) {
			continue
		}
		m, err := s.StatManifest(repo, d)
		if errors.Is(err, ErrNotFound) || err == nil && m.Pushed.After(at) {
			if err := s.remember(repo, manifestMarks, markName(d), at); err != nil {
				return err
			}
			continue
		}
		if err == nil {
			if full, failed := s.GetManifest(repo, d); failed == nil { // else its content is lost, so is what it is about
				m = full
			}
			err = s.deleteManifestLocked(repo, m, at)
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}

// applyTags sets tags as another server has them, if what they mean is here.
func (s *Store) applyTags(repo Repository, tags map[string]tagFile) error {
	if len(tags) == 0 {
		return nil
	}
	s.marks.RLock()
	defer s.marks.RUnlock()
	s.tagging.Lock()
	defer s.tagging.Unlock()
	defer s.changes.Add(1)
	for _, tag := range slices.Sorted(maps.Keys(tags)) {
		file := tags[tag]
		var mine tagFile
		have := readJSON(s.mark(repo, tagMarks, tag), &mine) == nil
		if !validTag(tag) || have && mine.Set.After(file.Set) || !file.Set.After(s.gone(repo, tagMarks, tag)) {
			continue
		}
		if _, err := s.StatManifest(repo, file.Digest); err != nil {
			continue // removed meanwhile
		}
		if err := s.putJSON(s.mark(repo, tagMarks, tag), file); err != nil {
			return err
		}
	}
	return nil
}

// takeManifest stores a manifest as another server has it. What it is made of is here.
func (s *Store) takeManifest(ctx context.Context, repo Repository, m Manifest) error {
	doc, err := parseManifest(m.MediaType, m.Data)
	if err != nil {
		return err
	}
	if err := s.PutBlob(ctx, repo, m.Digest, int64(len(m.Data)), bytes.NewReader(m.Data)); err != nil {
		return err
	}
	s.marks.RLock()
	defer s.marks.RUnlock()
	if !m.Pushed.After(s.gone(repo, manifestMarks, markName(m.Digest))) {
		return nil // removed meanwhile
	}
	return s.writeManifest(repo, m, doc)
}

// pushedAgain notes when a manifest that is here was pushed last.
func (s *Store) pushedAgain(repo Repository, m Manifest) error {
	s.marks.RLock()
	defer s.marks.RUnlock()
	mine, err := s.StatManifest(repo, m.Digest)
	if err != nil || !m.Pushed.After(mine.Pushed) {
		return nil //nolint:nilerr // removed meanwhile
	}
	mine.Pushed = m.Pushed
	defer s.changes.Add(1)
	return s.putJSON(s.mark(repo, manifestMarks, markName(m.Digest)), mine)
}

// takeBlob lets a repository serve content that is here for another one, if it is.
func (s *Store) takeBlob(repo Repository, d digest.Digest) (bool, error) {
	s.marks.RLock()
	defer s.marks.RUnlock()
	if _, err := os.Stat(s.blobPath(d)); err != nil {
		return false, nil //nolint:nilerr // it is fetched
	}
	if s.has(repo, d) {
		s.touch(s.mark(repo, blobMarks, markName(d)))
		return true, nil
	}
	return true, s.putMark(s.mark(repo, blobMarks, markName(d)), nil)
}
