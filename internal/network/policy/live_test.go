//go:build linux

package policy

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gantry.dev/gantry/internal/network/nettest"
	"gantry.dev/gantry/internal/network/nft"
	"gantry.dev/gantry/internal/network/podnet"
)

// shopWorld has web and db in the namespace shop.
func shopWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.namespace("shop", "team", "a")
	w.pod("shop", "web", "app", "web")
	w.pod("shop", "db", "app", "db")
	return w
}

// until waits until a connection comes to be, or does not.
func (w *world) until(from, network, to string, want bool) {
	w.t.Helper()
	host, port, _ := net.SplitHostPort(to)
	if addr, ok := w.addrs[host]; ok {
		host = addr.String()
	}
	deadline := time.Now().Add(20 * time.Second)
	for w.reaches(from, network, net.JoinHostPort(host, port)) != want {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s reaches %s: still not %v", from, to, want)
		}
	}
}

func TestUpdates(t *testing.T) {
	w := shopWorld(t)
	allow := webPolicy("p", networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
		from(networkingv1.NetworkPolicyPeer{PodSelector: selector("app", "db")},
			networkingv1.NetworkPolicyPeer{NamespaceSelector: selector("team", "b")})}})
	w.put(allow)
	w.until("shop/db", "tcp4", "shop/web:80", true)
	w.relabel("shop", "db", "app", "other")
	w.until("shop/db", "tcp4", "shop/web:80", false)
	w.namespace("shop", "team", "b")
	w.until("shop/db", "tcp4", "shop/web:80", true)
	w.namespace("shop", "team", "c")
	w.until("shop/db", "tcp4", "shop/web:80", false)
	// A pod of a namespace that comes later, in a set that is there.
	w.namespace("late", "team", "b")
	w.pod("late", "client")
	w.expect("late/client", "tcp4", "shop/web:80", true)
	// The policy does not select web any more, then it does, then it is gone.
	w.relabel("shop", "web", "app", "none")
	w.until("shop/db", "tcp4", "shop/web:80", true)
	w.relabel("shop", "web", "app", "web")
	w.until("shop/db", "tcp4", "shop/web:80", false)
	changed := allow.DeepCopy()
	changed.Spec.Ingress = append(changed.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{tcp(81)}})
	w.put(changed)
	w.until("shop/db", "tcp4", "shop/web:81", true)
	w.expect("shop/db", "tcp4", "shop/web:80", false)
	w.remove(changed)
	w.until("shop/db", "tcp4", "shop/web:80", true)
	w.settle()
	if found, err := (&nftables.Conn{}).ListTableOfFamily(TableName, nftables.TableFamilyIPv4); err == nil && found != nil {
		t.Errorf("without a policy there is table %s", found.Name)
	}
}

// TestRemotePeer lets in a pod of another node by its labels.
func TestRemotePeer(t *testing.T) {
	w := shopWorld(t)
	w.paths["remote"] = nettest.Outside(t, "uplink", "192.0.2.1/24", "192.0.2.2/24", true)
	w.put(webPolicy("p", networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
		from(networkingv1.NetworkPolicyPeer{PodSelector: selector("app", "remote")})}}))
	w.until("remote", "tcp4", "shop/web:80", false)
	remote := testPod("shop", "remote", "app", "remote")
	remote.Spec.NodeName, remote.Status.PodIPs = "n2", []corev1.PodIP{{IP: "192.0.2.2"}}
	w.put(remote)
	w.until("remote", "tcp4", "shop/web:80", true)
	ended := remote.DeepCopy()
	ended.Status.Phase = corev1.PodSucceeded
	w.put(ended)
	w.until("remote", "tcp4", "shop/web:80", false)
}

