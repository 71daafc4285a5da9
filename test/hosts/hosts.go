//go:build linux

package hosts

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
)

// World is the address of this process, and the default route of all machines.
const World = "10.78.0.1"

const (
	firstHost = "10.78.1.1"
	netnsDir  = "/run/netns"
)

// Hosts makes machines. They end with the namespaces of this process.
type Hosts struct {
	next netip.Addr
	made int
}

// Host is one machine.
type Host struct {
	Name    string
	NS      string // path of its network namespace
	Address netip.Addr
	port    string // the bridge's end of its link
}

// Inside runs this program again in network and mount namespaces of its own, with -inside before its arguments, or, when that is there
// already, keeps its mounts to itself and reports true.
func Inside(inside bool) (bool, error) {
	if inside {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SLAVE, ""); err != nil {
			return false, fmt.Errorf("keep mounts to ourselves: %w", err)
		}
		return true, nil
	}
	if os.Getuid() != 0 {
		return false, errors.New("root is needed: machines are network namespaces")
	}
	self, err := os.Executable()
	if err != nil {
		return false, fmt.Errorf("find this program: %w", err)
	}
	signal.Ignore(os.Interrupt) // the terminal sends it to both; the inner process cleans up
	cmd := exec.Command(self, append([]string{"-inside"}, os.Args[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	return false, cmd.Run()
}

// New makes the bridge. What it names in /run/netns is only seen by this process and its children.
func New(ctx context.Context) (*Hosts, error) {
	if err := syscall.Mount("tmpfs", netnsDir, "tmpfs", 0, "mode=755"); err != nil {
		return nil, fmt.Errorf("make a place for network namespaces: %w", err)
	}
	h := &Hosts{next: netip.MustParseAddr(firstHost)}
	return h, IP(ctx,
		"link set lo up", "link add hosts0 type bridge", "addr add "+World+"/16 dev hosts0", "link set hosts0 up",
	)
}

// Add makes a machine.
func (h *Hosts) Add(ctx context.Context, name string) (*Host, error) {
	m := &Host{Name: name, NS: filepath.Join(netnsDir, name), Address: h.next, port: fmt.Sprintf("port%d", h.made)}
	h.next, h.made = h.next.Next(), h.made+1
	return m, IP(ctx,
		"netns add "+name, "-n "+name+" link set lo up",
		"-n "+name+" link add eth0 type veth peer name "+m.port+" netns "+fmt.Sprint(unix.Getpid()),
		"-n "+name+" addr add "+m.Address.String()+"/16 dev eth0", "-n "+name+" link set eth0 up",
		"-n "+name+" route add default via "+World, "link set "+m.port+" master hosts0 up",
	)
}

// Cut takes the machine's link away.
func (m *Host) Cut(ctx context.Context) error { return IP(ctx, "link set "+m.port+" nomaster") }

// Mend gives the machine's link back.
func (m *Host) Mend(ctx context.Context) error { return IP(ctx, "link set "+m.port+" master hosts0") }

// IP runs commands of the program ip, which must all work.
func IP(ctx context.Context, commands ...string) error {
	for _, command := range commands {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(command)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w\n%s", command, err, out)
		}
	}
	return nil
}

// Dial connects from the machine. The address must be an IP address.
func (m *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	runtime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("find this thread's network namespace: %w", err)
	}
	defer func() {
		// The thread is given back, not ended: the kernel kills what a thread has started when that ends (Pdeathsig).
		if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("leave the network namespace of %s: %w", m.Name, back))
		} else {
			runtime.UnlockOSThread()
		}
		_ = unix.Close(own)
	}()
	ns, err := unix.Open(m.NS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of %s: %w", m.Name, err)
	}
	defer func() { _ = unix.Close(ns) }()
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter the network namespace of %s: %w", m.Name, err)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// Reach makes a configuration go to a server on the machine.
func (m *Host) Reach(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.Host = "https://" + net.JoinHostPort(m.Address.String(), "6443")
	return config
}
