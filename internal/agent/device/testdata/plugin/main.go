// Command plugin is a device plugin for tests: it offers devices named board-0, board-1 and so on,
// each of them the node's /dev/net/tun, and registers again whenever the kubelet's socket is new.
// SIGUSR1 makes board-0 unhealthy, SIGUSR2 healthy again.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

type plugin struct {
	api.UnimplementedDevicePluginServer
	count   int
	changed chan string // the health of board-0
}

func main() {
	dir := flag.String("dir", "/plugins", "folder with kubelet.sock")
	resource := flag.String("resource", "example.com/board", "what is offered")
	count := flag.Int("count", 3, "how many there are")
	flag.Parse()
	p := &plugin{count: *count, changed: make(chan string, 1)}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		for s := range signals {
			if s == syscall.SIGUSR1 {
				p.changed <- api.Unhealthy
			} else {
				p.changed <- api.Healthy
			}
		}
	}()
	for {
		if err := p.serve(*dir, *resource); err != nil {
			log.Print(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// serve registers and serves until the kubelet's socket is another one.
func (p *plugin) serve(dir, resource string) error {
	kubelet, socket := filepath.Join(dir, "kubelet.sock"), filepath.Join(dir, "board.sock")
	before, err := os.Stat(kubelet)
	if err != nil {
		return err
	}
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	defer server.Stop()
	api.RegisterDevicePluginServer(server, p)
	go func() { _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("unix://"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_, err = api.NewRegistrationClient(conn).Register(context.Background(), &api.RegisterRequest{
		Version: api.Version, Endpoint: "board.sock", ResourceName: resource,
	})
	if err != nil {
		return err
	}
	log.Print("registered")
	for {
		time.Sleep(100 * time.Millisecond)
		now, err := os.Stat(kubelet)
		// A new file may have the number of the one before, so its time counts too.
		if err != nil || !os.SameFile(before, now) || !now.ModTime().Equal(before.ModTime()) {
			return fmt.Errorf("the kubelet's socket is new, or gone: %v", err)
		}
	}
}

// GetDevicePluginOptions implements the service.
func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{PreStartRequired: true}, nil
}

// ListAndWatch implements the service.
func (p *plugin) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	health := api.Healthy
	for {
		list := &api.ListAndWatchResponse{}
		for i := range p.count {
			d := &api.Device{ID: fmt.Sprintf("board-%d", i), Health: api.Healthy}
			if i == 0 {
				d.Health = health
			}
			list.Devices = append(list.Devices, d)
		}
		if err := stream.Send(list); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case health = <-p.changed:
		}
	}
}

// Allocate implements the service.
func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	answer := &api.AllocateResponse{}
	for _, c := range request.ContainerRequests {
		answer.ContainerResponses = append(answer.ContainerResponses, &api.ContainerAllocateResponse{
			Envs:    map[string]string{"BOARD": strings.Join(c.DevicesIds, ",")},
			Devices: []*api.DeviceSpec{{HostPath: "/dev/net/tun", ContainerPath: "/dev/board", Permissions: "mrw"}},
			Mounts:  []*api.Mount{{HostPath: "/etc/hostname", ContainerPath: "/board-host", ReadOnly: true}},
		})
	}
	return answer, nil
}

// PreStartContainer implements the service.
func (p *plugin) PreStartContainer(_ context.Context, request *api.PreStartContainerRequest) (*api.PreStartContainerResponse, error) {
	log.Print("about to start ", request.DevicesIds)
	return &api.PreStartContainerResponse{}, nil
}
