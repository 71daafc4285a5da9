package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing/format/gitignore"
)

// Defaults of Options.
const (
	defaultMaxBytes = 512 << 20
	defaultMaxFiles = 100_000
)

// Options say what to scan.
type Options struct {
	Folder   string
	Host     string // the machine's name, for the origin of a folder in no repository
	MaxBytes int64  // of all files together; default 512 MiB
	MaxFiles int    // default 100,000
}

// Tree is a folder as it is sent.
type Tree struct {
	Folder  string
	Entries []Entry // sorted by path
	Bytes   int64   // of all files
	// Commit is the commit that is checked out, with "+dirty" if the files differ from it; empty in no repository.
	Commit string
	// Time is when the commit was made; the zero of Unix time in no repository.
	Time time.Time
	// Origin is the repository's address, or the machine and folder.
	Origin string
	// Notes say what was left out that somebody may miss.
	Notes []string
}

// Entry is one file, folder or link.
type Entry struct {
	Path string // with slashes, relative
	Mode fs.FileMode
	Size int64
	Link string // where a symbolic link leads
}

// TooLargeError says that a folder is more than a deploy sends, and what in it is large.
type TooLargeError struct {
	Bytes, Max int64
	Files      int
	Largest    []string
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the folder is too large to send: %d MB in %d files, at most %d MB; largest: %s; name what is not needed in .gitignore",
		e.Bytes>>20, e.Files, e.Max>>20, strings.Join(e.Largest, ", "))
}

// Scan looks through a folder.
func Scan(ctx context.Context, opts Options) (*Tree, error) {
	opts.MaxBytes, opts.MaxFiles = cmp.Or(opts.MaxBytes, defaultMaxBytes), cmp.Or(opts.MaxFiles, defaultMaxFiles)
	folder, err := filepath.Abs(opts.Folder)
	if err != nil {
		return nil, fmt.Errorf("find the folder %s: %w", opts.Folder, err)
	}
	if folder, err = filepath.EvalSymlinks(folder); err != nil {
		return nil, fmt.Errorf("find the folder %s: %w", opts.Folder, err)
	}
	repo, err := openRepository(folder)
	if err != nil {
		return nil, err
	}
	s := &scan{tree: &Tree{Folder: folder, Time: time.Unix(0, 0).UTC()}, repo: repo, root: os.DirFS(folder), opts: opts, sizes: map[string]int64{}}
	if err := s.ignoresAbove(); err != nil {
		return nil, err
	}
	if err := s.walk(ctx, "."); err != nil {
		return nil, err
	}
	slices.SortFunc(s.tree.Entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	if s.tree.Bytes > opts.MaxBytes || s.files > opts.MaxFiles {
		return nil, &TooLargeError{Bytes: s.tree.Bytes, Max: opts.MaxBytes, Files: s.files, Largest: s.largest()}
	}
	s.tree.Origin = opts.Host + ":" + filepath.ToSlash(folder)
	if repo != nil {
		if err := s.describe(ctx); err != nil {
			return nil, err
		}
	}
	return s.tree, nil
}

// scan is one pass over a folder.
type scan struct {
	tree     *Tree
	repo     *repository // nil in no repository
	root     fs.FS
	opts     Options
	patterns []gitignore.Pattern
	files    int
	sizes    map[string]int64 // of the top folders
}

// ignoresAbove reads the .gitignore files from the repository's top down to the folder, and the repository's own list.
func (s *scan) ignoresAbove() error {
	if s.repo == nil {
		return nil
	}
	if err := s.readIgnores(os.DirFS(s.repo.common), "info/exclude", nil); err != nil {
		return err
	}
	for i := range s.repo.inside { // the folder's own .gitignore is read when it is walked
		above := s.repo.inside[:i]
		if err := s.readIgnores(os.DirFS(s.repo.top), path.Join(append(slices.Clone(above), ".gitignore")...), above); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) readIgnores(in fs.FS, name string, domain []string) error {
	text, err := fs.ReadFile(in, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what is ignored: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\r\n")
		if line != "" && !strings.HasPrefix(line, "#") {
			s.patterns = append(s.patterns, gitignore.ParsePattern(line, slices.Clone(domain)))
		}
	}
	return nil
}

// domain is a path as .gitignore sees it: from the repository's top.
func (s *scan) domain(name string) []string {
	var out []string
	if s.repo != nil {
		out = slices.Clone(s.repo.inside)
	}
	if name == "." {
		return out
	}
	return append(out, strings.Split(name, "/")...)
}

func (s *scan) walk(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	kept := len(s.patterns)
	defer func() { s.patterns = s.patterns[:kept] }()
	if err := s.readIgnores(s.root, path.Join(dir, ".gitignore"), s.domain(dir)); err != nil {
		return err
	}
	entries, err := fs.ReadDir(s.root, dir)
	if err != nil {
		return fmt.Errorf("look through the folder: %w", err)
	}
	for _, entry := range entries {
		name := path.Join(dir, entry.Name())
		if s.leftOut(name, entry) {
			continue
		}
		if err := s.add(ctx, name, entry); err != nil {
			return err
		}
	}
	return nil
}

// leftOut says whether an entry is not sent. What is tracked is sent even if a pattern names it, as git has it.
func (s *scan) leftOut(name string, entry fs.DirEntry) bool {
	base := entry.Name()
	switch {
	case base == ".git":
		return true
	case !entry.IsDir() && isEnvFile(base):
		s.tree.Notes = append(s.tree.Notes, name+" is not sent: set what is in it with gantry env set and gantry secret set")
		return true
	case s.repo == nil && len(s.patterns) == 0 && slices.Contains(litter(), base):
		s.tree.Notes = append(s.tree.Notes, name+" is not sent: there is no .gitignore that could say so")
		return true
	case s.repo.tracks(name):
		return false
	}
	return gitignore.NewMatcher(s.patterns).Match(s.domain(name), entry.IsDir())
}

// isEnvFile tells files that hold a developer's secrets.
func isEnvFile(base string) bool {
	return base == ".env" || (strings.HasPrefix(base, ".env.") && strings.HasSuffix(base, ".local"))
}

// litter is what no source is, where nothing else tells.
func litter() []string { return []string{"node_modules", ".venv", "__pycache__", ".DS_Store"} }

func (s *scan) add(ctx context.Context, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // went away meanwhile
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", name, err)
	}
	switch {
	case info.IsDir():
		s.tree.Entries = append(s.tree.Entries, Entry{Path: name, Mode: fs.ModeDir | 0o755})
		return s.walk(ctx, name)
	case info.Mode()&fs.ModeSymlink != 0:
		return s.addLink(name)
	case !info.Mode().IsRegular():
		s.tree.Notes = append(s.tree.Notes, name+" is not sent: it is no file, folder or link")
		return nil
	}
	mode := fs.FileMode(0o644)
	if info.Mode()&0o100 != 0 {
		mode = 0o755
	}
	s.tree.Entries = append(s.tree.Entries, Entry{Path: name, Mode: mode, Size: info.Size()})
	s.tree.Bytes += info.Size()
	s.files++
	top, _, _ := strings.Cut(name, "/")
	s.sizes[top] += info.Size()
	return nil
}

// addLink keeps links that lead to a place in the folder.
func (s *scan) addLink(name string) error {
	link, err := os.Readlink(filepath.Join(s.tree.Folder, filepath.FromSlash(name)))
	if err != nil {
		return fmt.Errorf("read a link: %w", err)
	}
	link = filepath.ToSlash(link)
	target := path.Join(path.Dir(name), link)
	if path.IsAbs(link) || target == ".." || strings.HasPrefix(target, "../") {
		s.tree.Notes = append(s.tree.Notes, fmt.Sprintf("%s is not sent: it is a link that leads out of the folder, to %s", name, link))
		return nil
	}
	s.tree.Entries = append(s.tree.Entries, Entry{Path: name, Mode: fs.ModeSymlink | 0o777, Link: link})
	return nil
}

func (s *scan) largest() []string {
	var names []string
	for name := range s.sizes {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(s.sizes[b], s.sizes[a]), strings.Compare(a, b)) })
	out := make([]string, 0, 5)
	for _, name := range names[:min(5, len(names))] {
		out = append(out, fmt.Sprintf("%s (%d MB)", name, s.sizes[name]>>20))
	}
	return out
}

