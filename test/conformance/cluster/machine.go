//go:build linux

package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// The first machine's address, and that of the world outside.
const (
	machineIP = "10.77.0.2"
	outsideIP = "10.77.0.1"
)

// machine is a network namespace that a node takes for its machine: lo, eth0 on a link that it shares with its neighbours, and
// a default route into a second namespace, the world outside, where nothing answers.
type machine struct {
	name  string
	world string // the namespace outside, with the link's bridge; it goes with the first machine
	first bool
	at    netip.Addr
}

func newMachine(ctx context.Context) (*machine, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("cluster: it takes root to make network namespaces and containers")
	}
	name := "gc-" + strings.ToLower(rand.Text()[:6])
	m := &machine{name: name, world: name + "-o", first: true, at: netip.MustParseAddr(machineIP)}
	if err := m.ip(ctx, [][]string{
		{"netns", "add", m.world}, {"-n", m.world, "link", "set", "lo", "up"},
		{"-n", m.world, "link", "add", "br0", "type", "bridge"}, {"-n", m.world, "addr", "add", outsideIP + "/24", "dev", "br0"},
		{"-n", m.world, "link", "set", "br0", "up"},
	}); err != nil {
		return nil, err
	}
	return m, m.connect(ctx)
}

// neighbour makes the machine number i, from 1, on the same link.
func (m *machine) neighbour(ctx context.Context, i int) (*machine, error) {
	at := m.at
	for range i {
		at = at.Next()
	}
	n := &machine{name: fmt.Sprintf("%s-%d", m.name, i), world: m.world, at: at}
	return n, n.connect(ctx)
}

// connect makes the machine's namespace and its end of the link.
func (m *machine) connect(ctx context.Context) error {
	port := "to" + strings.ReplaceAll(m.at.String(), ".", "-")[len("10-77-0"):]
	return m.ip(ctx, [][]string{
		{"netns", "add", m.name}, {"-n", m.name, "link", "set", "lo", "up"},
		{"-n", m.name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", m.world},
		{"-n", m.name, "addr", "add", m.at.String() + "/24", "dev", "eth0"}, {"-n", m.name, "link", "set", "eth0", "up"},
		{"-n", m.world, "link", "set", port, "master", "br0", "up"}, {"-n", m.name, "route", "add", "default", "via", outsideIP},
	})
}

// ip runs the program ip; after an error the machine is gone.
func (m *machine) ip(ctx context.Context, commands [][]string) error {
	for _, args := range commands {
		if said, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return errors.Join(fmt.Errorf("cluster: ip %s: %w: %s", strings.Join(args, " "), err, said), m.remove())
		}
	}
	return nil
}

// path is where the namespace is mounted.
func (m *machine) path() string { return "/run/netns/" + m.name }

func (m *machine) remove() error {
	var failed []error
	names := []string{m.name}
	if m.first {
		names = append(names, m.world)
	}
	for _, name := range names {
		if _, err := os.Stat("/run/netns/" + name); err != nil {
			continue
		}
		if said, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			failed = append(failed, fmt.Errorf("cluster: remove namespace %s: %w: %s", name, err, said))
		}
	}
	return errors.Join(failed...)
}

// dial connects from inside of the machine. The address must be an IP address.
func (m *machine) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	inErr := m.in(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return nil
	})
	return conn, errors.Join(inErr, err)
}

// in calls fn on a thread inside of the namespace; sockets that fn opens stay there.
func (m *machine) in(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread() // the main thread must not change
			done <- m.in(fn)
			return
		}
		ns, err := os.Open(m.path())
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = ns.Close() }()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}