// TestTranslated holds services, node ports and host ports against policies: what counts is where a packet goes in the end, and
// who sent it first.
func TestTranslated(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop")
	w.pod("shop", "db", "app", "db")
	w.pod("shop", "client", "app", "client")
	w.paths["outside"] = nettest.Outside(t, "uplink", "192.0.2.1/24", "192.0.2.2/24", false)
	web := testPod("shop", "web", "app", "web")
	web.Spec.Containers[0].Ports = append(web.Spec.Containers[0].Ports, corev1.ContainerPort{ContainerPort: 80, HostPort: 8088})
	w.put(web)
	request := w.request(web)
	request.HostPorts = []podnet.HostPort{{HostPort: 8088, PodPort: 80, Protocol: "TCP"}}
	path, addrs, err := w.net.SetupCovered(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	w.paths["shop/web"], w.addrs["shop/web"] = path, addrs[0]
	nettest.ServeName(t, path, ":80", "web")
	web.Status.PodIPs = []corev1.PodIP{{IP: addrs[0].String()}}
	w.put(web)
	translate(t, "10.96.0.50", w.addrs["shop/web"])

	w.put(webPolicy("p", networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
		From: []networkingv1.NetworkPolicyPeer{{PodSelector: selector("app", "client")}}, Ports: []networkingv1.NetworkPolicyPort{tcp(80)}}}}))
	w.until("shop/db", "tcp4", "shop/web:80", false)
	w.expect("shop/client", "tcp4", "10.96.0.50:8080", true)
	w.expect("shop/db", "tcp4", "10.96.0.50:8080", false)
	w.expect("shop/client", "tcp4", "192.0.2.1:8088", true)
	w.expect("shop/db", "tcp4", "192.0.2.1:8088", false)
	w.expect("outside", "tcp4", "192.0.2.1:8088", false)
	w.expect("", "tcp4", "shop/web:80", true)
	w.put(webPolicy("out", networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		Ingress: []networkingv1.NetworkPolicyIngressRule{from(networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.2/32"}})}}))
	w.until("outside", "tcp4", "192.0.2.1:8088", true)
	// The sender's rules see the endpoint, too, and its port.
	w.put(webPolicy("client", networkingv1.NetworkPolicySpec{PodSelector: *selector("app", "client"), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: selector("app", "web")}},
			Ports: []networkingv1.NetworkPolicyPort{tcp(80)}}}}))
	w.until("shop/client", "tcp4", "shop/db:80", false)
	w.expect("shop/client", "tcp4", "10.96.0.50:8080", true)
}

// translate plays the service proxy: address:8080 leads to port 80 of the pod.
func translate(t *testing.T, address string, to netip.Addr) {
	t.Helper()
	conn := &nftables.Conn{}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "test-services"})
	chain := conn.AddChain(&nftables.Chain{Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: nft.Rule(
		nft.DaddrIn(netip.PrefixFrom(netip.MustParseAddr(address), 32), false), nft.Proto(nft.ProtocolTCP, false),
		nft.LoadDport(0), nft.One(&expr.Cmp{Op: expr.CmpOpEq, Register: nft.Reg(0), Data: binaryutil.BigEndian.PutUint16(8080)}),
		nft.One(&expr.Immediate{Register: nft.Reg(0), Data: to.AsSlice()}),
		nft.One(&expr.Immediate{Register: nft.Reg(1), Data: binaryutil.BigEndian.PutUint16(80)}), nft.DNAT(0))})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			t.Error(err)
		}
	})
}

// TestCut ends connections that a new policy forbids, whoever speaks next, and leaves the others.
func TestCut(t *testing.T) {
	w := shopWorld(t)
	w.pod("shop", "friend", "app", "friend")
	address := echo(t, w.paths["shop/web"], w.addrs["shop/web"])
	forbidden, allowed := nettest.Dial(t, w.paths["shop/db"], "tcp4", address), nettest.Dial(t, w.paths["shop/friend"], "tcp4", address)
	for _, conn := range []net.Conn{forbidden, allowed} {
		if err := talk(conn); err != nil {
			t.Fatal(err)
		}
	}
	w.put(webPolicy("p", networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
		from(networkingv1.NetworkPolicyPeer{PodSelector: selector("app", "friend")})}}))
	deadline := time.Now().Add(20 * time.Second)
	for talk(forbidden) == nil {
		if time.Now().After(deadline) {
			t.Fatal("a connection goes on that the policy forbids")
		}
	}
	if err := talk(allowed); err != nil {
		t.Errorf("a connection that the policy allows: %v", err)
	}
	if err := talk(forbidden); err == nil {
		t.Error("the connection that was cut came back")
	}
}

