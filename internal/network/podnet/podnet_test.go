//go:build linux

package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/network/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func testOptions(dir string) Options {
	return Options{Dir: dir, PodCIDR: netip.MustParsePrefix("10.244.0.0/24"),
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16")}
}

// start prepares a network that is cleaned up with the test.
func start(t testing.TB, opts Options) *Network {
	t.Helper()
	nettest.ForgetFlows(t)
	n, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Cleanup(context.Background(), opts); err != nil {
			t.Errorf("Cleanup: %v", err)
		}
	})
	if err := n.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func setup(t testing.TB, n *Network, uid string, ports ...HostPort) (string, netip.Addr) {
	t.Helper()
	path, addrs, err := n.Setup(t.Context(), uid, ports...)
	if err != nil {
		t.Fatal(err)
	}
	return path, addrs[0]
}

func ask(t testing.TB, path, network, address, wantName, wantPeer string) {
	t.Helper()
	name, peer, err := nettest.Ask(t, path, network, address)
	if err != nil || name != wantName || (wantPeer != "" && peer != wantPeer) {
		t.Errorf("asking %s %s = %q from %q, %v; want %q from %q", network, address, name, peer, err, wantName, wantPeer)
	}
}

// TestNoIPv6 looks for addresses by which pods on one bridge would reach each other past the node.
func TestNoIPv6(t *testing.T) {
	nettest.Need(t)
	path, addr := setup(t, start(t, testOptions(t.TempDir())), "pod-a")
	var have []string
	if err := nettest.In(t, path, func() error {
		list, err := net.InterfaceAddrs()
		for _, a := range list {
			have = append(have, a.String())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, a := range have {
		if a != "127.0.0.1/8" && a != "::1/128" && a != addr.String()+"/32" {
			t.Errorf("the pod has %v", have)
		}
	}
}

func TestTraffic(t *testing.T) {
	nettest.Need(t)
	for _, filter := range []string{"0", "1"} {
		t.Run("br_netfilter="+filter, func(t *testing.T) {
			path := "/proc/sys/net/bridge/bridge-nf-call-iptables"
			if err := os.WriteFile(path, []byte(filter), 0); err != nil && filter == "1" {
				t.Skip("no br_netfilter in this kernel")
			}
			n := start(t, testOptions(t.TempDir()))
			a, addrA := setup(t, n, "pod-a")
			b, addrB := setup(t, n, "pod-b",
				HostPort{HostPort: 8080, PodPort: 80}, HostPort{HostPort: 8080, PodPort: 80, Protocol: "UDP"},
				HostPort{HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 8081, PodPort: 80},
				HostPort{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8082, PodPort: 80})
			out := nettest.Outside(t, "uplink", "192.0.2.1/24", "192.0.2.2/24", false)
			nettest.ServeName(t, b, ":80", "b")
			nettest.ServeName(t, out, ":80", "outside")
			nettest.ServeName(t, "", ":81", "node")

			for _, network := range []string{"tcp4", "udp4"} {
				ask(t, a, network, addrB.String()+":80", "b", addrA.String())
				ask(t, "", network, addrB.String()+":80", "b", "10.244.0.1")
				ask(t, b, network, addrB.String()+":80", "b", addrB.String())
				ask(t, a, network, "192.0.2.2:80", "outside", "192.0.2.1")
				ask(t, a, network, n.Gateway().String()+":81", "node", addrA.String())
				ask(t, out, network, "192.0.2.1:8080", "b", "192.0.2.2")
				ask(t, a, network, "192.0.2.1:8080", "b", "")
				ask(t, b, network, "192.0.2.1:8080", "b", "10.244.0.1") // hairpin
				ask(t, "", network, "192.0.2.1:8080", "b", "")
			}
			// Not by UDP: a wildcard socket answers from the address nearest to the pod.
			ask(t, a, "tcp4", "192.0.2.1:81", "node", addrA.String())
			ask(t, out, "tcp4", "192.0.2.1:8081", "b", "192.0.2.2")
			ask(t, "", "tcp4", "127.0.0.1:8082", "b", "10.244.0.1")
			ask(t, "", "tcp4", "127.0.0.1:81", "node", "127.0.0.1")
			if _, _, err := nettest.Ask(t, "", "tcp4", "192.0.2.1:8082"); err == nil {
				t.Error("a host port of the loopback address answers on another")
			}
			if _, _, err := nettest.Ask(t, "", "tcp4", n.Gateway().String()+":8081"); err == nil {
				t.Error("a host port of one address answers on another")
			}
			if err := n.Teardown(t.Context(), "pod-b"); err != nil {
				t.Fatal(err)
			}
			if _, _, err := nettest.Ask(t, out, "tcp4", "192.0.2.1:8080"); err == nil {
				t.Error("the host port of a removed pod answers")
			}
		})
	}
}

func TestSetupIsIdempotent(t *testing.T) {
	nettest.Need(t)
	opts := testOptions(t.TempDir())
	n := start(t, opts)
	path, addr := setup(t, n, "pod")
	var before unix.Stat_t
	if err := unix.Stat(path, &before); err != nil {
		t.Fatal(err)
	}
	again, err := New(opts) // as after a restart of the process
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, network := range map[string]*Network{"same process": n, "next process": again} {
		gotPath, gotAddr := setup(t, network, "pod")
		var after unix.Stat_t
		if err := unix.Stat(gotPath, &after); err != nil {
			t.Fatal(err)
		}
		if gotPath != path || gotAddr != addr || before.Ino != after.Ino {
			t.Errorf("%s: Setup = %s %v (inode %d); want the same %s %v (inode %d)", name, gotPath, gotAddr, after.Ino, path, addr, before.Ino)
		}
	}
	if _, other := setup(t, again, "other"); other == addr {
		t.Errorf("address %v was handed out twice", addr)
	}
}

// A kill may come after any step; what each leaves behind must be finished or removed.
func TestCrashLeftovers(t *testing.T) {
	nettest.Need(t)
	for name, wreck := range map[string]func(n *Network, r record) error{
		"record only": func(n *Network, r record) error { return n.dismantle(r) },
		"empty namespace file": func(n *Network, r record) error {
			return errors.Join(n.dismantle(r), os.WriteFile(n.nsPath(r.UID), nil, 0o600))
		},
		"namespace without links": func(n *Network, r record) error {
			if err := n.dismantle(r); err != nil {
				return err
			}
			h, err := createNamespace(n.nsPath(r.UID))
			if err == nil {
				h.Close()
			}
			return err
		},
		"half-written record": func(n *Network, r record) error {
			return os.WriteFile(filepath.Join(n.store.dir, "x.tmp"), []byte("{"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			opts := testOptions(t.TempDir())
			n := start(t, opts)
			_, addr := setup(t, n, "pod", HostPort{HostPort: 8080, PodPort: 80})
			if err := wreck(n, n.records["pod"]); err != nil {
				t.Fatal(err)
			}
			n, err := New(opts)
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Prepare(t.Context()); err != nil {
				t.Fatal(err)
			}
			path, got := setup(t, n, "pod")
			if got != addr {
				t.Errorf("Setup after the crash gives %v, want %v", got, addr)
			}
			nettest.ServeName(t, path, ":80", "pod")
			ask(t, "", "tcp4", addr.String()+":80", "pod", "")
			if err := n.Reconcile(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if pods := n.List(); len(pods) != 0 {
				t.Errorf("after Reconcile with nothing to keep: %v", pods)
			}
			if entries, _ := os.ReadDir(n.nsDir()); len(entries) != 0 {
				t.Errorf("namespaces left: %v", entries)
			}
		})
	}
}

func TestReconcileRemovesStrays(t *testing.T) {
	nettest.Need(t)
	n := start(t, testOptions(t.TempDir()))
	setup(t, n, "kept")
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = linkPrefix+"stray", n.bridge
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "gone"}); err != nil {
		t.Fatal(err)
	}
	if h, err := createNamespace(n.nsPath("stray")); err != nil {
		t.Fatal(err)
	} else {
		h.Close()
	}
	if err := n.Reconcile(t.Context(), map[string]bool{"kept": true}); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(attrs.Name); err == nil {
		t.Error("the stray link is still there")
	}
	if isNamespace(n.nsPath("stray")) || !isNamespace(n.nsPath("kept")) {
		t.Error("Reconcile removed the wrong namespace")
	}
}

func TestParallelSetup(t *testing.T) {
	nettest.Need(t)
	n := start(t, testOptions(t.TempDir()))
	const pods = 20
	addrs := make([]netip.Addr, pods)
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() {
			_, got, err := n.Setup(t.Context(), fmt.Sprintf("pod-%d", i/2)) // two callers a pod
			if err != nil {
				t.Error(err)
				return
			}
			addrs[i] = got[0]
		})
	}
	wg.Wait()
	seen := map[netip.Addr]int{}
	for i, addr := range addrs {
		if owner, taken := seen[addr]; taken && owner != i/2 {
			t.Errorf("%v went to pods %d and %d", addr, owner, i/2)
		}
		seen[addr] = i / 2
	}
	if len(seen) != pods/2 {
		t.Errorf("%d addresses for %d pods", len(seen), pods/2)
	}
}

func TestCleanupLeavesNothing(t *testing.T) {
	nettest.Need(t)
	opts := testOptions(t.TempDir())
	foreign := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "foreign"}
	conn := &nftables.Conn{}
	conn.AddTable(foreign)
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	n, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	setup(t, n, "pod")
	for range 2 { // the second finds nothing and is content
		if err := Cleanup(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(opts.Dir); err != nil || len(entries) != 0 {
		t.Errorf("state left: %v, %v", entries, err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if name := link.Attrs().Name; name == n.opts.Bridge || name == n.opts.DNSLink {
			t.Errorf("link %s is left", name)
		}
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil || len(tables) != 1 || tables[0].Name != "foreign" {
		t.Errorf("tables = %v, %v; want only the foreign one", tables, err)
	}
	conn.DelTable(foreign)
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestPool(t *testing.T) {
	p := newPool(netip.MustParsePrefix("10.1.0.0/29"))
	var got []string
	for {
		addr, err := p.take()
		if err != nil {
			if !errors.Is(err, errPoolFull) {
				t.Fatal(err)
			}
			break
		}
		got = append(got, addr.String())
	}
	if want := "[10.1.0.2 10.1.0.3 10.1.0.4 10.1.0.5 10.1.0.6]"; fmt.Sprint(got) != want {
		t.Errorf("pool gave %v, want %s", got, want)
	}
	p.free(netip.MustParseAddr("10.1.0.4"))
	p.free(netip.MustParseAddr("10.1.0.1")) // the gateway stays taken
	if addr, err := p.take(); err != nil || addr.String() != "10.1.0.4" {
		t.Errorf("take = %v, %v; want the freed 10.1.0.4", addr, err)
	}
}

func TestNewChecksOptions(t *testing.T) {
	good := testOptions("/x")
	for name, change := range map[string]func(*Options){
		"relative dir":      func(o *Options) { o.Dir = "x" },
		"no pod range":      func(o *Options) { o.PodCIDR = netip.Prefix{} },
		"tiny pod range":    func(o *Options) { o.PodCIDR = netip.MustParsePrefix("10.244.0.0/30") },
		"other cluster":     func(o *Options) { o.ClusterCIDR = netip.MustParsePrefix("10.1.0.0/16") },
		"overlapping range": func(o *Options) { o.ServiceCIDR = netip.MustParsePrefix("10.244.1.0/24") },
		"long name":         func(o *Options) { o.Bridge = "a-name-too-long-for-links" },
	} {
		t.Run(name, func(t *testing.T) {
			opts := good
			change(&opts)
			if _, err := New(opts); err == nil {
				t.Errorf("New(%+v) accepts it", opts)
			}
		})
	}
}

func BenchmarkSetup(b *testing.B) {
	nettest.Need(b)
	n := start(b, testOptions(b.TempDir()))
	i := 0
	for b.Loop() {
		uid := fmt.Sprintf("pod-%d", i)
		i++
		setup(b, n, uid)
		b.StopTimer()
		if err := n.Teardown(b.Context(), uid); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
