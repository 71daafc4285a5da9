//go:build linux

package worker

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/buildkit/util/resolver"

	"gantry.dev/gantry/internal/platform/build/job"
)

// imageSource is where images come from and go to: the socket of the build that runs, for the
// cluster's registry and what the node has already; the network for all others.
type imageSource struct {
	local *http.Transport
	world docker.RegistryHosts

	mu     sync.Mutex // guards the field below
	socket string
}

func newImageSource() *imageSource {
	s := &imageSource{world: resolver.NewRegistryConfig(nil)}
	s.local = &http.Transport{
		DisableKeepAlives: true, // the socket is another for every build
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			s.mu.Lock()
			socket := s.socket
			s.mu.Unlock()
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	return s
}

// use makes socket the one that is asked.
func (s *imageSource) use(socket string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.socket = socket
}

// hosts implements docker.RegistryHosts.
func (s *imageSource) hosts(host string) ([]docker.RegistryHost, error) {
	client := &http.Client{Transport: s.local}
	if host == job.RegistryHost {
		return []docker.RegistryHost{{
			Client: client, Host: host, Scheme: "http", Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
		}}, nil
	}
	hosts, err := s.world(host)
	if err != nil {
		return nil, err
	}
	node := docker.RegistryHost{
		Client: client, Host: "node.gantry.internal", Scheme: "http", Path: job.NodePath,
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}
	return append([]docker.RegistryHost{node}, hosts...), nil
}

// repository is the name of a repository in the cluster's registry.
func repository(text string) (name.Repository, error) {
	repo, err := name.NewRepository(text, name.Insecure)
	if err != nil {
		return name.Repository{}, fmt.Errorf("repository %s: %w", text, err)
	}
	return repo, nil
}

// options are for pushing to and pulling from the cluster's registry.
func (s *imageSource) options(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithContext(ctx), remote.WithTransport(s.local)}
}
