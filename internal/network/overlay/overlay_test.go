//go:build linux

package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllertest"

	"gantry.dev/gantry/internal/network/nettest"
	"gantry.dev/gantry/internal/network/podnet"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

const (
	testCluster  = "10.244.0.0/16"
	testServices = "10.96.0.0/16"
)

// world is links with machines on them; the test's own namespace is the router between.
type world struct {
	t        testing.TB
	api      client.Client
	machines map[string]*box

	mu  sync.Mutex // guards the field below
	inf map[string]*controllertest.FakeInformer
}

// box is one machine.
type box struct {
	w       *world
	name    string
	path    string // its network namespace
	addr    netip.Addr
	pods    *podnet.Network
	podPath string
	podAddr netip.Addr
	stop    func()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	nettest.Need(t)
	w := &world{t: t, api: fake.NewClientBuilder().WithScheme(scheme.Scheme).WithStatusSubresource(&corev1.Node{}).Build(), machines: map[string]*box{},
		inf: map[string]*controllertest.FakeInformer{}}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	return w
}

// informers guards the fake informers, which do not guard themselves.
type guarded struct {
	*controllertest.FakeInformer
	w *world
}

func (g guarded) AddEventHandler(h toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	return g.FakeInformer.AddEventHandler(h)
}

func (w *world) GetInformer(_ context.Context, obj client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	return guarded{w.informer(obj), w}, nil
}

func (w *world) informer(obj client.Object) *controllertest.FakeInformer {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := fmt.Sprintf("%T", obj)
	if w.inf[name] == nil {
		w.inf[name] = controllertest.NewFakeInformer()
	}
	return w.inf[name]
}

// put creates or replaces an object, and tells.
func (w *world) put(obj client.Object) {
	w.t.Helper()
	old, ok := obj.DeepCopyObject().(client.Object)
	if ok && w.api.Get(w.t.Context(), client.ObjectKeyFromObject(obj), old) == nil {
		obj.SetResourceVersion(old.GetResourceVersion())
		err := w.updateStatus(obj)
		if err == nil {
			err = w.api.Update(w.t.Context(), obj)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	} else {
		obj.SetResourceVersion("")
		if err := w.api.Create(w.t.Context(), obj); err != nil {
			w.t.Fatal(err)
		}
	}
	inf := w.informer(obj)
	w.mu.Lock()
	defer w.mu.Unlock()
	inf.Add(obj)
}

func (w *world) updateStatus(obj client.Object) error {
	if n, ok := obj.(*corev1.Node); ok {
		return w.api.Status().Update(w.t.Context(), n) // its other fields come back as they were
	}
	return nil
}

func (w *world) remove(obj client.Object) {
	w.t.Helper()
	if err := w.api.Delete(w.t.Context(), obj); err != nil {
		w.t.Fatal(err)
	}
	inf := w.informer(obj)
	w.mu.Lock()
	defer w.mu.Unlock()
	inf.Delete(obj)
}

// link makes a link whose router has the address.
func (w *world) link(name, router string) {
	w.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	addr, err := netlink.ParseAddr(router)
	if err == nil {
		err = errors.Join(netlink.LinkAdd(bridge), netlink.AddrAdd(bridge, addr), netlink.LinkSetUp(bridge))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = netlink.LinkDel(bridge) })
}

