//go:build linux

package podnet

import (
	"context"
	"net/netip"
	"testing"

	"gantry.dev/gantry/internal/network/nettest"
)

func TestIsolate(t *testing.T) {
	nettest.Need(t)
	opts := testOptions(t.TempDir())
	n := start(t, opts)
	a, addrA := setup(t, n, "pod-a")
	b, addrB := setup(t, n, "build")
	out := nettest.Outside(t, "uplink", "192.0.2.1/24", "192.0.2.2/24", false)
	dns := DNSAddr(opts.ServiceCIDR).String()
	nettest.ServeName(t, a, ":80", "a")
	nettest.ServeName(t, out, ":80", "outside")
	nettest.ServeName(t, "", ":81", "node")
	nettest.ServeName(t, "", dns+":53", "dns")
	if err := Isolate(t.Context(), opts, addrB); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Isolate(context.Background(), opts, netip.Addr{}); err != nil {
			t.Error(err)
		}
	})
	for _, network := range []string{"tcp4", "udp4"} {
		ask(t, b, network, "192.0.2.2:80", "outside", "192.0.2.1")
		ask(t, b, network, dns+":53", "dns", addrB.String())
		ask(t, a, network, n.Gateway().String()+":81", "node", addrA.String())
	}
	for what, address := range map[string]string{
		"a pod": addrA.String() + ":80", "the node at the bridge": n.Gateway().String() + ":81",
		"the node": "192.0.2.1:81", "the node at the name server's address": dns + ":81",
	} {
		if name, _, err := nettest.Ask(t, b, "tcp4", address); err == nil {
			t.Errorf("an isolated namespace reaches %s, which answers %q", what, name)
		}
	}
	if err := Isolate(t.Context(), opts, netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	ask(t, b, "tcp4", addrA.String()+":80", "a", addrB.String())
}
