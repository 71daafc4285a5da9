//go:build linux

package acme

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/controller/certs"
	"gantry.dev/gantry/internal/controller/controllertest"
	"gantry.dev/gantry/internal/network/edge"
	"gantry.dev/gantry/internal/network/nettest"
	"gantry.dev/gantry/internal/network/routes"
	"gantry.dev/gantry/internal/network/routes/compile"
)

// TestMain also is the edge that the test starts: the feeder calls this program like it.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-socket" {
		os.Exit(edge.Main(os.Args[1:]))
	}
	os.Exit(nettest.Main(m))
}

// TestThroughEdge gets a certificate by a challenge that a real gantry-edge answers from the tables that it is fed.
func TestThroughEdge(t *testing.T) {
	nettest.Need(t)
	if err := gatewayv1.Install(scheme.Scheme); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "acme")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const port = 8080
	class, secret := "gantry", asking(address)
	cluster := controllertest.New(t, secret,
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}}},
		&networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Spec: networkingv1.IngressClassSpec{Controller: compile.IngressController}},
		&networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: networkingv1.IngressSpec{IngressClassName: &class,
			DefaultBackend: &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}}}}})
	kinds := make(chan struct{})
	close(kinds)
	socket := filepath.Join(dir, "s")
	feeder, err := routes.New(cluster, cluster, routes.Options{
		Binary: binary, Socket: socket, StateDir: filepath.Join(dir, "edge"), ResolvConf: "/nonexistent",
		Listen:  []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")},
		Gateway: &routes.GatewayOptions{HTTPPort: port, HTTPSPort: port + 1, NodeName: "node-1", Kinds: kinds, Writer: cluster, Informers: cluster},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- feeder.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		stopCtx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := routes.Stop(stopCtx, socket); err != nil {
			t.Error(err)
		}
	}()
	directory, caFile := pebble(t, port)
	issued(t, cluster, certs.Options{
		ACME:   certs.ACME{Directory: directory, CAFile: caFile, Gateway: fmt.Sprintf("%s:%d", address, port)},
		Public: []netip.Addr{netip.MustParseAddr(address)},
	}, secret, directory)
}
