//go:build linux

package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/buildkit/client"

	"gantry.dev/gantry/internal/platform/build/job"
)

func (e *engine) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /build", e.serveBuild)
	mux.HandleFunc("GET /usage", func(w http.ResponseWriter, r *http.Request) {
		usage, err := e.usage(r.Context())
		answer(w, usage, err)
	})
	mux.HandleFunc("POST /prune", func(w http.ResponseWriter, r *http.Request) {
		usage, err := e.prune(r.Context())
		answer(w, usage, err)
	})
	return mux
}

func answer(w http.ResponseWriter, value any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the caller went away
}

// serveBuild builds and tells how it goes; the caller ends it by hanging up.
func (e *engine) serveBuild(w http.ResponseWriter, r *http.Request) {
	var request job.Request
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 16<<20)).Decode(&request); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	release, err := e.wait(r.Context())
	if err != nil {
		return // the caller went away
	}
	defer release()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := &reporter{encoder: json.NewEncoder(w), flush: http.NewResponseController(w).Flush, hidden: hide(hidden(request))}
	image, err := e.build(r.Context(), request, out)
	if err != nil {
		out.say(failure(err))
		return
	}
	out.say(job.Event{Type: job.Done, Image: image})
}

// hidden is what must not show in what a build says.
func hidden(r job.Request) map[string][]byte {
	if r.Git == nil || r.Git.Password == "" {
		return r.Secrets
	}
	out := maps.Clone(r.Secrets)
	if out == nil {
		out = map[string][]byte{}
	}
	out[""] = []byte(r.Git.Password) // no secret has this name
	return out
}

// reporter writes events, and hides secrets that a step prints.
type reporter struct {
	mu      sync.Mutex
	encoder *json.Encoder
	flush   func() error
	hidden  func(string) string
}

func (r *reporter) say(event job.Event) {
	event.Time = time.Now().UTC()
	event.Text = r.hidden(event.Text)
	event.Step = r.hidden(event.Step)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.encoder.Encode(event) == nil {
		_ = r.flush() // who hung up ends the build through its context
	}
}

// workDir is a new folder for one build.
func (e *engine) workDir() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp(filepath.Join(e.setup.Dir, "source"), "b")
	if err != nil {
		return "", nil, fmt.Errorf("making a folder for the source: %w", err)
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil // the next start clears what is left
}

func (e *engine) usage(ctx context.Context) (job.Usage, error) {
	c, err := e.buildkit(ctx)
	if err != nil {
		return job.Usage{}, err
	}
	list, err := c.DiskUsage(ctx)
	if err != nil {
		return job.Usage{}, fmt.Errorf("asking what the build cache holds: %w", err)
	}
	usage := job.Usage{Entries: len(list)}
	for _, entry := range list {
		usage.Bytes += entry.Size
	}
	bytes, err := sizeOf(e.goDir())
	usage.Bytes += bytes
	return usage, err
}

// prune removes all that no build uses and returns what that freed.
func (e *engine) prune(ctx context.Context) (job.Usage, error) {
	release, err := e.wait(ctx)
	if err != nil {
		return job.Usage{}, err
	}
	defer release()
	c, err := e.buildkit(ctx)
	if err != nil {
		return job.Usage{}, err
	}
	removed := make(chan client.UsageInfo)
	done := make(chan job.Usage)
	go func() {
		var usage job.Usage
		for entry := range removed {
			usage.Bytes += entry.Size
			usage.Entries++
		}
		done <- usage
	}()
	err = c.Prune(ctx, removed, client.PruneAll)
	close(removed)
	usage := <-done
	if err != nil {
		return usage, fmt.Errorf("pruning the build cache: %w", err)
	}
	bytes, err := sizeOf(e.goDir())
	usage.Bytes += bytes
	return usage, errors.Join(err, clearDir(e.goDir()))
}

// sizeOf adds up the files below dir; without dir it is 0.
func sizeOf(dir string) (int64, error) {
	var total int64
	err := filepath.WalkDir(dir, func(_ string, entry os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			total += info.Size()
		}
		return nil
	})
	if err != nil {
		return total, fmt.Errorf("measuring %s: %w", dir, err)
	}
	return total, nil
}
