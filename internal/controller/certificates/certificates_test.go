package certificates

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// authority is a CA that ends after life.
func authority(t *testing.T, life time.Duration) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return cert, key
}

var nodeName = pkix.Name{CommonName: "system:node:a", Organization: []string{"system:nodes"}}

// request is a CertificateSigningRequest of username.
func request(t *testing.T, signer, username string, template x509.CertificateRequest, usages ...certificatesv1.KeyUsage) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "r", CreationTimestamp: metav1.Now()},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: signer, Usages: usages, Username: username, Groups: []string{"g"},
		},
	}
}

func approved(csr *certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequest {
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, LastUpdateTime: metav1.Now(),
	})
	return csr
}

const (
	kubeletClient  = certificatesv1.KubeAPIServerClientKubeletSignerName
	kubeletServing = certificatesv1.KubeletServingSignerName
	apiClient      = certificatesv1.KubeAPIServerClientSignerName
	digital        = certificatesv1.UsageDigitalSignature
	encipher       = certificatesv1.UsageKeyEncipherment
	clientAuth     = certificatesv1.UsageClientAuth
	serverAuth     = certificatesv1.UsageServerAuth
)

func TestApproveAndSign(t *testing.T) {
	for name, tc := range map[string]struct {
		csr    func(t *testing.T) *certificatesv1.CertificateSigningRequest
		may    string // the subresource that the review allows
		signed bool
		failed string // words of the Failed condition
	}{
		"a node for itself": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return request(t, kubeletClient, "system:node:a", x509.CertificateRequest{Subject: nodeName}, digital, encipher, clientAuth)
		}, "selfnodeclient", true, ""},
		"a node that may not": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return request(t, kubeletClient, "system:node:a", x509.CertificateRequest{Subject: nodeName}, digital, clientAuth)
		}, "", false, ""},
		"a joining machine": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return request(t, kubeletClient, "system:bootstrap:abcdef", x509.CertificateRequest{Subject: nodeName}, digital, clientAuth)
		}, "nodeclient", true, ""},
		"a joining machine may not as a node": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return request(t, kubeletClient, "system:bootstrap:abcdef", x509.CertificateRequest{Subject: nodeName}, digital, clientAuth)
		}, "selfnodeclient", false, ""},
		"no node's subject": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return request(t, kubeletClient, "ann", x509.CertificateRequest{Subject: pkix.Name{CommonName: "ann", Organization: []string{"system:masters"}}}, digital, clientAuth)
		}, "nodeclient", false, ""},
		"approved by hand but no node's": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return approved(request(t, kubeletClient, "ann", x509.CertificateRequest{Subject: pkix.Name{CommonName: "ann"}}, digital, clientAuth))
		}, "", false, "subject organization is not system:nodes"},
		"serving waits for a person": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return request(t, kubeletServing, "system:node:a", x509.CertificateRequest{Subject: nodeName, DNSNames: []string{"a"}}, digital, serverAuth)
		}, "selfnodeclient", false, ""},
		"serving, approved": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return approved(request(t, kubeletServing, "system:node:a", x509.CertificateRequest{Subject: nodeName, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}, digital, encipher, serverAuth))
		}, "", true, ""},
		"serving without a name": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return approved(request(t, kubeletServing, "system:node:a", x509.CertificateRequest{Subject: nodeName}, digital, serverAuth))
		}, "", false, "DNS or IP subjectAltName is required"},
		"a client of the API": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return approved(request(t, apiClient, "ann", x509.CertificateRequest{Subject: pkix.Name{CommonName: "ann"}}, clientAuth))
		}, "", true, ""},
		"a client that would serve": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return approved(request(t, apiClient, "ann", x509.CertificateRequest{}, clientAuth, serverAuth))
		}, "", false, "invalid usage for client certificate: server auth"},
		"another's signer": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			return approved(request(t, "example.com/own", "ann", x509.CertificateRequest{}, clientAuth))
		}, "", false, ""},
		"denied": {func(t *testing.T) *certificatesv1.CertificateSigningRequest {
			csr := request(t, kubeletClient, "system:node:a", x509.CertificateRequest{Subject: nodeName}, digital, clientAuth)
			csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied, Status: corev1.ConditionTrue, LastUpdateTime: metav1.Now()}}
			return csr
		}, "selfnodeclient", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca, key := authority(t, 10*365*24*time.Hour)
				got := run(t, tc.csr(t), tc.may, ca, key)
				if (len(got.Status.Certificate) > 0) != tc.signed {
					t.Fatalf("status %+v", got.Status)
				}
				failed := condition(got, certificatesv1.CertificateFailed)
				if (failed != nil) != (tc.failed != "") || failed != nil && (failed.Message != tc.failed || failed.Reason != "SignerValidationFailure") {
					t.Errorf("failed: %+v, want %q", failed, tc.failed)
				}
				if !tc.signed {
					return
				}
				block, _ := pem.Decode(got.Status.Certificate)
				cert, err := x509.ParseCertificate(block.Bytes)
				if err != nil || cert.CheckSignatureFrom(ca) != nil || cert.IsCA || !cert.BasicConstraintsValid {
					t.Fatalf("certificate %+v, %v", cert, err)
				}
				asked, _ := parse(got.Spec.Request)
				if cert.Subject.String() != asked.Subject.String() || !slices.Equal(cert.DNSNames, asked.DNSNames) || len(cert.IPAddresses) != len(asked.IPAddresses) ||
					cert.NotAfter.Sub(cert.NotBefore) != 365*24*time.Hour {
					t.Errorf("certificate for %s, %v to %v", cert.Subject, cert.NotBefore, cert.NotAfter)
				}
			})
		})
	}
}

