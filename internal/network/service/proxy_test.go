//go:build linux

package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
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

// world is a machine with pods, an API and a running proxy.
type world struct {
	t     testing.TB
	api   client.Client
	inf   informers
	pods  *podnet.Network
	paths map[string]string
	addrs map[string]netip.Addr
	proxy *Proxy // once it runs
}

type informers map[string]*controllertest.FakeInformer

func (i informers) GetInformer(_ context.Context, obj client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	return i[fmt.Sprintf("%T", obj)], nil
}

func newWorld(t testing.TB, pods ...string) *world {
	t.Helper()
	nettest.ForgetFlows(t)
	opts := podnet.Options{Dir: t.TempDir(), PodCIDR: netip.MustParsePrefix("10.244.0.0/24"),
		ClusterCIDR: netip.MustParsePrefix(testCluster), ServiceCIDR: netip.MustParsePrefix(testServices)}
	n, err := podnet.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := podnet.Cleanup(context.Background(), opts); err != nil {
			t.Error(err)
		}
	})
	if err := n.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, api: fake.NewClientBuilder().WithScheme(scheme.Scheme).Build(), pods: n,
		inf:   informers{"*v1.Service": &controllertest.FakeInformer{}, "*v1.EndpointSlice": &controllertest.FakeInformer{}},
		paths: map[string]string{}, addrs: map[string]netip.Addr{}}
	for _, name := range pods {
		path, addrs, err := n.Setup(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		w.paths[name], w.addrs[name] = path, addrs[0]
		nettest.ServeName(t, path, ":8080", name)
	}
	return w
}

// run starts the proxy and ends it with the test.
func (w *world) run() {
	w.t.Helper()
	p, err := New(w.api, w.inf, Options{NodeName: "n1", ClusterCIDR: netip.MustParsePrefix(testCluster),
		ServiceCIDR: netip.MustParsePrefix(testServices), SkipIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Reset: w.reset,
		Logger: slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		w.t.Fatal(err)
	}
	w.proxy = p
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		if err := Cleanup(context.Background()); err != nil {
			w.t.Error(err)
		}
	})
}

func (w *world) reset(ctx context.Context, list []Connection) error {
	connections := make([]podnet.Connection, len(list))
	for i, c := range list {
		connections[i] = podnet.Connection(c)
	}
	return w.pods.Reset(ctx, connections)
}

func (w *world) put(obj client.Object) {
	w.t.Helper()
	if old, ok := obj.DeepCopyObject().(client.Object); ok && w.api.Get(w.t.Context(), client.ObjectKeyFromObject(obj), old) != nil {
		if err := w.api.Create(w.t.Context(), obj); err != nil {
			w.t.Fatal(err)
		}
	} else {
		obj.SetResourceVersion(old.GetResourceVersion())
		if err := w.api.Update(w.t.Context(), obj); err != nil {
			w.t.Fatal(err)
		}
	}
	w.inf[fmt.Sprintf("%T", obj)].Add(obj)
}

func (w *world) ask(from, network, address string) (name, peer string, err error) {
	path := ""
	if from != "" {
		if path = w.paths[from]; path == "" {
			path = from
		}
	}
	return nettest.Ask(w.t, path, network, address)
}

// until asks until the answer comes from want, within a deadline.
func (w *world) until(from, network, address, want string) (peer string) {
	w.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		name, peer, err := w.ask(from, network, address)
		if err == nil && name == want {
			return peer
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("asking %s %s from %q = %q, %v; want %q", network, address, from, name, err, want)
		}
	}
}

func service(name, ip string, change func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, Ports: []corev1.ServicePort{
			{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80}}}}
	if change != nil {
		change(svc)
	}
	return svc
}

func ptr[T any](v T) *T { return &v }

func slice(name string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{{Name: ptr("tcp"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr(int32(8080))},
			{Name: ptr("udp"), Protocol: ptr(corev1.ProtocolUDP), Port: ptr(int32(8080))}}}
}

func on(node, addr string, conditions ...bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: ptr(true)}}
	if len(conditions) == 3 {
		e.Conditions = discoveryv1.EndpointConditions{Ready: &conditions[0], Serving: &conditions[1], Terminating: &conditions[2]}
	}
	return e
}

