package device

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// testPlugin is a device plugin over real gRPC.
type testPlugin struct {
	pluginapi.UnimplementedDevicePluginServer
	registerapi.UnimplementedRegistrationServer
	resource string
	options  pluginapi.DevicePluginOptions
	answer   *pluginapi.ContainerAllocateResponse
	prefer   []string
	refuse   error

	changed chan struct{}
	server  *grpc.Server
	path    string

	mu        sync.Mutex
	devices   []*pluginapi.Device
	allocated [][]string
	started   [][]string
	told      *registerapi.RegistrationStatus
}

// startPlugin serves a plugin in a socket of dir.
func startPlugin(t *testing.T, dir, socket string, p *testPlugin) {
	t.Helper()
	p.changed = make(chan struct{}, 10)
	p.path = filepath.Join(dir, socket)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", p.path)
	if err != nil {
		t.Fatal(err)
	}
	p.server = grpc.NewServer()
	pluginapi.RegisterDevicePluginServer(p.server, p)
	registerapi.RegisterRegistrationServer(p.server, p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.server.Serve(listener)
	}()
	t.Cleanup(func() {
		p.server.Stop()
		<-done
	})
}

// register tells the kubelet of the plugin, as a plugin does.
func (p *testPlugin) register(ctx context.Context, root, version string) error {
	conn, err := dialUnix(filepath.Join(root, pluginsDir, socketName))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_, err = pluginapi.NewRegistrationClient(conn).Register(ctx, &pluginapi.RegisterRequest{
		Version: version, Endpoint: filepath.Base(p.path), ResourceName: p.resource, Options: &p.options,
	}, grpc.WaitForReady(true))
	return err
}

func devices(health string, ids ...string) []*pluginapi.Device {
	var list []*pluginapi.Device
	for _, id := range ids {
		list = append(list, &pluginapi.Device{ID: id, Health: health})
	}
	return list
}

func (p *testPlugin) set(list []*pluginapi.Device) {
	p.mu.Lock()
	p.devices = list
	p.mu.Unlock()
	p.changed <- struct{}{}
}

func (p *testPlugin) calls() (allocated, started [][]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.allocated), slices.Clone(p.started)
}

func (p *testPlugin) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return &p.options, nil
}

func (p *testPlugin) ListAndWatch(_ *pluginapi.Empty, stream pluginapi.DevicePlugin_ListAndWatchServer) error {
	for {
		p.mu.Lock()
		list := p.devices
		p.mu.Unlock()
		if err := stream.Send(&pluginapi.ListAndWatchResponse{Devices: list}); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-p.changed:
		}
	}
}

func (p *testPlugin) GetPreferredAllocation(context.Context, *pluginapi.PreferredAllocationRequest) (*pluginapi.PreferredAllocationResponse, error) {
	return &pluginapi.PreferredAllocationResponse{ContainerResponses: []*pluginapi.ContainerPreferredAllocationResponse{{DeviceIDs: p.prefer}}}, nil
}

func (p *testPlugin) Allocate(_ context.Context, request *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	if p.refuse != nil {
		return nil, p.refuse
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.allocated = append(p.allocated, request.ContainerRequests[0].DevicesIds)
	answer := p.answer
	if answer == nil {
		answer = &pluginapi.ContainerAllocateResponse{}
	}
	return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{answer}}, nil
}

func (p *testPlugin) PreStartContainer(_ context.Context, request *pluginapi.PreStartContainerRequest) (*pluginapi.PreStartContainerResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started = append(p.started, request.DevicesIds)
	return &pluginapi.PreStartContainerResponse{}, nil
}

func (p *testPlugin) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.DevicePlugin, Name: p.resource, Endpoint: p.path, SupportedVersions: []string{pluginapi.Version}}, nil
}

func (p *testPlugin) NotifyRegistrationStatus(_ context.Context, status *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = status
	return &registerapi.RegistrationStatusResponse{}, nil
}