// machine makes a machine on a link, with one pod that serves its machine's name. Its Node is
// there, but nothing knows of others before run.
func (w *world) machine(name, link, addr, pods string) *box {
	w.t.Helper()
	prefix := netip.MustParsePrefix(addr)
	b := &box{w: w, name: name, addr: prefix.Addr(), path: nettest.Outside(w.t, "l-"+name, "", addr, false)}
	port, err := netlink.LinkByName("l-" + name)
	if err != nil {
		w.t.Fatal(err)
	}
	master, err := netlink.LinkByName(link)
	if err == nil {
		err = netlink.LinkSetMaster(port, master)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	router := lastOf(prefix)
	opts := podnet.Options{Dir: filepath.Join(w.t.TempDir(), "net"), PodCIDR: netip.MustParsePrefix(pods),
		ClusterCIDR: netip.MustParsePrefix(testCluster), ServiceCIDR: netip.MustParsePrefix(testServices)}
	b.in(func() error {
		if err := netlink.RouteAdd(&netlink.Route{Gw: router.AsSlice()}); err != nil {
			return err
		}
		if b.pods, err = podnet.New(opts); err != nil {
			return err
		}
		return b.pods.Prepare(w.t.Context())
	})
	w.t.Cleanup(func() { b.in(func() error { return podnet.Cleanup(context.Background(), opts) }) })
	var addrs []netip.Addr
	if b.podPath, addrs, err = b.pods.Setup(w.t.Context(), "pod-"+name); err != nil {
		w.t.Fatal(err)
	}
	b.podAddr = addrs[0]
	nettest.ServeName(w.t, b.podPath, ":80", name)
	w.machines[name] = b
	w.put(node(name, b.addr.String(), pods, "", "", 0))
	return b
}

// lastOf is the address of the router on a link: the last one that a machine can have.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	b[3] |= byte(1<<(32-p.Bits())) - 2
	return netip.AddrFrom4(b)
}

func (b *box) in(fn func() error) {
	b.w.t.Helper()
	if err := nettest.In(b.w.t, b.path, fn); err != nil {
		b.w.t.Fatalf("%s: %v", b.name, err)
	}
}

// start runs something in the machine until stop is called or the test ends.
func (b *box) start(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- nettest.In(b.w.t, b.path, func() error { return run(ctx) }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.w.t.Errorf("%s: %v", b.name, err)
		}
	})
	b.w.t.Cleanup(stop)
	return stop
}

func (b *box) run(change ...func(*Options)) *box {
	b.w.t.Helper()
	opts := Options{NodeName: b.name, ClusterCIDR: netip.MustParsePrefix(testCluster), Resync: time.Second, RetryDelay: 100 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(b.w.t.Output(), nil)).With("machine", b.name)}
	for _, c := range change {
		c(&opts)
	}
	o, err := New(b.w.api, b.w, opts)
	if err != nil {
		b.w.t.Fatal(err)
	}
	b.stop = b.start(o.Run)
	return b
}

// eventually tries until check says nothing, within a deadline.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// reaches asks the pod of to from the pod of from by TCP, UDP and ICMP; the pod asked must see
// the asking one's own address.
func reaches(from, to *box) error {
	for _, network := range []string{"tcp4", "udp4"} {
		name, peer, err := nettest.Ask(from.w.t, from.podPath, network, to.podAddr.String()+":80")
		if err != nil || name != to.name || peer != from.podAddr.String() {
			return fmt.Errorf("%s asking %s by %s = %q from %q, %w; want %q from %q", from.name, to.name, network, name, peer, err, to.name, from.podAddr)
		}
	}
	return ping(from, to.podAddr)
}

// ping sends one echo request (RFC 792) and waits for its answer.
func ping(from *box, to netip.Addr) error {
	return nettest.In(from.w.t, from.podPath, func() error {
		conn, err := net.Dial("ip4:icmp", to.String())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := conn.Write([]byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}); err != nil {
			return err
		}
		answer := make([]byte, 100)
		for {
			k, err := conn.Read(answer)
			if err != nil {
				return fmt.Errorf("ping %s: %w", to, err)
			}
			if body := answer[:k]; k >= 28 && body[20] == 0 {
				return nil
			}
		}
	})
}

// cut reports whether a connection to the pod fails.
func cut(from, to *box) error {
	return nettest.In(from.w.t, from.podPath, func() error {
		conn, err := net.DialTimeout("tcp4", to.podAddr.String()+":80", 500*time.Millisecond)
		if err == nil {
			_ = conn.Close()
			return fmt.Errorf("%s still reaches %s", from.name, to.name)
		}
		return nil
	})
}

