// Package static reads the manifests of static pods: pods that a node runs because a file says
// so, with or without an API.
//
// Source keeps what a folder's files say; what a manifest means is for Options.Decode. Start at
// Source.Run.
package static

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
)

// maxManifestBytes bounds what one file may hold, as the kubelet does.
const maxManifestBytes = 10 << 20

// Options configure a Source. Path and Decode are required.
type Options struct {
	Path string // a folder of manifests, or one file
	// Decode makes a pod from a manifest. The pod's UID says what is in it.
	Decode func(data []byte, file string) (*corev1.Pod, error)
	// Every is how often files are looked at without an event; default 20 s, as the kubelet does.
	Every time.Duration
	// Settle is how long after an event files are read, so that one being written is whole; default 100 ms.
	Settle time.Duration
	Logger *slog.Logger // default: discards
}

// Source knows the static pods of a node.
type Source struct {
	opts  Options
	log   *slog.Logger
	files map[string]file // by path
}

// file is what is known of one manifest.
type file struct {
	modified time.Time
	size     int64
	pod      *corev1.Pod // the last that was right; nil: never was
}

// New checks opts and returns a Source that has read nothing.
func New(opts Options) (*Source, error) {
	if !filepath.IsAbs(opts.Path) || opts.Decode == nil {
		return nil, errors.New("static: Path must be absolute, and Decode is required")
	}
	opts.Every = cmp.Or(opts.Every, 20*time.Second)
	opts.Settle = cmp.Or(opts.Settle, 100*time.Millisecond)
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	return &Source{opts: opts, log: opts.Logger, files: map[string]file{}}, nil
}

// Read looks at the files and returns the pods. A file that cannot be used is logged; while one
// that could be used before cannot, its last pod stays. Read and Run are not for use at once.
func (s *Source) Read() []*corev1.Pod {
	paths, err := s.paths()
	if err != nil {
		s.log.Warn("cannot read the manifests of static pods", "path", s.opts.Path, "error", err)
	} else {
		for path := range s.files {
			if !slices.Contains(paths, path) {
				delete(s.files, path)
			}
		}
	}
	for _, path := range paths {
		if err := s.look(path); err != nil {
			s.log.Warn("cannot use the manifest of a static pod", "path", path, "error", err)
		}
	}
	byName := map[string]*corev1.Pod{}
	var names []string
	for _, path := range paths {
		pod := s.files[path].pod
		if pod == nil {
			continue
		}
		name := pod.Namespace + "/" + pod.Name
		if byName[name] != nil {
			s.log.Warn("two manifests name the same static pod; the later file is used", "path", path, "namespace", pod.Namespace, "name", pod.Name)
		} else {
			names = append(names, name)
		}
		byName[name] = pod
	}
	pods := make([]*corev1.Pod, 0, len(names))
	for _, name := range names {
		pods = append(pods, byName[name])
	}
	return pods
}

// paths lists the files, sorted. Those whose name starts with a dot are not meant.
func (s *Source) paths() ([]string, error) {
	info, err := os.Stat(s.opts.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{s.opts.Path}, nil
	}
	entries, err := os.ReadDir(s.opts.Path)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		path := filepath.Join(s.opts.Path, e.Name())
		if info, err := os.Stat(path); strings.HasPrefix(e.Name(), ".") || err != nil || !info.Mode().IsRegular() {
			continue
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// look reads a file that has changed.
func (s *Source) look(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	known := s.files[path]
	if known.modified.Equal(info.ModTime()) && known.size == info.Size() {
		return nil
	}
	known.modified, known.size = info.ModTime(), info.Size()
	s.files[path] = known // so that it is complained of once
	if info.Size() > maxManifestBytes {
		return fmt.Errorf("it has %d bytes, want at most %d", info.Size(), maxManifestBytes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	pod, err := s.opts.Decode(data, path)
	if err != nil {
		return err
	}
	known.pod = pod
	s.files[path] = known
	return nil
}

// Run calls changed with all pods whenever files have changed, until ctx ends.
func (s *Source) Run(ctx context.Context, changed func(pods []*corev1.Pod)) {
	watcher, err := s.watch()
	if err != nil {
		s.log.Warn("changes of static pods are noticed late", "path", s.opts.Path, "error", err)
		watcher = &fsnotify.Watcher{} // its channels are nil: only the ticker remains
	} else {
		defer func() { _ = watcher.Close() }()
	}
	ticker := time.NewTicker(s.opts.Every)
	defer ticker.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-watcher.Events:
			settled = time.After(s.opts.Settle)
			continue
		case <-watcher.Errors: // events were lost: look
		case <-settled:
			settled = nil
		case <-ticker.C:
		}
		changed(s.Read())
	}
}

// watch subscribes to what happens in the folder, or in that of the file.
func (s *Source) watch() (*fsnotify.Watcher, error) {
	dir := s.opts.Path
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		dir = filepath.Dir(dir)
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := watcher.Add(dir); err != nil {
		return nil, errors.Join(err, watcher.Close())
	}
	return watcher, nil
}
