package applog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"gantry.dev/gantry/internal/lifecycle"
)

// Options says where logs are and for how long they are kept.
type Options struct {
	PodsDir  string        // logs of the pods that are there: NAMESPACE_NAME_UID/CONTAINER/ATTEMPT.log
	Dir      string        // what is kept of those that are gone
	MaxAge   time.Duration // default seven days
	MaxBytes int64         // of one application's kept logs; default 200 MB
	Sweep    time.Duration // how often what is too old is removed; default an hour
	Logger   *slog.Logger  // default: discards
}

// Pod is a pod of an application.
type Pod struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       string    `json:"uid"`
	App       string    `json:"app"`
	Process   string    `json:"process,omitempty"`
	Release   string    `json:"release,omitempty"`
	Began     time.Time `json:"began"` // no line of it is older
}

// Keeper keeps the logs of one node's applications. It is safe for concurrent use.
type Keeper struct {
	opts Options

	mu sync.Mutex // held while something is moved, written or removed
}

// podFile, in a pod's log folder, says which application the pod is of. The platform's lines are in platformFile, of an
// application's folder; the older half of them in platformOld.
const (
	podFile      = "app.json"
	podsFolder   = "pods"
	platformFile = "platform.jsonl"
	platformOld  = "platform.1.jsonl"
	maxPlatform  = 4 << 20
)

// New checks opts and returns a Keeper.
func New(opts Options) (*Keeper, error) {
	opts.MaxAge = cmp.Or(opts.MaxAge, 7*24*time.Hour)
	opts.MaxBytes = cmp.Or(opts.MaxBytes, 200<<20)
	opts.Sweep = cmp.Or(opts.Sweep, time.Hour)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if !filepath.IsAbs(opts.PodsDir) || !filepath.IsAbs(opts.Dir) || opts.MaxAge < 0 || opts.MaxBytes < 0 || opts.Sweep < 0 {
		return nil, fmt.Errorf("applog: PodsDir is %q, Dir %q: want absolute paths, and nothing negative", opts.PodsDir, opts.Dir)
	}
	return &Keeper{opts: opts}, nil
}

// folder is where a pod's containers write while it is there.
func (k *Keeper) folder(namespace, name, uid string) string {
	return filepath.Join(k.opts.PodsDir, filepath.Base(namespace+"_"+name+"_"+uid))
}

func (k *Keeper) appFolder(namespace, app string) string {
	return filepath.Join(k.opts.Dir, filepath.Base(namespace), filepath.Base(app))
}

// Begin notes that a pod of an application is about to run. A pod that began before keeps its time.
func (k *Keeper) Begin(p Pod) error {
	dir := k.folder(p.Namespace, p.Name, p.UID)
	if _, err := os.Stat(filepath.Join(dir, podFile)); err == nil {
		return nil
	}
	text, err := json.Marshal(p)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, podFile), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("noting whose logs a pod's are: %w", err)
	}
	return nil
}

// End takes the logs of a pod that is gone. It reports false if the pod was of no application, or has no logs: what
// is there of it is then the caller's to remove.
func (k *Keeper) End(namespace, name, uid string) (bool, error) {
	from := k.folder(namespace, name, uid)
	p, err := readPod(from)
	if err != nil {
		return false, nil //nolint:nilerr // a pod of no application, or of a version before this
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	to := filepath.Join(k.appFolder(p.Namespace, p.App), podsFolder)
	if err := os.MkdirAll(to, 0o700); err != nil {
		return false, fmt.Errorf("keeping the logs of a pod: %w", err)
	}
	to = filepath.Join(to, filepath.Base(name+"_"+uid))
	if err := os.Rename(from, to); err != nil {
		return false, fmt.Errorf("keeping the logs of a pod: %w", err)
	}
	now := time.Now()
	_ = os.Chtimes(to, now, now) // so old is what is kept
	return true, k.trimLocked(k.appFolder(p.Namespace, p.App), now)
}

func readPod(dir string) (p Pod, err error) {
	text, err := os.ReadFile(filepath.Join(dir, podFile))
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err == nil && (p.App == "" || p.Namespace == "") {
		err = errors.New("no application is named")
	}
	return p, err
}

// Note writes down what the platform did with an application.
func (k *Keeper) Note(namespace, app string, line Line) error {
	text, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("encoding a line of the platform: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	dir := k.appFolder(namespace, app)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keeping a line of the platform: %w", err)
	}
	path := filepath.Join(dir, platformFile)
	if info, err := os.Stat(path); err == nil && info.Size() > maxPlatform {
		if err := os.Rename(path, filepath.Join(dir, platformOld)); err != nil {
			return fmt.Errorf("keeping a line of the platform: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("keeping a line of the platform: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keeping a line of the platform: %w", err)
	}
	return nil
}

// Noted is when the last line of the platform about an application was written; zero: never.
func (k *Keeper) Noted(namespace, app string) time.Time {
	info, err := os.Stat(filepath.Join(k.appFolder(namespace, app), platformFile))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// Run removes what is too old, now and then, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		if err := k.sweep(time.Now()); err != nil {
			k.opts.Logger.Warn("removing old logs of applications", "error", err)
		}
		if !lifecycle.Pause(ctx, k.opts.Sweep) {
			return nil
		}
	}
}

// sweep trims every application.
func (k *Keeper) sweep(now time.Time) error {
	namespaces, err := names(k.opts.Dir)
	if err != nil {
		return err
	}
	for _, namespace := range namespaces {
		apps, err := names(filepath.Join(k.opts.Dir, namespace))
		if err != nil {
			return err
		}
		for _, app := range apps {
			k.mu.Lock()
			err := k.trimLocked(filepath.Join(k.opts.Dir, namespace, app), now)
			k.mu.Unlock()
			if err != nil {
				return err
			}
		}
		_ = os.Remove(filepath.Join(k.opts.Dir, namespace)) // if it is empty
	}
	return nil
}

// kept is the log of a pod that is gone.
type kept struct {
	path  string
	ended time.Time
	bytes int64
}

// trimLocked removes what is too old or too much of one application.
func (k *Keeper) trimLocked(dir string, now time.Time) error {
	pods, err := names(filepath.Join(dir, podsFolder))
	if err != nil {
		return err
	}
	all := make([]kept, 0, len(pods))
	for _, name := range pods {
		path := filepath.Join(dir, podsFolder, name)
		if info, err := os.Stat(path); err == nil {
			all = append(all, kept{path, info.ModTime(), sizeOf(path)})
		}
	}
	slices.SortFunc(all, func(a, b kept) int { return b.ended.Compare(a.ended) }) // newest first
	left := k.opts.MaxBytes
	for _, one := range all {
		if left -= one.bytes; left >= 0 && now.Sub(one.ended) <= k.opts.MaxAge {
			continue
		}
		if err := os.RemoveAll(one.path); err != nil {
			return fmt.Errorf("removing old logs: %w", err)
		}
	}
	for _, name := range []string{platformOld, platformFile} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && now.Sub(info.ModTime()) > k.opts.MaxAge {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("removing old logs: %w", err)
			}
		}
	}
	_ = os.Remove(filepath.Join(dir, podsFolder)) // these two, if they are empty
	_ = os.Remove(dir)
	return nil
}

// names lists a folder, which may not be there.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the logs of applications: %w", err)
	}
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// sizeOf sums the files below a folder.
func sizeOf(dir string) (total int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil //nolint:nilerr // what is gone meanwhile takes no room
		}
		if info, err := e.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total
}