// ips runs ip in the machine and returns what it prints.
func (b *box) ips(args ...string) string {
	b.w.t.Helper()
	var out []byte
	b.in(func() (err error) {
		out, err = exec.Command("ip", args...).CombinedOutput()
		return err
	})
	return string(out)
}

func TestOneLink(t *testing.T) {
	w := newWorld(t)
	w.link("br-a", "192.0.2.254/24")
	a := w.machine("a", "br-a", "192.0.2.1/24", "10.244.0.0/24").run()
	b := w.machine("b", "br-a", "192.0.2.2/24", "10.244.1.0/24").run()
	c := w.machine("c", "br-a", "192.0.2.3/24", "10.244.2.0/24").run()
	for _, from := range []*box{a, b, c} {
		for _, to := range []*box{a, b, c} {
			if from != to {
				eventually(t, func() error { return reaches(from, to) })
			}
		}
	}
	eventually(t, func() error {
		if links := a.ips("-br", "link"); strings.Contains(links, TunnelLink) {
			return fmt.Errorf("there is a tunnel where all share a link:\n%s", links)
		}
		return nil
	})
	if got := a.ips("route", "get", "10.244.1.2", "from", "10.244.0.2", "iif", "gantry0"); !strings.Contains(got, "via 192.0.2.2 dev out0") {
		t.Errorf("the way to b's pod: %s", got)
	}
	// The machine itself reaches pods of others from its address on the pod network.
	name, peer, err := nettest.Ask(t, a.path, "tcp4", b.podAddr.String()+":80")
	if err != nil || name != "b" || peer != "10.244.0.1" {
		t.Errorf("a's machine asking b = %q from %q, %v; want b from 10.244.0.1", name, peer, err)
	}
	// Pods of no machine are refused at once.
	_, _, err = nettest.Ask(t, a.podPath, "tcp4", "10.244.77.7:80")
	if !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("a pod of no machine: %v; want unreachable", err)
	}
}

// twoLinks is a and b on one link, c on another behind a router.
func twoLinks(t *testing.T) (w *world, a, b, c *box) {
	w = newWorld(t)
	w.link("br-a", "192.0.2.254/24")
	w.link("br-b", "198.51.100.254/24")
	a = w.machine("a", "br-a", "192.0.2.1/24", "10.244.0.0/24").run()
	b = w.machine("b", "br-a", "192.0.2.2/24", "10.244.1.0/24").run()
	c = w.machine("c", "br-b", "198.51.100.3/24", "10.244.2.0/24").run()
	for _, from := range []*box{a, b, c} {
		for _, to := range []*box{a, b, c} {
			if from != to {
				eventually(t, func() error { return reaches(from, to) })
			}
		}
	}
	return w, a, b, c
}

func TestRoutedHop(t *testing.T) {
	w, a, b, c := twoLinks(t)
	if got := a.ips("route", "get", "10.244.2.2", "from", "10.244.0.2", "iif", "gantry0"); !strings.Contains(got, "dev "+TunnelLink) {
		t.Errorf("the way to c's pod: %s", got)
	}
	eventually(t, func() error {
		if got := a.ips("route", "get", "10.244.1.2", "from", "10.244.0.2", "iif", "gantry0"); !strings.Contains(got, "via 192.0.2.2") {
			return fmt.Errorf("the way to b's pod: %s", got)
		}
		return nil
	})
	var n corev1.Node
	if err := w.api.Get(t.Context(), client.ObjectKey{Name: "c"}, &n); err != nil || n.Annotations[AnnotationLink] != "198.51.100.0/24" || n.Annotations[AnnotationLinkMTU] != "1500" {
		t.Errorf("c says %v, %v", n.Annotations, err)
	}
	name, peer, err := nettest.Ask(t, a.path, "udp4", c.podAddr.String()+":80")
	if err != nil || name != "c" || peer != "10.244.0.1" {
		t.Errorf("a's machine asking c = %q from %q, %v; want c from 10.244.0.1", name, peer, err)
	}
	for _, to := range []*box{b, c} {
		bigPackets(t, a, to)
	}
}

