package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"

	"gantry.dev/gantry/internal/durable"
)

// keepAfter is how long changes are gathered before they are written down. What a crash loses of them the next list brings;
// without a server, pods that were new to the node wait for one.
const keepAfter = time.Second

// note says that there is something to write down.
func (f *feed) note() {
	if f.opts.file == "" {
		return
	}
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// keep writes the objects down when they have changed, until ctx ends.
func (f *feed) keep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.changed:
		}
		timer := time.NewTimer(keepAfter)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
		if err := f.write(); err != nil {
			f.opts.log.Warn("what the cluster said cannot be written down", "kind", f.name(), "error", err)
		}
	}
}

func (f *feed) write() error {
	if f.forgotten.Load() {
		return nil
	}
	list := f.opts.newList()
	objects := f.all()
	items := make([]runtime.Object, 0, len(objects))
	for _, obj := range objects {
		items = append(items, obj)
	}
	if err := meta.SetList(list, items); err != nil {
		return fmt.Errorf("gathering objects: %w", err)
	}
	text, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encoding objects: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(f.opts.file), 0o700); err != nil {
		return fmt.Errorf("making the folder of what the cluster said: %w", err)
	}
	return durable.WriteFile(f.opts.file, text, 0o600)
}

// recall takes what was written down for the state, while nothing is known.
func (f *feed) recall() {
	if f.opts.file == "" || f.HasSynced() {
		return
	}
	text, err := os.ReadFile(f.opts.file)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	list := f.opts.newList()
	if err == nil {
		err = json.Unmarshal(text, list)
	}
	if err == nil {
		err = f.replace(list, false)
	}
	if err != nil {
		f.opts.log.Warn("what the cluster said last cannot be read", "kind", f.name(), "error", err)
		return
	}
	f.opts.log.Info("no server answers: this node goes on with what it knew", "kind", f.name())
}

// forgetFile removes what was written down: nobody needs it any more.
func (f *feed) forgetFile() {
	f.forgotten.Store(true)
	if f.opts.file != "" {
		_ = os.Remove(f.opts.file) // a file too many is harmless
	}
}
