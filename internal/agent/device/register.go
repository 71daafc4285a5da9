package device

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// The folders below a root, with the kubelet's names.
const (
	pluginsDir      = "device-plugins"
	registryDir     = "plugins_registry"
	podResourcesDir = "pod-resources"
	socketName      = "kubelet.sock"
)

// serveRoot makes the sockets below a root, and what follows them, unless another kubelet has
// them.
func (m *Manager) serveRoot(root string) {
	dir := filepath.Join(root, pluginsDir)
	err := func() error {
		if err := takeOver(dir); err != nil {
			return err
		}
		err := m.serve(dir, func(s *grpc.Server) { pluginapi.RegisterRegistrationServer(s, &registration{m: m, dir: dir}) })
		if err != nil {
			return err
		}
		resources := filepath.Join(root, podResourcesDir)
		if err := takeOver(resources); err != nil {
			return err
		}
		err = m.serve(resources, func(s *grpc.Server) { podresourcesapi.RegisterPodResourcesListerServer(s, &podResources{m: m}) })
		if err != nil {
			return err
		}
		return m.watchRegistry(filepath.Join(root, registryDir))
	}()
	if err != nil {
		m.log.Warn("device plugins cannot register", "folder", root, "error", err)
	}
}

// takeOver makes a folder and removes the sockets that an earlier kubelet and its plugins left:
// plugins register again when they see the new one.
func takeOver(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	conn, err := net.DialTimeout("unix", filepath.Join(dir, socketName), time.Second)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("another kubelet serves %s", filepath.Join(dir, socketName))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSocket == 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// serve listens in dir. The gRPC server is made with the first connection: most nodes have no
// plugins.
func (m *Manager) serve(dir string, register func(*grpc.Server)) error {
	listener, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		return err
	}
	started := m.runs.start(func(ctx context.Context) {
		defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
		first, err := listener.Accept()
		if err != nil {
			return // Run ends
		}
		server := grpc.NewServer()
		register(server)
		defer context.AfterFunc(ctx, server.Stop)()
		if err := server.Serve(&oneBefore{Listener: listener, first: first}); err != nil && ctx.Err() == nil {
			m.log.Error("the socket for device plugins is not served any more", "folder", dir, "error", err)
		}
	})
	if !started {
		_ = listener.Close()
	}
	return nil
}

// oneBefore is a listener that has a connection already.
type oneBefore struct {
	net.Listener
	mu    sync.Mutex // guards the field below
	first net.Conn
}

// Accept implements net.Listener.
func (l *oneBefore) Accept() (net.Conn, error) {
	l.mu.Lock()
	first := l.first
	l.first = nil
	l.mu.Unlock()
	if first != nil {
		return first, nil
	}
	return l.Listener.Accept()
}

// registration is the kubelet's service that device plugins register with.
type registration struct {
	pluginapi.UnimplementedRegistrationServer
	m   *Manager
	dir string
}

// Register implements the service.
func (r *registration) Register(ctx context.Context, request *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	if err := r.m.register(ctx, request.ResourceName, filepath.Join(r.dir, request.Endpoint), request.Version); err != nil {
		r.m.log.Warn("a device plugin was refused", "resource", request.ResourceName, "error", err)
		return nil, err
	}
	return &pluginapi.Empty{}, nil
}

// register connects to a plugin and follows it.
func (m *Manager) register(ctx context.Context, name, socket string, versions ...string) error {
	if err := checkPlugin(name, versions); err != nil {
		return err
	}
	p, err := connect(ctx, socket)
	if err != nil {
		return err
	}
	m.connected(name, p)
	started := m.runs.start(func(ctx context.Context) {
		defer p.close()
		err := p.follow(ctx, func(devices []*pluginapi.Device) { m.listed(name, p, devices) })
		if ctx.Err() == nil {
			m.log.Debug("a device plugin lists no more", "resource", name, "error", err)
			m.disconnected(name, p)
		}
	})
	if !started {
		p.close()
		return errors.New("the node agent is ending")
	}
	return nil
}

// checkPlugin says what is wrong with what a plugin says of itself.
func checkPlugin(name string, versions []string) error {
	known := false
	for _, version := range versions {
		known = known || version == pluginapi.Version
	}
	if !known {
		return fmt.Errorf("requested API version %q is not supported by kubelet. Supported version is %q", strings.Join(versions, ","), pluginapi.SupportedVersions)
	}
	if !IsExtended(corev1.ResourceName(name)) {
		return fmt.Errorf("the ResourceName %q is invalid", name)
	}
	return nil
}

// IsExtended reports whether a resource is one that the node's owner defines: with a domain
// that is not Kubernetes' own.
func IsExtended(name corev1.ResourceName) bool {
	text := string(name)
	if !strings.Contains(text, "/") || strings.Contains(text, "kubernetes.io/") || strings.HasPrefix(text, corev1.DefaultResourceRequestsPrefix) {
		return false
	}
	return len(validation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+text)) == 0
}
