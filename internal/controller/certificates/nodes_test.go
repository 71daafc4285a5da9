package certificates

import (
	"context"
	"crypto"
	"crypto/x509"
	"net"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func node(name, address string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}},
	}}
}

// TestNodeIdentity is what nodes, and who would be one, get and do not get.
func TestNodeIdentity(t *testing.T) {
	const joiner, self = "system:bootstrap:abcdef", "system:node:a"
	one, other := net.IPv4(10, 0, 0, 1), net.IPv4(10, 0, 0, 2)
	asking := func(t *testing.T, user string) *certificatesv1.CertificateSigningRequest {
		return request(t, kubeletClient, user, x509.CertificateRequest{Subject: nodeName}, digital, clientAuth)
	}
	serving := func(t *testing.T, user string, dns string, ips ...net.IP) *certificatesv1.CertificateSigningRequest {
		csr := request(t, kubeletServing, user, x509.CertificateRequest{Subject: nodeName, DNSNames: []string{dns}, IPAddresses: ips}, digital, serverAuth)
		csr.Spec.Groups = []string{"system:nodes", "g"}
		return csr
	}
	for name, tc := range map[string]struct {
		csr    func(t *testing.T) *certificatesv1.CertificateSigningRequest
		nodes  []client.Object
		signed bool
		denied bool
	}{
		"a free name":                  {func(t *testing.T) *certificatesv1.CertificateSigningRequest { return asking(t, joiner) }, nil, true, false},
		"a taken name":                 {func(t *testing.T) *certificatesv1.CertificateSigningRequest { return asking(t, joiner) }, []client.Object{node("a", "10.0.0.1")}, false, true},
		"its own again":                {func(t *testing.T) *certificatesv1.CertificateSigningRequest { return asking(t, self) }, []client.Object{node("a", "10.0.0.1")}, true, false},
		"serving as itself":            {func(t *testing.T) *certificatesv1.CertificateSigningRequest { return serving(t, self, "a", one) }, []client.Object{node("a", "10.0.0.1"), node("b", "10.0.0.2")}, true, false},
		"serving at another's address": {func(t *testing.T) *certificatesv1.CertificateSigningRequest { return serving(t, self, "a", other) }, []client.Object{node("a", "10.0.0.1"), node("b", "10.0.0.2")}, false, false},
		"an address that two claim":    {func(t *testing.T) *certificatesv1.CertificateSigningRequest { return serving(t, self, "a", one) }, []client.Object{node("a", "10.0.0.1"), node("b", "10.0.0.1")}, false, false},
		"serving under another's name": {func(t *testing.T) *certificatesv1.CertificateSigningRequest { return serving(t, self, "b", one) }, []client.Object{node("a", "10.0.0.1")}, false, false},
		"serving for another": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return serving(t, "system:node:b", "a", one)
		}, []client.Object{node("a", "10.0.0.1"), node("b", "10.0.0.2")}, false, false},
		"an address of the API's": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return serving(t, self, "a", net.IPv4(10, 96, 0, 1))
		}, []client.Object{node("a", "10.96.0.1")}, false, false},
		"no such node yet": {func(t *testing.T) *certificatesv1.CertificateSigningRequest { return serving(t, self, "a", one) }, nil, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca, key := authority(t, 10*365*24*time.Hour)
				got := settled(t, tc.csr(t), tc.nodes, ca, key)
				if (len(got.Status.Certificate) > 0) != tc.signed || (condition(got, certificatesv1.CertificateDenied) != nil) != tc.denied {
					t.Errorf("status %+v; want signed %v, denied %v", got.Status, tc.signed, tc.denied)
				}
			})
		})
	}
}

// settled lets a controller work on csr for a few seconds.
func settled(t *testing.T, csr *certificatesv1.CertificateSigningRequest, nodes []client.Object, ca *x509.Certificate, key crypto.Signer) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	c := controllertest.New(t, append(nodes, csr)...)
	cc, err := New(c, c, Options{
		Authority: func() (*x509.Certificate, crypto.Signer) { return ca, key },
		Review:    func(context.Context, authorizationv1.SubjectAccessReviewSpec) (bool, error) { return true, nil },
		Reserved: func() *x509.Certificate {
			return &x509.Certificate{DNSNames: []string{"kubernetes"}, IPAddresses: []net.IP{net.IPv4(10, 96, 0, 1)}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- cc.Run(ctx) }()
	time.Sleep(5 * time.Second)
	synctest.Wait()
	got := &certificatesv1.CertificateSigningRequest{}
	if err := c.Get(ctx, client.ObjectKey{Name: "r"}, got); err != nil {
		t.Fatal(err)
	}
	got = got.DeepCopy()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	return got
}