// bigPackets proves that what does not fit is said (packets) or avoided (connections).
func bigPackets(t *testing.T, from, to *box) {
	t.Helper()
	want := 1500
	if to.addr.As4()[0] != from.addr.As4()[0] {
		want -= vxlanOverhead
	}
	echo(t, to)
	err := nettest.In(t, from.podPath, func() error {
		conn, err := net.Dial("udp4", to.podAddr.String()+":80")
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		var mtu int
		var sockErr error
		if err := raw.Control(func(fd uintptr) {
			sockErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}); err != nil || sockErr != nil {
			return errors.Join(err, sockErr)
		}
		// The first ones may be answered by ICMP, which tells the socket what fits.
		answer := make([]byte, 2000)
		for _, size := range []int{1500, want} {
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
			_, err := conn.Write(make([]byte, size-28))
			if err == nil {
				_, err = conn.Read(answer)
			}
			if size == want && err != nil {
				return fmt.Errorf("a packet of %d bytes that must not be cut: %w", size, err)
			}
			if size > want && !errors.Is(err, unix.EMSGSIZE) {
				return fmt.Errorf("a packet of %d bytes that must not be cut: %w; want that it is too long", size, err)
			}
		}
		if err := raw.Control(func(fd uintptr) { mtu, sockErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU) }); err != nil || sockErr != nil {
			return errors.Join(err, sockErr)
		}
		if mtu != want {
			return fmt.Errorf("the path's MTU is %d, want %d", mtu, want)
		}
		return nil
	})
	if err != nil {
		t.Errorf("%s to %s: %v", from.name, to.name, err)
	}
	if mss, err := transfer(t, from, to); err != nil || mss != want-40-12 {
		t.Errorf("%s to %s: a connection with segments of %d bytes, %v; want %d", from.name, to.name, mss, err, want-40-12)
	}
}

