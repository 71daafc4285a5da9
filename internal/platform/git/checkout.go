package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"

	"gantry.dev/gantry/internal/platform/source"
)

// checkout writes the files of a commit into a folder and lists them as a deploy sends them. Nothing is written outside of the
// folder, whatever names and links the commit has.
type checkout struct {
	root     *os.Root
	tree     *source.Tree
	maxBytes int64
	maxFiles int
}

func (c *checkout) run(ctx context.Context, commit *object.Commit) error {
	tree, err := commit.Tree()
	if err != nil {
		return fmt.Errorf("read the commit %s: %w", commit.Hash, err)
	}
	walker := object.NewTreeWalker(tree, true, nil)
	defer walker.Close()
	for files := 0; ; files++ {
		name, entry, err := walker.Next()
		if errors.Is(err, io.EOF) {
			slices.SortFunc(c.tree.Entries, func(a, b source.Entry) int { return strings.Compare(a.Path, b.Path) })
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && files >= c.maxFiles {
			err = refuse("too many files", "the commit has more than %d files", c.maxFiles)
		}
		if err == nil {
			err = c.add(tree, name, entry)
		}
		if err != nil {
			return fmt.Errorf("check out %s: %w", commit.Hash, err)
		}
	}
}

// add writes one entry. Files that only hold a developer's secrets are left out, as a deploy of a folder does.
func (c *checkout) add(tree *object.Tree, name string, entry object.TreeEntry) error {
	base := path.Base(name)
	if !fs.ValidPath(name) || strings.EqualFold(base, ".git") || strings.ContainsAny(base, "\\\x00") {
		return refuse("bad file name", "the name %q is not allowed", name)
	}
	out := source.Entry{Path: name, Mode: 0o644}
	switch entry.Mode {
	case filemode.Dir:
		out.Mode = fs.ModeDir | 0o755
		c.tree.Entries = append(c.tree.Entries, out)
		return c.root.Mkdir(name, 0o755)
	case filemode.Submodule:
		c.tree.Notes = append(c.tree.Notes, name+" is a submodule and is left out")
		return nil
	case filemode.Executable:
		out.Mode = 0o755
	}
	if base == ".env" || (strings.HasPrefix(base, ".env.") && strings.HasSuffix(base, ".local")) {
		c.tree.Notes = append(c.tree.Notes, name+" is left out: set secrets with gantry secret set")
		return nil
	}
	file, err := tree.TreeEntryFile(&entry)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if c.tree.Bytes += file.Size; c.tree.Bytes > c.maxBytes {
		return refuse("too large", "the files of the commit are more than %d MB", c.maxBytes>>20)
	}
	if entry.Mode == filemode.Symlink {
		return c.link(name, file)
	}
	out.Size = file.Size
	c.tree.Entries = append(c.tree.Entries, out)
	return c.write(name, out.Mode, file)
}

// link writes a symbolic link. One that leads out of the source is refused.
func (c *checkout) link(name string, file *object.File) error {
	if file.Size > 4096 {
		return refuse("bad link", "the link %s is too long", name)
	}
	target, err := file.Contents()
	if err != nil {
		return fmt.Errorf("read the link %s: %w", name, err)
	}
	if path.IsAbs(target) || !fs.ValidPath(path.Join(path.Dir(name), target)) {
		return refuse("bad link", "the link %s leads out of the repository", name)
	}
	c.tree.Entries = append(c.tree.Entries, source.Entry{Path: name, Mode: fs.ModeSymlink | 0o777, Link: target})
	return c.root.Symlink(target, name)
}

func (c *checkout) write(name string, mode fs.FileMode, file *object.File) error {
	from, err := file.Reader()
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	defer func() { _ = from.Close() }()
	to, err := c.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}