// run lets a controller work on csr until it has nothing to do, and returns what became of it.
func run(t *testing.T, csr *certificatesv1.CertificateSigningRequest, may string, ca *x509.Certificate, key crypto.Signer) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	c := controllertest.New(t, csr)
	cc, err := New(c, c, Options{
		Authority: func() (*x509.Certificate, crypto.Signer) { return ca, key },
		Review: func(_ context.Context, spec authorizationv1.SubjectAccessReviewSpec) (bool, error) {
			if spec.User != csr.Spec.Username || !slices.Equal(spec.Groups, []string{"g"}) || spec.ResourceAttributes.Verb != "create" {
				t.Errorf("asked about %+v", spec)
			}
			return spec.ResourceAttributes.Subresource == may, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- cc.Run(ctx) }()
	time.Sleep(time.Second)
	synctest.Wait()
	got := &certificatesv1.CertificateSigningRequest{}
	if err := c.Get(ctx, client.ObjectKey{Name: "r"}, got); err != nil {
		t.Fatal(err)
	}
	got = got.DeepCopy()
	writes := c.Writes()
	time.Sleep(30 * time.Minute)
	if c.Writes() != writes {
		t.Error("written again with nothing to do")
	}
	time.Sleep(48 * time.Hour) // whatever it is, it does not stay
	if err := c.Get(ctx, client.ObjectKey{Name: "r"}, &certificatesv1.CertificateSigningRequest{}); !apierrors.IsNotFound(err) {
		t.Errorf("after two days: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	return got
}

func TestLifetime(t *testing.T) {
	second := func(n int32) *int32 { return &n }
	now := time.Now().Truncate(time.Second)
	for name, tc := range map[string]struct {
		asked *int32
		ca    time.Duration // of the authority
		want  time.Duration // from now to the end
	}{
		"as long as may be": {nil, 1000 * time.Hour, 100*time.Hour - backdate},
		"as asked":          {second(36000), 1000 * time.Hour, 10*time.Hour - backdate},
		"short":             {second(3600), 1000 * time.Hour, time.Hour},
		"too short":         {second(60), 1000 * time.Hour, shortestTTL},
		"too long":          {second(1 << 30), 1000 * time.Hour, 100*time.Hour - backdate},
		"the authority's":   {nil, 2 * time.Hour, 2 * time.Hour},
	} {
		ca, key := authority(t, tc.ca)
		csr := request(t, apiClient, "ann", x509.CertificateRequest{}, clientAuth)
		asked, _ := parse(csr.Spec.Request)
		data, err := sign(asked, csr.Spec.Usages, lifetime(tc.asked, 100*time.Hour), now, ca, key)
		if err != nil {
			t.Fatal(err)
		}
		if got := notAfter(data).Sub(now); got.Round(2*time.Second) != tc.want.Round(2*time.Second) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	ca, key := authority(t, -time.Minute)
	asked, _ := parse(request(t, apiClient, "ann", x509.CertificateRequest{}, clientAuth).Spec.Request)
	if _, err := sign(asked, nil, time.Hour, now, ca, key); err == nil {
		t.Error("an authority that has ended signs")
	}
}

func TestRemoveAt(t *testing.T) {
	now := time.Now()
	csr := func(kind certificatesv1.RequestConditionType, certificate []byte) *certificatesv1.CertificateSigningRequest {
		out := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now)}}
		if kind != "" {
			out.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: kind, LastUpdateTime: metav1.NewTime(now)}}
		}
		out.Status.Certificate = certificate
		return out
	}
	for name, tc := range map[string]struct {
		csr  *certificatesv1.CertificateSigningRequest
		want time.Duration
	}{
		"pending":            {csr("", nil), 24 * time.Hour},
		"denied":             {csr(certificatesv1.CertificateDenied, nil), time.Hour},
		"failed":             {csr(certificatesv1.CertificateFailed, nil), time.Hour},
		"issued":             {csr(certificatesv1.CertificateApproved, []byte("x")), time.Hour},
		"approved, unissued": {csr(certificatesv1.CertificateApproved, nil), 24 * time.Hour},
	} {
		if at, ends := removeAt(tc.csr); !ends || at.Sub(metav1.NewTime(now).Time) != tc.want {
			t.Errorf("%s: %v, %v; want %v", name, at.Sub(now), ends, tc.want)
		}
	}
}
