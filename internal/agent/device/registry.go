package device

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// watchRegistry follows the sockets of a plugin registry: the other way to register, by which
// the kubelet asks the plugins. Only device plugins are taken; drivers of CSI and of dynamic
// resources are told that they are not.
func (m *Manager) watchRegistry(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", dir, err)
	}
	if err := watcher.Add(dir); err != nil {
		return errors.Join(fmt.Errorf("watching %s: %w", dir, err), watcher.Close())
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return errors.Join(err, watcher.Close())
	}
	started := m.runs.start(func(ctx context.Context) {
		defer func() { _ = watcher.Close() }()
		for _, e := range entries {
			m.found(filepath.Join(dir, e.Name()))
		}
		for {
			select {
			case <-ctx.Done():
				return
			case err := <-watcher.Errors:
				m.log.Warn("events of the plugin registry were lost", "folder", dir, "error", err)
			case event := <-watcher.Events:
				if event.Has(fsnotify.Create) {
					m.found(event.Name)
				}
			}
		}
	})
	if !started {
		return watcher.Close()
	}
	return nil
}

// found asks what is behind a socket of the registry, beside everything else.
func (m *Manager) found(path string) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSocket == 0 || strings.HasPrefix(filepath.Base(path), ".") {
		return
	}
	m.runs.start(func(ctx context.Context) {
		if err := m.introduce(ctx, path); err != nil && ctx.Err() == nil {
			m.log.Warn("a plugin in the registry was not taken", "socket", path, "error", err)
		}
	})
}

// introduce asks a plugin who it is, registers it, and tells it so.
func (m *Manager) introduce(ctx context.Context, path string) error {
	conn, err := dialUnix(path)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 2*connectTimeout)
	defer cancel()
	api := registerapi.NewRegistrationClient(conn)
	info, err := api.GetInfo(ctx, &registerapi.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("asking what it is: %w", err)
	}
	if info.Type != registerapi.DevicePlugin {
		err = fmt.Errorf("plugins of type %s are not supported", info.Type)
	} else {
		endpoint := info.Endpoint
		if endpoint == "" {
			endpoint = path
		}
		err = m.register(ctx, info.Name, endpoint, info.SupportedVersions...)
	}
	status := &registerapi.RegistrationStatus{PluginRegistered: err == nil}
	if err != nil {
		status.Error = err.Error()
	}
	_, notifyErr := api.NotifyRegistrationStatus(ctx, status)
	return errors.Join(err, notifyErr)
}
