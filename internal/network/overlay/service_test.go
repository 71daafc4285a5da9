//go:build linux

package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/network/nettest"
	"gantry.dev/gantry/internal/network/service"
)

// proxy runs the proxy of services on the machine.
func (b *box) proxy() {
	b.w.t.Helper()
	p, err := service.New(b.w.api, b.w, service.Options{NodeName: b.name, ClusterCIDR: netip.MustParsePrefix(testCluster),
		ServiceCIDR: netip.MustParsePrefix(testServices), Logger: slog.New(slog.NewTextHandler(b.w.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		b.w.t.Fatal(err)
	}
	b.start(p.Run)
	b.w.t.Cleanup(func() { b.in(func() error { return service.Cleanup(context.Background()) }) })
}

// endpoints says where the service's pods are.
func (w *world) endpoints(name string, boxes ...*box) {
	w.t.Helper()
	tcp, udp, port, yes := corev1.ProtocolTCP, corev1.ProtocolUDP, int32(80), true
	tcpName, udpName := "tcp", "udp"
	slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		Ports:      []discoveryv1.EndpointPort{{Name: &tcpName, Protocol: &tcp, Port: &port}, {Name: &udpName, Protocol: &udp, Port: &port}}}
	for _, b := range boxes {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{b.podAddr.String()}, NodeName: &b.name,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes}})
	}
	w.put(slice)
}

func (w *world) service(name, ip string, nodePort int32, change func(*corev1.ServiceSpec)) {
	w.t.Helper()
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, ClusterIP: ip, Ports: []corev1.ServicePort{
			{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: nodePort}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80, NodePort: nodePort}}}}
	if change != nil {
		change(&svc.Spec)
	}
	w.put(svc)
}

// asks asks until the answer comes from want and, where peer is given, sees that address.
func asks(t *testing.T, from, address, want, peer string) {
	t.Helper()
	for _, network := range []string{"tcp4", "udp4"} {
		eventually(t, func() error {
			name, saw, err := nettest.Ask(t, from, network, address)
			if err != nil || name != want || peer != "" && saw != peer {
				return fmt.Errorf("asking %s %s = %q from %q, %w; want %q from %q", network, address, name, saw, err, want, peer)
			}
			return nil
		})
	}
}

// Services lead from each machine to pods of every other, by routes (a and b) and by the tunnel
// (c), and node ports are open on all.
func TestServicesAcrossMachines(t *testing.T) {
	w, a, b, c := twoLinks(t)
	for _, m := range []*box{a, b, c} {
		m.proxy()
	}
	outside := nettest.Outside(t, "l-client", "203.0.113.254/24", "203.0.113.9/24", true)
	w.service("near", "10.96.0.20", 30080, nil)
	w.endpoints("near", b)
	w.service("far", "10.96.0.21", 30081, nil)
	w.endpoints("far", c)
	for address, want := range map[string]string{"10.96.0.20:80": "b", "10.96.0.21:80": "c"} {
		asks(t, a.podPath, address, want, a.podAddr.String()) // a pod keeps its address
		asks(t, a.path, address, want, "10.244.0.1")          // the machine itself has its own on the pod network
	}
	asks(t, c.podPath, "10.96.0.21:80", "c", "10.244.2.1") // a pod that reaches itself
	asks(t, b.podPath, "10.96.0.20:80", "b", "10.244.1.1")
	for _, m := range []*box{a, b, c} {
		for port, want := range map[string]string{":30080": "b", ":30081": "c"} {
			asks(t, outside, m.addr.String()+port, want, "")
			asks(t, m.path, m.addr.String()+port, want, "")    // a machine by its own port
			asks(t, a.podPath, m.addr.String()+port, want, "") // a pod by any machine's
		}
	}
	// What came from outside and left by the tunnel has the address of the tunnel's near end.
	asks(t, outside, a.addr.String()+":30081", "c", "10.244.0.1")
	asks(t, outside, a.addr.String()+":30080", "b", "192.0.2.1")
}

// With the policy Local only machines with a pod answer from outside, and it sees the client.
func TestExternalPolicyLocalAcrossMachines(t *testing.T) {
	w, a, b, c := twoLinks(t)
	for _, m := range []*box{a, b, c} {
		m.proxy()
	}
	outside := nettest.Outside(t, "l-client", "203.0.113.254/24", "203.0.113.9/24", true)
	w.service("web", "10.96.0.20", 30080, func(s *corev1.ServiceSpec) { s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal })
	w.endpoints("web", c)
	asks(t, outside, c.addr.String()+":30080", "c", "203.0.113.9")
	asks(t, a.podPath, "10.96.0.20:80", "c", a.podAddr.String())
	asks(t, a.path, a.addr.String()+":30080", "c", "") // from inside every machine will do
	for _, m := range []*box{a, b} {
		if name, _, err := nettest.Ask(t, outside, "tcp4", m.addr.String()+":30080"); err == nil {
			t.Errorf("%s, which has no pod of the service, answers from outside: %s", m.name, name)
		}
	}
}

// A client stays with its pod, also when that is on another machine.
func TestAffinityAcrossMachines(t *testing.T) {
	w, a, b, c := twoLinks(t)
	for _, m := range []*box{a, b, c} {
		m.proxy()
	}
	w.service("web", "10.96.0.20", 30080, func(s *corev1.ServiceSpec) { s.SessionAffinity = corev1.ServiceAffinityClientIP })
	w.endpoints("web", b, c)
	var first string
	eventually(t, func() (err error) { // the first ones may come before the rule that remembers
		if first, _, err = nettest.Ask(t, a.podPath, "tcp4", "10.96.0.20:80"); err != nil {
			return err
		}
		for range 30 {
			name, _, err := nettest.Ask(t, a.podPath, "tcp4", "10.96.0.20:80")
			if err != nil || name != first {
				return fmt.Errorf("the next connection reached %q, %w; want %q again", name, err, first)
			}
		}
		return nil
	})
	other := map[string]*box{"b": c, "c": b}[first]
	if other == nil {
		t.Fatal(errors.New("nobody answered"))
	}
	w.endpoints("web", other)
	asks(t, a.podPath, "10.96.0.20:80", other.name, a.podAddr.String())
}
