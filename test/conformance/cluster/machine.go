//go:build linux

package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// The machine's address, and that of the world outside.
const (
	machineIP = "10.77.0.2"
	outsideIP = "10.77.0.1"
)

// machine is a network namespace that a node takes for its machine: lo, eth0 with machineIP, and
// a default route into a second namespace, the world outside, where nothing answers.
type machine struct{ name string }

func newMachine(ctx context.Context) (*machine, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("cluster: it takes root to make network namespaces and containers")
	}
	m := &machine{name: "gc-" + strings.ToLower(rand.Text()[:6])}
	out := m.outside()
	for _, args := range [][]string{
		{"netns", "add", m.name}, {"netns", "add", out},
		{"-n", m.name, "link", "set", "lo", "up"}, {"-n", out, "link", "set", "lo", "up"},
		{"-n", m.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", out},
		{"-n", m.name, "addr", "add", machineIP + "/24", "dev", "eth0"},
		{"-n", out, "addr", "add", outsideIP + "/24", "dev", "eth0"},
		{"-n", m.name, "link", "set", "eth0", "up"}, {"-n", out, "link", "set", "eth0", "up"},
		{"-n", m.name, "route", "add", "default", "via", outsideIP},
	} {
		if said, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("cluster: ip %s: %w: %s", strings.Join(args, " "), err, said), m.remove())
		}
	}
	return m, nil
}

func (m *machine) outside() string { return m.name + "-o" }

// path is where the namespace is mounted.
func (m *machine) path() string { return "/run/netns/" + m.name }

func (m *machine) remove() error {
	var failed []error
	for _, name := range []string{m.name, m.outside()} {
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
