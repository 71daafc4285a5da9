//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// testImages is the folder of a registry where upstream has the images of its tests.
const testImages = "e2e-test-images/"

// Registry is an image registry on a cluster's machine, kept in memory. It speaks HTTP, on the
// loopback address, where nodes take that.
type Registry struct {
	Address string // host and port

	machine *machine
	server  *http.Server
	ended   chan struct{}
}

// StartRegistry starts an empty registry. Call Close in the end.
func (c *Cluster) StartRegistry() (*Registry, error) {
	var listener net.Listener
	var listenErr error
	err := c.machine.in(func() error {
		listener, listenErr = net.Listen("tcp", "127.0.0.1:0")
		return nil
	})
	if err := errors.Join(err, listenErr); err != nil {
		return nil, fmt.Errorf("cluster: start a registry: %w", err)
	}
	quiet := log.New(io.Discard, "", 0)
	r := &Registry{
		Address: listener.Addr().String(), machine: c.machine, ended: make(chan struct{}),
		server: &http.Server{Handler: registry.New(registry.Logger(quiet)), ErrorLog: quiet, ReadHeaderTimeout: time.Minute},
	}
	go func() {
		defer close(r.ended)
		_ = r.server.Serve(listener) // until Close
	}()
	return r, nil
}

// Close stops the registry and forgets its images.
func (r *Registry) Close() error {
	err := r.server.Close()
	<-r.ended
	if err != nil {
		return fmt.Errorf("cluster: stop the registry: %w", err)
	}
	return nil
}

// RepoList is the file, named by KUBE_TEST_REPO_LIST, that sends upstream's suite here for its images.
func (r *Registry) RepoList() string {
	var text strings.Builder
	for key, folder := range map[string]string{"promoterE2eRegistry": strings.TrimSuffix("/"+testImages, "/"), "gcEtcdRegistry": "", "gcRegistry": ""} {
		_, _ = fmt.Fprintf(&text, "%s: %s%s\n", key, r.Address, folder)
	}
	return text.String()
}

// push puts an image into the registry under all of its names.
func (r *Registry) push(ctx context.Context, i image) error {
	packed, err := i.build()
	if err != nil {
		return err
	}
	transport := &http.Transport{DialContext: r.machine.dial}
	defer transport.CloseIdleConnections()
	for _, n := range i.names {
		ref, err := name.ParseReference(n, name.Insecure)
		if err != nil {
			return fmt.Errorf("cluster: name %s: %w", n, err)
		}
		if err := remote.Write(ref, packed, remote.WithContext(ctx), remote.WithTransport(transport)); err != nil {
			return fmt.Errorf("cluster: push %s: %w", n, err)
		}
	}
	return nil
}