// echo answers each byte with two, so that the server also speaks when the client is not heard.
func echo(t *testing.T, path string, addr netip.Addr) string {
	t.Helper()
	var listener net.Listener
	if err := nettest.In(t, path, func() (err error) { listener, err = net.Listen("tcp4", ":7000"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			go func() {
				buf := make([]byte, 1)
				for {
					if _, err := conn.Read(buf); err != nil {
						return
					}
					if _, err := conn.Write([]byte("ab")); err != nil {
						return
					}
				}
			}()
		}
	}()
	return netip.AddrPortFrom(addr, 7000).String()
}

func talk(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(quiet)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("?")); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 2))
	return err
}

// TestFirstPacket has pods that send from the first instant, as fast as they can, to a pod they may not reach, and one that sends
// to them while they come up. Nothing may arrive.
func TestFirstPacket(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop")
	w.pod("shop", "db", "app", "db")
	var heard atomic.Int64
	listenUDP(t, w.paths["shop/db"], ":9000", &heard)
	w.put(webPolicy("p", networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}}))
	w.until("shop/db", "tcp4", "shop/db:80", true)
	to := netip.AddrPortFrom(w.addrs["shop/db"], 9000)
	control := testPod("shop", "control", "app", "control")
	for i, obj := range []*corev1.Pod{testPod("shop", "web-0", "app", "web"), testPod("shop", "web-1", "app", "web"), testPod("shop", "web-2", "app", "web"), control} {
		w.put(obj)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan int64, 1)
		go func() { done <- flood(ctx, t, filepath.Join(w.nsDir(), string(obj.UID)), to) }()
		before := heard.Load()
		w.connect(obj)
		// Wait until it has certainly sent with its link up.
		var inside atomic.Int64
		listenUDP(t, w.paths["shop/"+obj.Name], ":9001", &inside)
		enough := func() bool { return obj == control && heard.Load() > before && inside.Load() > 0 }
		wait := quiet
		if obj == control {
			wait = 20 * time.Second
		}
		for deadline := time.Now().Add(wait); time.Now().Before(deadline) && !enough(); {
			sendUDP(t, w.paths["shop/db"], netip.AddrPortFrom(w.addrs["shop/"+obj.Name], 9001))
		}
		cancel()
		sent := <-done
		if sent == 0 {
			t.Fatalf("pod %d has sent nothing", i)
		}
		if got := heard.Load() - before; (got > 0) != (obj == control) {
			t.Errorf("of %d packets of %s %d arrived", sent, obj.Name, got)
		}
		if got := inside.Load(); (got > 0) != (obj == control) {
			t.Errorf("%s heard %d packets", obj.Name, got)
		}
	}
}

// nsDir is where the pods' namespaces come up.
func (w *world) nsDir() string {
	for _, path := range w.paths {
		return filepath.Dir(path)
	}
	return ""
}

