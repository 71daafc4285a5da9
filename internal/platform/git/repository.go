package git

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"gantry.dev/gantry/internal/durable"
)

// repository is a bare repository: objects/pack and refs/heads, as git lays them out.
type repository struct{ dir string }

const (
	headsFolder  = "refs/heads"
	packFolder   = "objects/pack"
	incomingName = "incoming-"
)

// heads are the branches by their full name.
func (r *repository) heads() (map[string]plumbing.Hash, error) {
	out := map[string]plumbing.Hash{}
	entries, err := os.ReadDir(filepath.Join(r.dir, headsFolder))
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read branches: %w", err)
	}
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(r.dir, headsFolder, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("read the branch %s: %w", entry.Name(), err)
		}
		if hash := strings.TrimSpace(string(text)); plumbing.IsHash(hash) {
			out[headsFolder+"/"+entry.Name()] = plumbing.NewHash(hash)
		}
	}
	return out, nil
}

// setHead makes a commit the branch, at once or not at all.
func (r *repository) setHead(name string, hash plumbing.Hash) error {
	path := filepath.Join(r.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the folder of branches: %w", err)
	}
	return durable.WriteFile(path, []byte(hash.String()+"\n"), 0o600)
}

// size is what the repository takes on disk.
func (r *repository) size() (int64, error) {
	var sum int64
	err := filepath.WalkDir(r.dir, func(_ string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("measure the repository: %w", err)
	}
	return sum, nil
}

// incoming makes a folder for a push. Those of pushes that were killed go.
func (r *repository) incoming() (string, error) {
	if err := os.MkdirAll(filepath.Join(r.dir, packFolder), 0o700); err != nil {
		return "", fmt.Errorf("make the repository: %w", err)
	}
	old, err := filepath.Glob(filepath.Join(r.dir, incomingName+"*"))
	if err != nil {
		return "", fmt.Errorf("look for what a killed push left: %w", err)
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return "", fmt.Errorf("remove what a killed push left: %w", err)
		}
	}
	dir, err := os.MkdirTemp(r.dir, incomingName)
	if err != nil {
		return "", fmt.Errorf("make a folder for the push: %w", err)
	}
	return dir, nil
}

func storageOf(dir string) *filesystem.Storage {
	return filesystem.NewStorage(osfs.New(dir), cache.NewObjectLRU(16*cache.MiByte))
}

// errTooLarge says that a push does not fit.
var errTooLarge = errors.New("too large")

// bounded reads at most a number of bytes; more is errTooLarge.
type bounded struct {
	from io.Reader
	left int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.from.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// unpack writes a pack into the folder of a push. Its check sum and all its objects are checked.
func unpack(dir string, pack io.Reader, limit int64) error {
	limited := &bounded{pack, limit}
	storage := storageOf(dir)
	defer func() { _ = storage.Close() }()
	err := packfile.UpdateObjectStorage(storage, limited)
	if limited.left <= 0 {
		return errTooLarge
	}
	if errors.Is(err, packfile.ErrEmptyPackfile) {
		return nil // a branch that goes to a commit that is there
	}
	if err != nil {
		return fmt.Errorf("read what was pushed: %w", err)
	}
	return nil
}

// keep moves the packs of a push into the repository. Content names them, so twice is once.
func (r *repository) keep(dir string) error {
	packs, err := filepath.Glob(filepath.Join(dir, packFolder, "*.pack"))
	if err != nil {
		return fmt.Errorf("look for what was pushed: %w", err)
	}
	for _, pack := range packs {
		for _, path := range []string{pack, strings.TrimSuffix(pack, ".pack") + ".idx"} { // the index last: it makes the pack seen
			if err := syncFile(path); err != nil {
				return fmt.Errorf("keep what was pushed: %w", err)
			}
			if err := os.Rename(path, filepath.Join(r.dir, packFolder, filepath.Base(path))); err != nil {
				return fmt.Errorf("keep what was pushed: %w", err)
			}
		}
	}
	return syncFile(filepath.Join(r.dir, packFolder))
}

func syncFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// layers reads objects from a push, then from the repository.
type layers struct {
	storer.EncodedObjectStorer // the push
	below                      storer.EncodedObjectStorer
}

// EncodedObject implements storer.EncodedObjectStorer.
func (l layers) EncodedObject(kind plumbing.ObjectType, hash plumbing.Hash) (plumbing.EncodedObject, error) {
	object, err := l.EncodedObjectStorer.EncodedObject(kind, hash)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return l.below.EncodedObject(kind, hash)
	}
	return object, err
}

// HasEncodedObject implements storer.EncodedObjectStorer.
func (l layers) HasEncodedObject(hash plumbing.Hash) error {
	if err := l.EncodedObjectStorer.HasEncodedObject(hash); !errors.Is(err, plumbing.ErrObjectNotFound) {
		return err
	}
	return l.below.HasEncodedObject(hash)
}

// EncodedObjectSize implements storer.EncodedObjectStorer.
func (l layers) EncodedObjectSize(hash plumbing.Hash) (int64, error) {
	size, err := l.EncodedObjectStorer.EncodedObjectSize(hash)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return l.below.EncodedObjectSize(hash)
	}
	return size, err
}
