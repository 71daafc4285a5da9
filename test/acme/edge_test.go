//go:build linux

package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
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
	"sigs.k8s.io/controller-runtime/pkg/client"
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

// TestThroughEdge gets certificates for an address by challenges that a real gantry-edge answers from the tables that it is
// fed: by plain HTTP, and by a handshake where the authority does not reach plain HTTP.
func TestThroughEdge(t *testing.T) {
	const port = 8080
	for name, c := range map[string]struct{ http, tls int }{
		"http-01": {port, closedPort}, "tls-alpn-01": {closedPort, port + 1},
	} {
		t.Run(name, func(t *testing.T) { throughEdge(t, port, c.http, c.tls) })
	}
}

// throughEdge starts an edge on port and the next one, and an authority that looks at its own idea of ports.
func throughEdge(t *testing.T, port uint16, httpPort, tlsPort int) {
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
	directory, caFile := pebble(t, httpPort, tlsPort)
	got := issued(t, cluster, certs.Options{
		ACME:   certs.ACME{Directory: directory, CAFile: caFile, Gateway: fmt.Sprintf("%s:%d", address, port), GatewayTLS: fmt.Sprintf("%s:%d", address, port+1)},
		Public: []netip.Addr{netip.MustParseAddr(address)},
	}, secret, directory)
	served(t, got, port+1)
	challenges := &corev1.Secret{}
	if err := cluster.Get(t.Context(), client.ObjectKey{Namespace: compile.Namespace, Name: compile.ChallengeSecret}, challenges); err != nil || len(challenges.Data) != 0 {
		t.Errorf("challenges that are left: %v, %v", len(challenges.Data), err)
	}
}

// served waits until the edge shows a certificate to a client that names no host.
func served(t *testing.T, secret *corev1.Secret, port uint16) {
	t.Helper()
	block, _ := pem.Decode(secret.Data[corev1.TLSCertKey])
	dialer := &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // it is compared with what was issued
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := dialer.DialContext(t.Context(), "tcp", fmt.Sprintf("%s:%d", address, port))
		if err == nil {
			leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
			_ = conn.Close()
			if bytes.Equal(leaf.Raw, block.Bytes) {
				return
			}
			err = fmt.Errorf("it shows one for %v", leaf.IPAddresses)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the certificate is not served: %v", err)
		}
	}
}
