//go:build linux

package routes

import (
	"context"
	"net/netip"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/network/nettest"
	"gantry.dev/gantry/internal/network/podnet"
)

// A pod resolves by the cluster's DNS address, by UDP and TCP, and so does the node. The edge
// may be there before its address is.
func TestPodResolves(t *testing.T) {
	w := newWorld(t)
	services := netip.MustParsePrefix("10.96.0.0/16")
	w.opts.Listen = []netip.AddrPort{netip.AddrPortFrom(podnet.DNSAddr(services), 53)}
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	w.create(service("web", "10.96.0.20"))
	defer w.run()()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if stats, err := Stats(t.Context(), w.opts.Socket); err == nil && stats.Sets == 3 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the edge is not fed: %+v, %v", stats, err)
		}
	}
	opts := podnet.Options{Dir: t.TempDir(), PodCIDR: netip.MustParsePrefix("10.244.0.0/24"), ServiceCIDR: services}
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
	pod, _, err := n.Setup(t.Context(), "pod")
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		resolve := func() error {
			m := new(mdns.Msg)
			m.SetQuestion("web.default.svc.cluster.local.", mdns.TypeA)
			r, _, err := (&mdns.Client{Net: network, Timeout: 3 * time.Second}).Exchange(m, w.opts.Listen[0].String())
			if err == nil && (len(r.Answer) != 1 || r.Answer[0].(*mdns.A).A.String() != "10.96.0.20") {
				t.Errorf("by %s: %v", network, r)
			}
			return err
		}
		if err := nettest.In(t, pod, resolve); err != nil {
			t.Errorf("from a pod by %s: %v", network, err)
		}
		if err := resolve(); err != nil {
			t.Errorf("from the node by %s: %v", network, err)
		}
	}
}
