package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"gantry.dev/gantry/internal/durable"
)

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("not found")     // a blob, manifest, tag or upload is not there
	ErrDigest   = errors.New("digest")        // what came is not what was announced
	ErrRange    = errors.New("range")         // a chunk does not begin where the last one ended
	ErrBusy     = errors.New("busy")          // another request writes the same upload
	ErrNoSpace  = errors.New("no disk space") // the disk is too full to take more
)

// StoreOptions tune a Store. Dir is needed.
type StoreOptions struct {
	Dir            string // absolute; made on first use
	MinFreePercent int    // nothing is taken in while less of the disk is free; default 10
	MaxManifest    int64  // bytes, default 4 MiB
	Logger         *slog.Logger

	// Space says how much of the disk that holds a folder is free; default asks the kernel.
	Space func(dir string) (free, total uint64, err error)
	// Now is the time; default time.Now.
	Now func() time.Time
}

// Store keeps images in a folder. Its methods are safe for concurrent use, by one process at a time.
type Store struct {
	opts StoreOptions
	log  *slog.Logger

	// marks is held for reading while something comes to be referenced, for writing while what is not referenced goes.
	marks sync.RWMutex
	// tagging is held while a tag is compared with a newer one, inside marks.
	tagging sync.Mutex
	// changes counts those that other servers must hear of.
	changes atomic.Uint64

	mu      sync.Mutex // guards the field below
	uploads map[string]*upload
}