// echo serves TCP connections on port 81 of the machine's pod: what comes goes back.
func echo(t *testing.T, b *box) {
	t.Helper()
	err := nettest.In(t, b.podPath, func() error {
		listener, err := net.Listen("tcp4", ":81")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(conn, conn)
					_ = conn.Close()
				}()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// transfer sends a megabyte there and back and returns the segment size of the connection.
func transfer(t *testing.T, from, to *box) (mss int, err error) {
	const size = 1 << 20
	err = nettest.In(t, from.podPath, func() error {
		conn, err := net.DialTimeout("tcp4", to.podAddr.String()+":81", 3*time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		sent := make(chan error, 1)
		go func() {
			_, err := conn.Write(make([]byte, size))
			sent <- err
		}()
		if _, err := io.ReadFull(conn, make([]byte, size)); err != nil {
			return err
		}
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			return err
		}
		var sockErr error
		err = raw.Control(func(fd uintptr) { mss, sockErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
		return errors.Join(err, sockErr, <-sent)
	})
	return mss, err
}

// Who is no machine of the cluster is not heard, though the tunnel's port is open to all.
func TestStrangerIsNotHeard(t *testing.T) {
	w, a, _, c := twoLinks(t)
	stranger := nettest.Outside(t, "l-stranger", "", "198.51.100.66/24", false)
	port, err := netlink.LinkByName("l-stranger")
	if err != nil {
		t.Fatal(err)
	}
	master, err := netlink.LinkByName("br-b")
	if err == nil {
		err = netlink.LinkSetMaster(port, master)
	}
	if err != nil {
		t.Fatal(err)
	}
	// It builds the same tunnel to a that c has, and claims to be c's pods.
	err = nettest.In(t, stranger, func() error {
		for _, line := range []string{
			"route add default via 198.51.100.254", "link add vx type vxlan id 1 dstport 8472 nolearning", "link set vx address 0e:58:0a:f4:02:01",
			"link set vx up", "addr add 10.244.2.1/32 dev vx", "neigh add 10.244.0.1 lladdr 0e:58:0a:f4:00:01 dev vx", "route add 10.244.0.0/24 via 10.244.0.1 dev vx onlink",
		} {
			if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", line, err, out)
			}
		}
		out, err := exec.Command("bridge", strings.Fields("fdb append 0e:58:0a:f4:00:01 dev vx dst "+a.addr.String())...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("bridge fdb: %w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan struct{}, 1)
	err = nettest.In(t, a.podPath, func() error {
		conn, err := net.ListenPacket("udp4", ":99")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = conn.Close() })
		go func() {
			if _, _, err := conn.ReadFrom(make([]byte, 10)); err == nil {
				heard <- struct{}{}
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	say := func(path string) {
		if _, err := nettest.Dial(t, path, "udp4", a.podAddr.String()+":99").Write([]byte("!")); err != nil {
			t.Fatal(err)
		}
	}
	before := tunnelDrops(t, a)
	say(stranger)
	eventually(t, func() error {
		if tunnelDrops(t, a) == before {
			return errors.New("nothing of the stranger was dropped")
		}
		return nil
	})
	select {
	case <-heard:
		t.Error("a's pod hears the stranger")
	default:
	}
	say(c.podPath)
	select {
	case <-heard:
	case <-time.After(10 * time.Second):
		t.Error("a's pod does not hear c's")
	}
	_ = w
}

// tunnelDrops counts what a machine dropped of strangers.
func tunnelDrops(t *testing.T, b *box) (packets uint64) {
	t.Helper()
	b.in(func() error {
		conn := &nftables.Conn{}
		table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName}
		rules, err := conn.GetRules(table, &nftables.Chain{Name: "tunnel", Table: table})
		for _, r := range rules {
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					packets = c.Packets
				}
			}
		}
		return err
	})
	return packets
}

func TestNodeRestarted(t *testing.T) {
	_, a, b, c := twoLinks(t)
	// Its process ends: connections and new ones go on.
	conn := nettest.Dial(t, a.podPath, "udp4", c.podAddr.String()+":80")
	a.stop()
	for _, to := range []*box{b, c} {
		if err := reaches(a, to); err != nil {
			t.Error(err)
		}
	}
	// The machine itself was restarted: nothing is in its kernel.
	a.in(func() error { return Cleanup(t.Context()) })
	if got := a.ips("-4", "route"); strings.Contains(got, "10.244.1.0/24") || strings.Contains(got, TunnelLink) {
		t.Errorf("left after Cleanup:\n%s", got)
	}
	a.run()
	for _, to := range []*box{b, c} {
		eventually(t, func() error { return reaches(a, to) })
	}
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := conn.Write([]byte("?")); err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 100)); err != nil {
		t.Errorf("a socket from before the restart: %v", err)
	}
}

// Somebody takes links down, or away; the kernel drops what goes by them.
func TestKernelDisturbed(t *testing.T) {
	_, a, b, c := twoLinks(t)
	for name, args := range map[string][]string{
		"tunnel removed":   {"link", "del", TunnelLink},
		"tunnel down":      {"link", "set", TunnelLink, "down"},
		"tunnel's mtu":     {"link", "set", TunnelLink, "mtu", "1300"},
		"routes flushed":   {"route", "flush", "proto", "71"},
		"neighbours gone":  {"neigh", "flush", "dev", TunnelLink, "nud", "permanent"},
		"address replaced": {"addr", "flush", "dev", TunnelLink},
	} {
		t.Run(name, func(t *testing.T) {
			a.ips(args...)
			for _, to := range []*box{b, c} {
				eventually(t, func() error { return reaches(a, to) })
			}
		})
	}
	a.ips("link", "set", "out0", "down")
	a.ips("link", "set", "out0", "up")
	a.in(func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 0, 2, 254)}) })
	for _, to := range []*box{b, c} {
		eventually(t, func() error { return reaches(a, to) })
	}
}

