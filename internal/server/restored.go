package server

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
	"time"

	corev1 "k8s.io/api/core/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/backup"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/durable"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/platform/addon/pack"
)

// restoredLook is the time between two looks at whether an addon takes its data.
const restoredLook = time.Second

// restoredData loads the dumps of a restored backup into the addons that they are of, once these run.
type restoredData struct {
	dir        string // DATA/restored
	kubeconfig string
	reader     ctrlclient.Client
	log        *slog.Logger
}

// Run ends when all is loaded, or with ctx. Without a restored backup there is nothing to do.
func (d *restoredData) Run(ctx context.Context) error {
	list := filepath.Join(d.dir, restoredList)
	text, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var dumps []backup.Dump
	if err == nil {
		err = json.Unmarshal(text, &dumps)
	}
	if err != nil {
		return fmt.Errorf("reading what a restore left to do: %w", err)
	}
	complaint := map[string]string{}
	for len(dumps) > 0 {
		if !lifecycle.Pause(ctx, restoredLook) {
			return nil
		}
		var left []backup.Dump
		for _, dump := range dumps {
			err := d.load(ctx, dump)
			if err == nil {
				d.log.Info("the data of an addon is back", "namespace", dump.Project, "app", dump.App, "addon", dump.Addon)
				continue
			}
			left = append(left, dump)
			if message := err.Error(); !errors.Is(err, errNotYet) && message != complaint[dump.File] && ctx.Err() == nil {
				complaint[dump.File] = message
				d.log.Warn("the data of an addon is not back yet, and tried again", "namespace", dump.Project, "app", dump.App, "addon", dump.Addon, "error", err)
			}
		}
		if len(left) < len(dumps) {
			if text, err = json.Marshal(left); err == nil {
				err = durable.WriteFile(list, text, 0o600)
			}
			if err != nil {
				return err
			}
		}
		dumps = left
	}
	if err := os.RemoveAll(d.dir); err != nil {
		return fmt.Errorf("removing what a restore left: %w", err)
	}
	return nil
}

var errNotYet = errors.New("it does not run yet")

// load loads one dump.
func (d *restoredData) load(ctx context.Context, dump backup.Dump) error {
	known, err := pack.Find(dump.Type)
	if err != nil {
		return err
	}
	pod := &corev1.Pod{}
	err = d.reader.Get(ctx, ctrlclient.ObjectKey{Namespace: dump.Project, Name: v1alpha1.ObjectName(dump.App, dump.Addon) + "-0"}, pod)
	if ctrlclient.IgnoreNotFound(err) != nil {
		return err
	}
	if err != nil || !isPodReady(pod) {
		return errNotYet
	}
	path := filepath.Join(d.dir, filepath.FromSlash(dump.File))
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening a dump: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err := runInPod(ctx, d.kubeconfig, pod, []string{"sh", "-c", known.Load}, file, &firstBytes{max: 2 << 10}); err != nil {
		return err
	}
	if known.Restart {
		if err := d.reader.Delete(ctx, pod, ctrlclient.Preconditions{UID: &pod.UID}); ctrlclient.IgnoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}

// loadRestored brings back what a restore could not before pods run, then waits for ctx.
func loadRestored(ctx context.Context, cp *ControlPlane, c *config.Config, log *slog.Logger) error {
	d := &restoredData{dir: c.Path(restoredDir), kubeconfig: cmp.Or(c.Kubeconfig, c.Path("admin.kubeconfig")), reader: cp.admin, log: log}
	select {
	case <-cp.Controlled():
	case <-ctx.Done():
		return nil
	}
	if err := d.Run(ctx); err != nil && ctx.Err() == nil {
		log.Error("data of a restored backup is not loaded", "folder", d.dir, "error", err)
	}
	<-ctx.Done()
	return nil
}
