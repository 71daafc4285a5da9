package backup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gantry.dev/gantry/internal/durable"
)

// ErrNotFound says that a place has no backup of a name.
var ErrNotFound = errors.New("there is no such backup")

// Item is a backup at a place.
type Item struct {
	Name  string    `json:"name"`
	Bytes int64     `json:"bytes"`
	Taken time.Time `json:"taken"`
}

// Place keeps backups.
type Place interface {
	// Create begins a backup. Nothing of it is seen before Commit.
	Create(ctx context.Context, name string) (Upload, error)
	// List names the backups that there are, the newest first.
	List(ctx context.Context) ([]Item, error)
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	Remove(ctx context.Context, name string) error
}

// Upload is a backup on its way. One of Commit and Abort ends it.
type Upload interface {
	io.Writer
	Commit() error
	Abort()
}

// Credentials are what a store of objects wants to know. Directories need none.
type Credentials struct {
	AccessKey, SecretKey string
	Region               string // default us-east-1
	Endpoint             string // URL; default Amazon's of the region
}

// CredentialsOf reads credentials from variables with the names that S3's own tools have.
func CredentialsOf(getenv func(string) string) Credentials {
	return Credentials{
		AccessKey: getenv("AWS_ACCESS_KEY_ID"), SecretKey: getenv("AWS_SECRET_ACCESS_KEY"),
		Region: getenv("AWS_REGION"), Endpoint: getenv("AWS_ENDPOINT_URL"),
	}
}

// IsRemote reports whether a place is in a store of objects.
func IsRemote(where string) bool { return strings.HasPrefix(where, "s3://") }

// Open returns the place at s3://BUCKET/PREFIX or in a directory, which must be an absolute path. Nothing is asked or made yet.
func Open(where string, c Credentials) (Place, error) {
	if rest, remote := strings.CutPrefix(where, "s3://"); remote {
		bucket, prefix, _ := strings.Cut(rest, "/")
		return newBucket(bucket, strings.Trim(prefix, "/"), c)
	}
	if strings.Contains(where, "://") || !filepath.IsAbs(where) {
		return nil, fmt.Errorf("%q is neither an absolute path nor s3://BUCKET/PREFIX", where)
	}
	return directory{filepath.Clean(where)}, nil
}

// Split divides the address of one backup into its place and its name.
func Split(where string) (place, name string) {
	if IsRemote(where) {
		return strings.TrimSuffix(where, "/"+path.Base(where)), path.Base(where)
	}
	return filepath.Dir(where), filepath.Base(where)
}

const (
	extension  = ".backup"
	timeFormat = "20060102T150405Z"
)

// Name is what a backup of a cluster is called. Names sort by time.
func Name(cluster string, taken time.Time) string {
	return prefixOf(cluster) + taken.UTC().Format(timeFormat) + extension
}

// prefixOf tells the backups of clusters that share a place.
func prefixOf(cluster string) string { return "gantry-" + cluster[:min(8, len(cluster))] + "-" }

// takenOf reads the time out of a name; false if it is none that Name made.
func takenOf(name string) (time.Time, bool) {
	stem, ok := strings.CutSuffix(name, extension)
	i := strings.LastIndexByte(stem, '-')
	if !ok || i < 0 || !strings.HasPrefix(stem, "gantry-") {
		return time.Time{}, false
	}
	taken, err := time.Parse(timeFormat, stem[i+1:])
	return taken, err == nil
}

// Surplus picks those of a cluster's backups that are more than are to be kept. Files of other names are nobody's.
func Surplus(items []Item, cluster string, keep int) []Item {
	var own []Item
	for _, item := range items {
		if _, dated := takenOf(item.Name); dated && strings.HasPrefix(item.Name, prefixOf(cluster)) {
			own = append(own, item)
		}
	}
	newestFirst(own)
	return own[min(keep, len(own)):]
}

func newestFirst(items []Item) {
	slices.SortFunc(items, func(a, b Item) int {
		if c := b.Taken.Compare(a.Taken); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// directory is a folder of this machine.
type directory struct{ dir string }

// Create implements Place.
func (d directory) Create(_ context.Context, name string) (Upload, error) {
	if err := durable.MkdirAll(d.dir); err != nil {
		return nil, err
	}
	return NewFile(filepath.Join(d.dir, name))
}

// NewFile begins a backup in a file, which gets its name when it is whole. Where the file system can do it, the file has no name
// before: whatever ends this process leaves nothing of it.
func NewFile(path string) (Upload, error) {
	if file := unnamed(filepath.Dir(path)); file != nil {
		return &fileUpload{File: file, path: path, unnamed: true}, nil
	}
	file, err := os.OpenFile(partOf(path), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write the backup: %w", err)
	}
	return &fileUpload{File: file, path: path}, nil
}

// partOf is a new name in a file's folder for what is not whole.
func partOf(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text()[:6]+".part")
}

type fileUpload struct {
	*os.File
	path    string
	unnamed bool
}

// Commit implements Upload.
func (f *fileUpload) Commit() error {
	part := f.Name()
	err := f.Sync()
	if f.unnamed && err == nil { // a link does not replace a file, so it gets another name first
		part = partOf(f.path)
		err = link(f.File, part)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(part, f.path)
	}
	if err != nil {
		_ = os.Remove(part)
		return fmt.Errorf("finish %s: %w", f.path, err)
	}
	return durable.SyncDir(filepath.Dir(f.path))
}

// Abort implements Upload.
func (f *fileUpload) Abort() {
	_ = f.Close()
	if !f.unnamed {
		_ = os.Remove(f.Name())
	}
}

// List implements Place.
func (d directory) List(context.Context) ([]Item, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list backups: %w", err)
	}
	var items []Item
	for _, entry := range entries {
		taken, ok := takenOf(entry.Name())
		if info, err := entry.Info(); ok && err == nil && info.Mode().IsRegular() {
			items = append(items, Item{Name: entry.Name(), Bytes: info.Size(), Taken: taken})
		}
	}
	newestFirst(items)
	return items, nil
}

// Open implements Place.
func (d directory) Open(_ context.Context, name string) (io.ReadCloser, error) {
	file, err := os.Open(filepath.Join(d.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, filepath.Join(d.dir, name))
	}
	if err != nil {
		return nil, fmt.Errorf("open the backup: %w", err)
	}
	return file, nil
}

// Remove implements Place. What was begun and never ended long ago goes with it.
func (d directory) Remove(_ context.Context, name string) error {
	if err := os.Remove(filepath.Join(d.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a backup: %w", err)
	}
	return nil
}