func TestServiceTraffic(t *testing.T) {
	nettest.Need(t)
	for _, filter := range []string{"0", "1"} {
		t.Run("br_netfilter="+filter, func(t *testing.T) {
			if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(filter), 0); err != nil && filter == "1" {
				t.Skip("no br_netfilter in this kernel")
			}
			w := newWorld(t, "a", "b", "client")
			out := nettest.Outside(t, "uplink", "192.0.2.1/24", "192.0.2.2/24", true)
			w.put(service("web", "10.96.0.20", func(s *corev1.Service) {
				s.Spec.Type = corev1.ServiceTypeNodePort
				s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 30080, 30080
				s.Spec.ExternalIPs = []string{"198.51.100.7"}
			}))
			w.put(slice("web", on("n1", w.addrs["a"].String())))
			w.run()
			client := w.addrs["client"].String()
			for _, network := range []string{"tcp4", "udp4"} {
				if peer := w.until("client", network, "10.96.0.20:80", "a"); peer != client {
					t.Errorf("%s to the cluster address came from %s, want %s", network, peer, client)
				}
				w.until("", network, "10.96.0.20:80", "a")
				if peer := w.until("a", network, "10.96.0.20:80", "a"); peer != "10.244.0.1" {
					t.Errorf("%s hairpin came from %s, want the bridge", network, peer)
				}
				w.until("client", network, "192.0.2.1:30080", "a")
				w.until("", network, "192.0.2.1:30080", "a")
				if peer := w.until(out, network, "192.0.2.1:30080", "a"); peer != "10.244.0.1" {
					t.Errorf("%s to the node port came from %s, want the bridge (masqueraded)", network, peer)
				}
				w.until(out, network, "198.51.100.7:80", "a")
				w.until(out, network, "10.96.0.20:80", "a")
				w.until("client", network, "198.51.100.7:80", "a")
			}
			// Swap: new connections go to b, and no old UDP flow keeps a.
			w.put(slice("web", on("n1", w.addrs["b"].String())))
			w.until("client", "tcp4", "10.96.0.20:80", "b")
			w.until("client", "udp4", "10.96.0.20:80", "b")
			for range 10 {
				if name, _, err := w.ask("client", "tcp4", "10.96.0.20:80"); err != nil || name != "b" {
					t.Fatalf("after the swap: %q, %v", name, err)
				}
			}
			if out, err := exec.Command("nft", "list", "ruleset").CombinedOutput(); err != nil && !errors.Is(err, exec.ErrNotFound) {
				t.Errorf("nft cannot list the rules: %v\n%s", err, out)
			}
		})
	}
}

func TestNoEndpoints(t *testing.T) {
	nettest.Need(t)
	w := newWorld(t, "a", "client")
	w.put(service("empty", "10.96.0.21", nil))
	w.put(service("web", "10.96.0.20", nil))
	w.put(slice("web", on("n1", w.addrs["a"].String())))
	w.run()
	w.until("client", "tcp4", "10.96.0.20:80", "a")
	for _, from := range []string{"client", ""} {
		for _, network := range []string{"tcp4", "udp4"} {
			for _, address := range []string{"10.96.0.21:80", "10.96.0.20:81", "10.96.7.7:80"} {
				_, _, err := w.ask(from, network, address)
				local := from == "" && network == "udp4" // the kernel tells a sender of its own at once
				if err == nil || !strings.Contains(err.Error(), "refused") && !(local && strings.Contains(err.Error(), "not permitted")) {
					t.Errorf("%s %s from %q: %v; want connection refused", network, address, from, err)
				}
			}
		}
	}
	w.put(slice("empty", on("n1", w.addrs["a"].String())))
	w.until("client", "udp4", "10.96.0.21:80", "a")
	w.until("", "tcp4", "10.96.0.21:80", "a")
}

// One UDP socket that goes on sending must reach the new endpoint.
func TestUDPFlowIsForgotten(t *testing.T) {
	nettest.Need(t)
	w := newWorld(t, "a", "b")
	w.put(service("web", "10.96.0.20", nil))
	w.put(slice("web", on("n1", w.addrs["a"].String())))
	w.run()
	w.until("", "udp4", "10.96.0.20:80", "a")
	conn := nettest.Dial(t, "", "udp4", "10.96.0.20:80")
	say := func() string {
		_ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
		buf := make([]byte, 100)
		_, err := conn.Write([]byte("?"))
		if err != nil {
			return err.Error()
		}
		k, err := conn.Read(buf)
		if err != nil {
			return err.Error()
		}
		return strings.Fields(string(buf[:k]))[0]
	}
	if got := say(); got != "a" {
		t.Fatalf("first answer from %q, want a", got)
	}
	w.put(slice("web", on("n1", w.addrs["b"].String())))
	for deadline := time.Now().Add(10 * time.Second); ; {
		got := say()
		if got == "b" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the old socket still gets %q, want b", got)
		}
	}
}