func listenUDP(t *testing.T, path, address string, heard *atomic.Int64) {
	t.Helper()
	var conn net.PacketConn
	if err := nettest.In(t, path, func() (err error) { conn, err = net.ListenPacket("udp4", address); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		for {
			if _, _, err := conn.ReadFrom(make([]byte, 64)); err != nil {
				return
			}
			heard.Add(1)
		}
	}()
}

func sendUDP(t *testing.T, path string, to netip.AddrPort) {
	t.Helper()
	if err := nettest.In(t, path, func() error {
		conn, err := net.ListenPacket("udp4", ":0")
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_, err = conn.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// flood waits for the namespace and sends from it until ctx ends. It returns how many packets left.
func flood(ctx context.Context, t *testing.T, path string, to netip.AddrPort) (sent int64) {
	var conn net.PacketConn
	for conn == nil && ctx.Err() == nil {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		_ = nettest.In(t, path, func() (err error) { conn, err = net.ListenPacket("udp4", ":0"); return err })
	}
	for ctx.Err() == nil {
		if _, err := conn.WriteTo([]byte("!"), net.UDPAddrFromAddrPort(to)); err == nil {
			sent++
		}
	}
	return sent
}

// TestRestart has no moment without rules while the enforcer is away and comes back.
func TestRestart(t *testing.T) {
	w := shopWorld(t)
	w.put(webPolicy("p", networkingv1.NetworkPolicySpec{}))
	w.until("shop/db", "tcp4", "shop/web:80", false)
	var heard atomic.Int64
	listenUDP(t, w.paths["shop/web"], ":9000", &heard)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int64, 1)
	go func() { done <- flood(ctx, t, w.paths["shop/db"], netip.AddrPortFrom(w.addrs["shop/web"], 9000)) }()
	for range 20 {
		w.stop()
		w.run()
		<-w.enforcer.Ready()
		// After a restart the agent names the pods that run; their rules are there already.
		if err := w.enforcer.Cover(t.Context(), "shop-web", testPod("shop", "web", "app", "web"), []netip.Addr{w.addrs["shop/web"]}, false); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if sent := <-done; sent == 0 || heard.Load() > 0 {
		t.Errorf("of %d packets %d arrived", sent, heard.Load())
	}
	if found, err := ownTables(); err != nil || len(found) != 1 {
		t.Errorf("after the restarts there are tables %v, %v; want %s", found, err, TableName)
	}
}

// TestRepair removes rules behind the enforcer's back.
func TestRepair(t *testing.T) {
	w := shopWorld(t)
	w.put(webPolicy("p", networkingv1.NetworkPolicySpec{}))
	w.until("shop/db", "tcp4", "shop/web:80", false)
	for name, harm := range map[string]func(*nftables.Conn, *nftables.Table){
		"the table deleted": (*nftables.Conn).DelTable,
		"its rules flushed": (*nftables.Conn).FlushTable,
	} {
		conn := &nftables.Conn{}
		harm(conn, newKernel().table)
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(20 * time.Second)
		for w.reaches("shop/db", "tcp4", w.addrs["shop/web"].String()+":80") {
			if time.Now().After(deadline) {
				t.Fatalf("%s: never repaired", name)
			}
		}
	}
}

// TestDeletedPod keeps the rules of a pod that the API has no longer for as long as it is connected.
func TestDeletedPod(t *testing.T) {
	w := shopWorld(t)
	w.put(webPolicy("p", networkingv1.NetworkPolicySpec{}))
	w.until("shop/db", "tcp4", "shop/web:80", false)
	w.remove(testPod("shop", "web"))
	w.settle()
	w.expect("shop/db", "tcp4", "shop/web:80", false)
	if drops, err := w.enforcer.Dropped(); err != nil || drops.Ingress == 0 || drops.Egress != 0 {
		t.Errorf("Dropped = %+v, %v; want packets to the pod", drops, err)
	}
	w.disconnect("shop", "web")
	w.settle()
	w.enforcer.mu.Lock()
	defer w.enforcer.mu.Unlock()
	if w.enforcer.state.covered(w.addrs["shop/web"]) || len(w.enforcer.state.chains) > 0 {
		t.Errorf("after the pod is gone there are chains %v", w.enforcer.state.chains)
	}
}

// TestDeletedWhileAway keeps a pod closed that still runs, when a new enforcer has never heard of it.
func TestDeletedWhileAway(t *testing.T) {
	w := shopWorld(t)
	w.put(webPolicy("p", networkingv1.NetworkPolicySpec{}))
	w.until("shop/db", "tcp4", "shop/web:80", false)
	w.stop()
	w.remove(testPod("shop", "web"))
	w.run()
	<-w.enforcer.Ready()
	w.expect("shop/db", "tcp4", "shop/web:80", false)
	w.expect("shop/web", "tcp4", "shop/db:80", false)
	// Who gets the address next is not closed for it.
	next := testPod("shop", "next", "app", "next")
	if err := w.enforcer.Cover(t.Context(), "shop-next", next, []netip.Addr{w.addrs["shop/web"]}, true); err != nil {
		t.Fatal(err)
	}
	w.expect("shop/db", "tcp4", "shop/web:80", true)
}

// TestSCTP sends the first chunk of an association by raw sockets: many kernels are built without SCTP, which the rules do
// not need.
func TestSCTP(t *testing.T) {
	w := shopWorld(t)
	w.put(webPolicy("p", networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
		{Ports: []networkingv1.NetworkPolicyPort{{Protocol: new(corev1.ProtocolSCTP), Port: new(intstr.FromInt32(80))}}}}}))
	w.until("shop/db", "tcp4", "shop/web:80", false)
	var listener *net.IPConn
	if err := nettest.In(t, w.paths["shop/web"], func() (err error) {
		listener, err = net.ListenIP("ip4:132", &net.IPAddr{IP: w.addrs["shop/web"].AsSlice()})
		return err
	}); err != nil {
		t.Skipf("no raw socket for SCTP: %v", err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	for port, want := range map[uint16]bool{80: true, 81: false} {
		if err := nettest.In(t, w.paths["shop/db"], func() error {
			conn, err := net.DialIP("ip4:132", nil, &net.IPAddr{IP: w.addrs["shop/web"].AsSlice()})
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			_, err = conn.Write(sctpInit(port))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if err := listener.SetReadDeadline(time.Now().Add(quiet)); err != nil {
			t.Fatal(err)
		}
		_, err := listener.Read(make([]byte, 200))
		if got := err == nil; got != want || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("SCTP to port %d arrives: %v, %v; want %v", port, got, err, want)
		}
	}
}

// sctpInit is a packet with an INIT chunk (RFC 9260, 3.3.2) and its checksum.
func sctpInit(port uint16) []byte {
	p := binary.BigEndian.AppendUint16(nil, 40000)
	p = binary.BigEndian.AppendUint16(p, port)
	p = append(p, make([]byte, 8)...) // no tag yet; checksum
	p = append(p, 1, 0, 0, 20)        // INIT, 20 bytes
	p = append(p, 0, 0, 0, 1)         // tag
	p = append(p, 0, 1, 0, 0)         // window
	p = append(p, 0, 1, 0, 1)         // streams
	p = append(p, 0, 0, 0, 1)         // first number
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}

// TestMatters names the fields that events are judged by.
func TestMatters(t *testing.T) {
	base := testPod("a", "b", "app", "web")
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		want   bool
	}{
		"nothing":    {func(*corev1.Pod) {}, false},
		"conditions": {func(p *corev1.Pod) { p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady}} }, false},
		"annotation": {func(p *corev1.Pod) { p.Annotations = map[string]string{"a": "b"} }, false},
		"label":      {func(p *corev1.Pod) { p.Labels = map[string]string{"app": "db"} }, true},
		"address":    {func(p *corev1.Pod) { p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}} }, true},
		"end":        {func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, true},
		"node":       {func(p *corev1.Pod) { p.Spec.NodeName = "other" }, true},
		"another":    {func(p *corev1.Pod) { p.ObjectMeta = metav1.ObjectMeta{UID: "x", Labels: p.Labels} }, true},
	} {
		t.Run(name, func(t *testing.T) {
			after := base.DeepCopy()
			tc.change(after)
			if got := matters(base, after); got != tc.want {
				t.Errorf("matters = %v, want %v", got, tc.want)
			}
		})
	}
}