// describe says which commit this is, and where it comes from.
func (s *scan) describe(ctx context.Context) error {
	if s.repo.remote != "" {
		s.tree.Origin = withoutPassword(s.repo.remote)
		if len(s.repo.inside) > 0 {
			s.tree.Origin += "//" + path.Join(s.repo.inside...)
		}
	}
	if s.repo.commit == "" {
		return nil
	}
	s.tree.Commit, s.tree.Time = s.repo.commit, s.repo.time
	dirty, err := s.repo.differs(ctx, s.tree)
	if err != nil {
		return err
	}
	if dirty {
		s.tree.Commit += "+dirty"
	}
	return nil
}

// withoutPassword removes credentials from an address.
func withoutPassword(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.User == nil || u.Scheme == "ssh" {
		return address
	}
	u.User = nil
	return u.String()
}

// FS shows the folder as it is sent: nothing else is in it.
func (t *Tree) FS() fs.FS {
	known := map[string]bool{".": true}
	for _, entry := range t.Entries {
		known[entry.Path] = true
	}
	return sentFS{os.DirFS(t.Folder), known}
}

// sentFS is a folder less what is not known.
type sentFS struct {
	fs.FS
	known map[string]bool
}

// Open implements fs.FS.
func (f sentFS) Open(name string) (fs.File, error) {
	if !f.known[path.Clean(name)] {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return f.FS.Open(name)
}

// ReadDir implements fs.ReadDirFS.
func (f sentFS) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(f.FS, name)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !f.known[path.Join(name, e.Name())] }), err
}

// Origin is where a folder comes from: its repository's address, or the machine and folder.
func Origin(folder, host string) string {
	if real, err := filepath.EvalSymlinks(folder); err == nil {
		folder = real
	}
	s := &scan{tree: &Tree{}}
	if repo, err := openRepository(folder); err == nil && repo != nil && repo.remote != "" {
		repo.commit = "" // the files are not looked at
		s.repo = repo
		if s.describe(context.Background()) == nil {
			return s.tree.Origin
		}
	}
	return host + ":" + filepath.ToSlash(folder)
}