// untilRemembered asks until the kernel remembers who asked.
func (w *world) untilRemembered(from, network, address string) {
	w.t.Helper()
	clients := newKernel(netip.MustParsePrefix(testCluster), netip.MustParsePrefix(testServices)).maps[mapClients]
	for deadline := time.Now().Add(20 * time.Second); ; {
		_, _, err := w.ask(from, network, address)
		list, listErr := (&nftables.Conn{}).GetSetElements(clients)
		if err == nil && listErr == nil && len(list) > 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("asking %s: %v; remembered %v, %v", address, err, list, listErr)
		}
	}
}

func TestAffinity(t *testing.T) {
	nettest.Need(t)
	w := newWorld(t, "a", "b", "client")
	w.put(service("web", "10.96.0.20", func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(100))}}
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = 30080
	}))
	w.put(slice("web", on("n1", w.addrs["a"].String()), on("n1", w.addrs["b"].String())))
	w.run()
	w.untilRemembered("client", "tcp4", "10.96.0.20:80")
	for _, address := range []string{"10.96.0.20:80", "10.244.0.1:30080"} {
		first := ""
		for deadline := time.Now().Add(10 * time.Second); first == ""; {
			if name, _, err := w.ask("client", "tcp4", address); err == nil {
				first = name
			} else if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		for range 20 {
			if name, _, err := w.ask("client", "tcp4", address); err != nil || name != first {
				t.Fatalf("%s: next connection to %q, %v; want %q again", address, name, err, first)
			}
		}
		other := map[string]string{"a": "b", "b": "a"}[first]
		w.put(slice("web", on("n1", w.addrs[other].String())))
		w.until("client", "tcp4", address, other)
		w.put(slice("web", on("n1", w.addrs["a"].String()), on("n1", w.addrs["b"].String())))
	}
	if out, err := exec.Command("nft", "list", "ruleset").CombinedOutput(); err != nil && !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("nft cannot list the rules: %v\n%s", err, out)
	}
}

func TestExternalPolicyLocal(t *testing.T) {
	nettest.Need(t)
	w := newWorld(t, "a", "client")
	out := nettest.Outside(t, "uplink", "192.0.2.1/24", "192.0.2.2/24", true)
	local := func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		s.Spec.Ports = s.Spec.Ports[:1]
		s.Spec.Ports[0].NodePort = 30080
	}
	w.put(service("web", "10.96.0.20", local))
	w.put(slice("web", on("n1", w.addrs["a"].String())))
	w.run()
	if peer := w.until(out, "tcp4", "192.0.2.1:30080", "a"); peer != "192.0.2.2" {
		t.Errorf("came from %s, want the client's own address", peer)
	}
	// The same pod, now said to be on another node: only the inside may still use it.
	w.put(slice("web", on("n2", w.addrs["a"].String())))
	for deadline := time.Now().Add(20 * time.Second); ; {
		_, _, err := w.ask(out, "tcp4", "192.0.2.1:30080")
		if err != nil && strings.Contains(err.Error(), "timeout") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("from outside: %v; want a timeout (dropped)", err)
		}
	}
	w.until("client", "tcp4", "192.0.2.1:30080", "a")
	w.until("", "tcp4", "192.0.2.1:30080", "a")
}

func BenchmarkReplaceThousandServices(b *testing.B) {
	nettest.Need(b)
	want := newDesired()
	touched := map[elementKey]bool{}
	for i := range 1000 {
		var eps []discoveryv1.Endpoint
		for j := range 10 {
			eps = append(eps, on("n1", fmt.Sprintf("10.244.%d.%d", i/20, (i%20)*10+j+1)))
		}
		svc := service("s", fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), func(s *corev1.Service) { s.Spec.Ports = s.Spec.Ports[:1] })
		want.set(fmt.Sprint(i), planService(svc, []discoveryv1.EndpointSlice{*slice("s", eps...)}, nodeView{Name: "n2"}).elements(), touched)
	}
	k := newKernel(netip.MustParsePrefix(testCluster), netip.MustParsePrefix(testServices))
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			if err := k.replace(planChange(want, nil, touched).Add); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("swap", func(b *testing.B) {
		svc := service("s", "10.96.0.1", func(s *corev1.Service) { s.Spec.Ports = s.Spec.Ports[:1] })
		i := 0
		for b.Loop() {
			i++
			eps := []discoveryv1.Endpoint{on("n2", fmt.Sprintf("10.245.0.%d", i%250+1))}
			touched := map[elementKey]bool{}
			want.set("0", planService(svc, []discoveryv1.EndpointSlice{*slice("s", eps...)}, nodeView{Name: "n2"}).elements(), touched)
			if err := k.apply(planChange(want, k.have, touched)); err != nil {
				b.Fatal(err)
			}
		}
	})
	if err := deleteTable(); err != nil {
		b.Fatal(err)
	}
}
