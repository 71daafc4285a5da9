package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Connection is a TCP connection as the socket of its client has it.
type Connection struct{ Client, Server netip.AddrPort }

// Reset ends the sockets of clients on this node, in pods and of the node itself: who reads, writes or waits on one gets an error at
// once. A connection that is gone already is no error.
func (n *Network) Reset(ctx context.Context, list []Connection) error {
	byPath := map[string][]Connection{} // "" is the node's own namespace
	for _, c := range list {
		path := n.namespaceOf(c.Client.Addr())
		byPath[path] = append(byPath[path], c)
	}
	var errs []error
	for path, connections := range byPath {
		if err := ctx.Err(); err != nil {
			return err
		}
		if path == "" {
			errs = append(errs, destroy(connections))
			continue
		}
		errs = append(errs, onSpareThread(func() error {
			return inNamespace(path, func() error { return destroy(connections) })
		}))
	}
	return errors.Join(errs...)
}

// namespaceOf is the path of the namespace of the pod with an address; "" when no pod has it.
func (n *Network) namespaceOf(addr netip.Addr) string {
	for _, pod := range n.List() {
		for _, own := range pod.Addrs {
			if own == addr {
				return pod.NetNSPath
			}
		}
	}
	return ""
}

// destroy ends sockets in the namespace of the calling thread.
func destroy(list []Connection) error {
	var errs []error
	for _, c := range list {
		if err := netlink.SocketDestroy(net.TCPAddrFromAddrPort(c.Client), net.TCPAddrFromAddrPort(c.Server)); err != nil {
			errs = append(errs, fmt.Errorf("ending the socket %v to %v: %w", c.Client, c.Server, err))
		}
	}
	return errors.Join(errs...)
}

// inNamespace runs fn on the calling, locked thread inside of the namespace that is mounted on path.
func inNamespace(path string, fn func() error) (err error) {
	home, err := unix.Open("/proc/self/task/"+strconv.Itoa(unix.Gettid())+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the own network namespace: %w", err)
	}
	defer func() { _ = unix.Close(home) }()
	target, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the pod's network namespace: %w", err)
	}
	defer func() { _ = unix.Close(target) }()
	if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the pod's network namespace: %w", err)
	}
	defer func() {
		if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
			err = errors.Join(errLostThread, back, err)
		}
	}()
	return fn()
}
