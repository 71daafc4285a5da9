package source

import (
	"context"
	"crypto/sha1" //nolint:gosec // git's own name of a content
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/go-git/go-git/v5/storage/filesystem/dotgit"
)

// repository is what is known of the git repository around a folder.
type repository struct {
	top    string   // its folder
	common string   // the folder .git that all work trees share
	inside []string // the way from its folder to ours
	remote string   // address of origin
	commit string   // that is checked out; empty before the first
	time   time.Time
	files  map[string]blob // of the commit, in our folder
	dirs   map[string]bool // that have files of the commit
}

// blob is a file of a commit.
type blob struct {
	hash string
	mode filemode.FileMode
}

// openRepository finds the repository that a folder is in; nil if it is in none.
func openRepository(folder string) (*repository, error) {
	top, gitDir := findGit(folder)
	if top == "" {
		return nil, nil
	}
	repo := &repository{top: top, common: commonDir(gitDir), files: map[string]blob{}, dirs: map[string]bool{}}
	inside, err := filepath.Rel(top, folder)
	if err != nil {
		return nil, fmt.Errorf("find the folder in its repository: %w", err)
	}
	if inside != "." {
		repo.inside = strings.Split(filepath.ToSlash(inside), "/")
	}
	gitFS := dotgit.NewRepositoryFilesystem(osfs.New(gitDir), osfs.New(repo.common))
	storage := filesystem.NewStorage(gitFS, cache.NewObjectLRUDefault())
	defer func() { _ = storage.Close() }()
	if config, err := storage.Config(); err == nil {
		if origin := config.Remotes["origin"]; origin != nil && len(origin.URLs) > 0 {
			repo.remote = origin.URLs[0]
		}
	}
	return repo, repo.read(storage)
}

// read reads the commit that is checked out.
func (r *repository) read(storage *filesystem.Storage) error {
	head, err := storage.Reference(plumbing.HEAD)
	for range 5 {
		if err != nil || head.Type() != plumbing.SymbolicReference {
			break
		}
		head, err = storage.Reference(head.Target())
	}
	if errors.Is(err, plumbing.ErrReferenceNotFound) {
		return nil // nothing was committed yet
	}
	if err != nil {
		return fmt.Errorf("read which commit is checked out: %w", err)
	}
	commit, err := object.GetCommit(storage, head.Hash())
	if err != nil {
		return fmt.Errorf("read the commit %s: %w", head.Hash(), err)
	}
	r.commit, r.time = commit.Hash.String(), commit.Committer.When.UTC()
	tree, err := commit.Tree()
	if err == nil && len(r.inside) > 0 {
		tree, err = tree.Tree(path.Join(r.inside...))
		if errors.Is(err, object.ErrDirectoryNotFound) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("read the files of commit %s: %w", r.commit, err)
	}
	walker := object.NewTreeWalker(tree, true, nil)
	defer walker.Close()
	for {
		name, entry, err := walker.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the files of commit %s: %w", r.commit, err)
		}
		if entry.Mode == filemode.Dir || entry.Mode == filemode.Submodule {
			continue
		}
		r.files[name] = blob{entry.Hash.String(), entry.Mode}
		for dir := path.Dir(name); dir != "." && !r.dirs[dir]; dir = path.Dir(dir) {
			r.dirs[dir] = true
		}
	}
}

// tracks says whether the commit has the file, or files in the folder.
func (r *repository) tracks(name string) bool {
	if r == nil {
		return false
	}
	_, file := r.files[name]
	return file || r.dirs[name]
}

// differs compares what is sent with the commit. Files of secrets are never sent, so they do not count.
func (r *repository) differs(ctx context.Context, tree *Tree) (bool, error) {
	same := 0
	for _, entry := range tree.Entries {
		if entry.Mode.IsDir() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
		known, tracked := r.files[entry.Path]
		if !tracked || known.mode != modeOf(entry) {
			return true, nil
		}
		hash, err := hashOf(tree.Folder, entry)
		if err != nil {
			return false, fmt.Errorf("compare %s with its commit: %w", entry.Path, err)
		}
		if hash != known.hash {
			return true, nil
		}
		same++
	}
	for name := range r.files {
		if isEnvFile(path.Base(name)) {
			same++
		}
	}
	return same != len(r.files), nil
}

func modeOf(entry Entry) filemode.FileMode {
	switch {
	case entry.Mode&fs.ModeSymlink != 0:
		return filemode.Symlink
	case entry.Mode&0o100 != 0:
		return filemode.Executable
	}
	return filemode.Regular
}

// hashOf is git's name of a content.
func hashOf(folder string, entry Entry) (string, error) {
	hash := sha1.New() //nolint:gosec // git's own name of a content
	if entry.Mode&fs.ModeSymlink != 0 {
		_, _ = fmt.Fprintf(hash, "blob %d\x00%s", len(entry.Link), entry.Link)
		return hex.EncodeToString(hash.Sum(nil)), nil
	}
	file, err := os.Open(filepath.Join(folder, filepath.FromSlash(entry.Path)))
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	_, _ = fmt.Fprintf(hash, "blob %d\x00", entry.Size)
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// findGit looks for .git in the folder and those above it. It may be a file that names the real one.
func findGit(folder string) (top, gitDir string) {
	for dir := folder; ; dir = filepath.Dir(dir) {
		git := filepath.Join(dir, ".git")
		info, err := os.Stat(git)
		switch {
		case err == nil && info.IsDir():
			if _, err := os.Stat(filepath.Join(git, "HEAD")); err == nil {
				return dir, git
			}
		case err == nil:
			text, err := os.ReadFile(git)
			if real, found := strings.CutPrefix(strings.TrimSpace(string(text)), "gitdir:"); err == nil && found {
				real = strings.TrimSpace(real)
				if !filepath.IsAbs(real) {
					real = filepath.Join(dir, real)
				}
				return dir, real
			}
		}
		if dir == filepath.Dir(dir) {
			return "", ""
		}
	}
}

// commonDir is the .git that the work trees of a repository share.
func commonDir(gitDir string) string {
	text, err := os.ReadFile(filepath.Join(gitDir, "commondir"))
	if err != nil {
		return gitDir
	}
	common := strings.TrimSpace(string(text))
	if filepath.IsAbs(common) {
		return common
	}
	return filepath.Join(gitDir, common)
}