// NewStore checks opts and returns a Store. The folder is made when something is written.
func NewStore(opts StoreOptions) (*Store, error) {
	if !filepath.IsAbs(opts.Dir) {
		return nil, fmt.Errorf("images: Dir is %q, want an absolute path", opts.Dir)
	}
	opts.MinFreePercent = cmp.Or(opts.MinFreePercent, 10)
	opts.MaxManifest = cmp.Or(opts.MaxManifest, 4<<20)
	if opts.MinFreePercent < 0 || opts.MinFreePercent > 99 || opts.MaxManifest < 0 {
		return nil, errors.New("images: MinFreePercent or MaxManifest is out of range")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Space == nil {
		opts.Space = diskSpace
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Store{opts: opts, log: opts.Logger, uploads: map[string]*upload{}}, nil
}

func (s *Store) blobPath(d digest.Digest) string {
	return filepath.Join(s.opts.Dir, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

func (s *Store) reposDir() string { return filepath.Join(s.opts.Dir, "repos") }

func (s *Store) repoDir(repo Repository) string {
	return filepath.Join(s.reposDir(), filepath.FromSlash(repo.Name))
}

// Names of what is in a repository's folder. Parts of repository names never begin with "_".
const (
	blobMarks     = "_blobs"
	manifestMarks = "_manifests"
	tagMarks      = "_tags"
	referrerMarks = "_referrers"
)

func (s *Store) mark(repo Repository, kind string, name ...string) string {
	return filepath.Join(append([]string{s.repoDir(repo), kind}, name...)...)
}

// Blob is content that is open for reading.
type Blob struct {
	*os.File
	Digest digest.Digest
	Size   int64
}

// OpenBlob opens content that a repository may serve, a layer as well as a manifest, or says ErrNotFound.
func (s *Store) OpenBlob(repo Repository, d digest.Digest) (*Blob, error) {
	if !s.has(repo, d) {
		return nil, fmt.Errorf("blob %s in %s: %w", d, repo.Name, ErrNotFound)
	}
	file, err := os.Open(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s in %s: %w", d, repo.Name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("open blob: %w", err)
	}
	return &Blob{File: file, Digest: d, Size: info.Size()}, nil
}

// StatBlob returns the size of content that a repository may serve, or ErrNotFound. Somebody who means to use it next
// says so by keep: it is as if it had come now.
func (s *Store) StatBlob(repo Repository, d digest.Digest, keep bool) (int64, error) {
	s.marks.RLock()
	defer s.marks.RUnlock()
	info, err := os.Stat(s.blobPath(d))
	if err != nil || !s.has(repo, d) {
		return 0, fmt.Errorf("blob %s in %s: %w", d, repo.Name, ErrNotFound)
	}
	if keep {
		s.touch(s.mark(repo, blobMarks, markName(d)))
	}
	return info.Size(), nil
}

// touch makes a mark new; one that is not there stays so.
func (s *Store) touch(path string) {
	now := s.opts.Now()
	_ = os.Chtimes(path, now, now)
}

// has reports whether a repository may serve the content of a digest.
func (s *Store) has(repo Repository, d digest.Digest) bool {
	for _, kind := range []string{blobMarks, manifestMarks} {
		if _, err := os.Stat(s.mark(repo, kind, markName(d))); err == nil {
			return true
		}
	}
	return false
}

// Mount lets a repository serve what another one serves already. The caller has checked that who asks may read from there.
func (s *Store) Mount(repo, from Repository, d digest.Digest) error {
	s.marks.RLock()
	defer s.marks.RUnlock()
	if _, err := os.Stat(s.blobPath(d)); err != nil || !s.has(from, d) {
		return fmt.Errorf("blob %s in %s: %w", d, from.Name, ErrNotFound)
	}
	return s.putMark(s.mark(repo, blobMarks, markName(d)), nil)
}

// putMark writes a file that stands for a reference.
func (s *Store) putMark(path string, content []byte) error {
	if content == nil {
		if _, err := os.Stat(path); err == nil {
			s.touch(path)
			return nil
		}
	}
	if err := durable.MkdirAll(filepath.Dir(path)); err != nil {
		return err
	}
	if content != nil {
		return durable.WriteFile(path, content, 0o600)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	return durable.SyncDir(filepath.Dir(path))
}

// DeleteBlob takes content out of a repository; another one may still have it.
func (s *Store) DeleteBlob(repo Repository, d digest.Digest) error {
	s.marks.Lock()
	defer s.marks.Unlock()
	if err := removeDurably(s.mark(repo, blobMarks, markName(d))); err != nil {
		return fmt.Errorf("blob %s in %s: %w", d, repo.Name, err)
	}
	return nil
}

// removeDurably removes a file for good, or says ErrNotFound.
func removeDurably(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// Link puts content that a repository may serve at target, without a copy where the file system allows that. A target
// that is there is left alone.
func (s *Store) Link(ctx context.Context, repo Repository, d digest.Digest, target string) error {
	s.marks.RLock()
	defer s.marks.RUnlock()
	if !s.has(repo, d) {
		return fmt.Errorf("blob %s in %s: %w", d, repo.Name, ErrNotFound)
	}
	return linkOrCopy(ctx, s.blobPath(d), target)
}

// linkOrCopy makes target a second name of the file source, or a copy on another file system.
func linkOrCopy(ctx context.Context, source, target string) error {
	if _, err := os.Stat(target); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return fmt.Errorf("link content: %w", err)
	}
	err := os.Link(source, target)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("link content: %w", ErrNotFound)
	}
	in, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("copy content: %w", err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.CreateTemp(filepath.Dir(target), ".copy-*")
	if err != nil {
		return fmt.Errorf("copy content: %w", err)
	}
	defer func() { _ = os.Remove(out.Name()) }() // nothing is there after the rename
	_, err = io.Copy(out, contextReader{ctx, in})
	if err := errors.Join(err, out.Chmod(blobMode), out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("copy content: %w", err)
	}
	return durable.Rename(out.Name(), target)
}

// contextReader ends when its context does.
type contextReader struct {
	ctx context.Context //nolint:containedctx // lives for one copy
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// blobMode is for content: nothing may change it, also by another of its names.
const blobMode = 0o444

// Adopt takes in a file of the node's own content store, whose digest that store has verified, as a blob of a repository.
func (s *Store) Adopt(ctx context.Context, repo Repository, d digest.Digest, path string) error {
	if err := s.room(0); err != nil {
		return err
	}
	s.marks.RLock()
	defer s.marks.RUnlock()
	target := s.blobPath(d)
	if err := durable.MkdirAll(filepath.Dir(target)); err != nil {
		return err
	}
	if err := linkOrCopy(ctx, path, target); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(target)); err != nil {
		return err
	}
	return s.putMark(s.mark(repo, blobMarks, markName(d)), nil)
}

// room says ErrNoSpace where taking in so many bytes would leave less than the least share of the disk.
func (s *Store) room(size int64) error {
	dir := s.opts.Dir
	for { // before the first write there is no folder
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	free, total, err := s.opts.Space(dir)
	if err != nil || total == 0 {
		return nil //nolint:nilerr // a file system that cannot say is not full
	}
	least := total / 100 * uint64(s.opts.MinFreePercent)
	if free < least || free-least < uint64(max(size, 0)) {
		return fmt.Errorf("%w: %s of %s are free where the registry is and %d %% must stay so; \"gantry image prune\" removes what nothing uses",
			ErrNoSpace, formatBytes(free), formatBytes(total), s.opts.MinFreePercent)
	}
	return nil
}

func formatBytes(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MB", n>>20)
	}
	return fmt.Sprintf("%d kB", n>>10)
}

// Repositories lists all repositories that hold something, in order.
func (s *Store) Repositories() ([]Repository, error) {
	var all []Repository
	err := filepath.WalkDir(s.reposDir(), func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), "_") {
			return nil
		}
		rel, err := filepath.Rel(s.reposDir(), filepath.Dir(path))
		if err != nil {
			return err
		}
		repo, err := ParseRepository(filepath.ToSlash(rel))
		if err == nil && (len(all) == 0 || all[len(all)-1] != repo) {
			all = append(all, repo)
		}
		return fs.SkipDir
	})
	if err != nil {
		return nil, fmt.Errorf("list repositories: %w", err)
	}
	return all, nil
}

// names lists the files of a folder, in order; those being written are left out.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := make([]string, 0, len(entries))
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".") {
			out = append(out, entry.Name())
		}
	}
	return out, nil
}

// readJSON reads a mark, or says ErrNotFound.
func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}
