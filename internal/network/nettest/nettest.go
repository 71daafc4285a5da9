// Package nettest lets a test play a machine: the test binary starts itself again in network
// and mount namespaces of its own, where links, rules and settings may be changed freely and
// vanish with the process. Only tests import it.
package nettest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const insideEnv = "GANTRY_NETTEST_INSIDE"

// Main runs the package's tests inside of fresh namespaces; without root it runs them where
// they are, and tests call Need to skip. Call it from TestMain with os.Exit.
func Main(m *testing.M) int {
	if os.Getenv(insideEnv) != "" || os.Getuid() != 0 {
		if os.Getenv(insideEnv) != "" {
			if link, err := netlink.LinkByName("lo"); err == nil {
				_ = netlink.LinkSetUp(link)
			}
		}
		return m.Run()
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "starting the test in its own namespaces:", err)
		return 1
	}
	return 0
}

// Need skips the test where Main found no root.
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("needs root for namespaces of its own")
	}
}

// In runs fn on a thread inside of the network namespace that is mounted on path. Sockets
// that fn opens stay in that namespace.
func In(t testing.TB, path string, fn func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- In(t, path, fn)
			return
		}
		ns, err := netns.GetFromPath(path)
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = ns.Close() }()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// Outside makes a namespace joined to the machine by a veth: machine has addr a, the
// outside has addr b with a default route back when routed is set. It returns its path.
func Outside(t testing.TB, link, a, b string, routed bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "none", unix.MS_BIND, "")
	}()
	if err := <-done; err != nil {
		t.Fatalf("making the outside: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = link
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "out0", PeerNamespace: netlink.NsFd(int(ns))}); err != nil {
		t.Fatalf("making the link to the outside: %v", err)
	}
	t.Cleanup(func() {
		if l, err := netlink.LinkByName(link); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	up(t, nil, link, a)
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	up(t, inside, "lo", "")
	up(t, inside, "out0", b)
	if routed {
		ip, _, err := net.ParseCIDR(a)
		if err != nil {
			t.Fatal(err)
		}
		if err := inside.RouteAdd(&netlink.Route{Gw: ip}); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func up(t testing.TB, nl *netlink.Handle, name, addr string) {
	t.Helper()
	if nl == nil {
		nl = &netlink.Handle{}
	}
	link, err := nl.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if addr != "" {
		ip, err := netlink.ParseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := nl.AddrAdd(link, ip); err != nil {
			t.Fatal(err)
		}
	}
	if err := nl.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

// ServeName answers every TCP connection and UDP packet on address in the namespace (empty:
// the machine) with "name peer" until the test ends, where peer is the client's address.
func ServeName(t testing.TB, path, address, name string) {
	t.Helper()
	listen := func() error {
		tcp, err := net.Listen("tcp4", address)
		if err != nil {
			return err
		}
		udp, err := net.ListenPacket("udp4", address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = tcp.Close(); _ = udp.Close() })
		go func() {
			for {
				conn, err := tcp.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintf(conn, "%s %s", name, host(conn.RemoteAddr()))
				_ = conn.Close()
			}
		}()
		go func() {
			buf := make([]byte, 1500)
			for {
				_, peer, err := udp.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = udp.WriteTo(fmt.Appendf(nil, "%s %s", name, host(peer)), peer)
			}
		}()
		return nil
	}
	var err error
	if path == "" {
		err = listen()
	} else {
		err = In(t, path, listen)
	}
	if err != nil {
		t.Fatalf("serving %s on %s: %v", name, address, err)
	}
}

func host(addr net.Addr) string {
	h, _, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	return h
}

// Ask connects from the namespace (empty: the machine) to a server of ServeName and returns
// the name it gave and the address it saw.
func Ask(t testing.TB, path, network, address string) (name, peer string, err error) {
	t.Helper()
	ask := func() error {
		conn, err := (&net.Dialer{Timeout: 3 * time.Second}).Dial(network, address)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
		if network == "udp4" {
			if _, err := conn.Write([]byte("?")); err != nil {
				return err
			}
		}
		buf := make([]byte, 200)
		k, err := conn.Read(buf)
		if err != nil {
			return err
		}
		_, err = fmt.Sscan(string(buf[:k]), &name, &peer)
		return err
	}
	if path == "" {
		return name, peer, ask()
	}
	err = In(t, path, ask)
	return name, peer, err
}

// Dial opens a connection from the namespace (empty: the machine) that ends with the test.
func Dial(t testing.TB, path, network, address string) net.Conn {
	t.Helper()
	var conn net.Conn
	dial := func() (err error) {
		conn, err = (&net.Dialer{Timeout: 3 * time.Second}).Dial(network, address)
		return err
	}
	var err error
	if path == "" {
		err = dial()
	} else {
		err = In(t, path, dial)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ForgetFlows empties the machine's table of tracked connections: pods of one test have the
// addresses of another's.
func ForgetFlows(t testing.TB) {
	t.Helper()
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatal(err)
	}
}