func TestAddressChanged(t *testing.T) {
	w, a, b, c := twoLinks(t)
	// c moves to the link of the others; then b gets another address where it is.
	port, err := netlink.LinkByName("l-c")
	if err != nil {
		t.Fatal(err)
	}
	master, err := netlink.LinkByName("br-a")
	if err == nil {
		err = netlink.LinkSetMaster(port, master)
	}
	if err != nil {
		t.Fatal(err)
	}
	move := func(b *box, to string) {
		t.Helper()
		b.ips("addr", "flush", "dev", "out0")
		b.ips("addr", "add", to, "dev", "out0")
		b.ips("route", "add", "default", "via", "192.0.2.254")
		b.addr = netip.MustParsePrefix(to).Addr()
		var n corev1.Node
		if err := w.api.Get(t.Context(), client.ObjectKey{Name: b.name}, &n); err != nil {
			t.Fatal(err)
		}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: b.addr.String()}}
		w.put(&n)
	}
	move(c, "192.0.2.33/24")
	move(b, "192.0.2.22/24")
	for _, from := range []*box{a, b, c} {
		for _, to := range []*box{a, b, c} {
			if from != to {
				eventually(t, func() error { return reaches(from, to) })
			}
		}
	}
	eventually(t, func() error {
		if links := a.ips("-br", "link"); strings.Contains(links, TunnelLink) {
			return fmt.Errorf("the tunnel is left:\n%s", links)
		}
		if routes := a.ips("route"); !strings.Contains(routes, "via 192.0.2.33") || !strings.Contains(routes, "via 192.0.2.22") {
			return fmt.Errorf("routes:\n%s", routes)
		}
		return nil
	})
}

func TestNodeRemoved(t *testing.T) {
	w, a, b, c := twoLinks(t)
	w.remove(node("c", "", "", "", "", 0))
	eventually(t, func() error { return cut(a, c) })
	eventually(t, func() error {
		if all := a.ips("route") + a.ips("-br", "link"); strings.Contains(all, "10.244.2.0") || strings.Contains(all, TunnelLink) {
			return fmt.Errorf("left of c:\n%s", all)
		}
		return nil
	})
	if err := reaches(a, b); err != nil {
		t.Error(err)
	}
	// Its range goes to another machine, which is where b's neighbour is.
	c.stop()
	d := w.machine("d", "br-b", "198.51.100.4/24", "10.244.3.0/24").run()
	eventually(t, func() error { return reaches(a, d) })
	w.remove(node("d", "", "", "", "", 0))
	w.remove(node("b", "", "", "", "", 0))
	eventually(t, func() error {
		if all := a.ips("route"); strings.Contains(all, "proto 71") {
			return fmt.Errorf("left of a cluster of one:\n%s", all)
		}
		return nil
	})
}

// Where a machine says nothing of its link, all take the tunnel with it, though it is near.
func TestTunnelOnly(t *testing.T) {
	w := newWorld(t)
	w.link("br-a", "192.0.2.254/24")
	a := w.machine("a", "br-a", "192.0.2.1/24", "10.244.0.0/24").run(func(o *Options) { o.TunnelOnly = true })
	b := w.machine("b", "br-a", "192.0.2.2/24", "10.244.1.0/24").run()
	eventually(t, func() error { return errors.Join(reaches(a, b), reaches(b, a)) })
	for _, m := range []*box{a, b} {
		if got := m.ips("route", "get", "10.244.0.2", "from", "10.244.1.2", "iif", "gantry0") + m.ips("route"); !strings.Contains(got, "dev "+TunnelLink) {
			t.Errorf("%s uses no tunnel:\n%s", m.name, got)
		}
	}
	echo(t, b)
	if mss, err := transfer(t, a, b); err != nil || mss != 1450-40-12 {
		t.Errorf("a connection with segments of %d bytes, %v; want %d", mss, err, 1450-40-12)
	}
}
