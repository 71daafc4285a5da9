package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// authority signs what it is asked to.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	life time.Duration
	made []*x509.Certificate
	fail error
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(20 * 365 * 24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: key, life: 365 * 24 * time.Hour}
}

func (a *authority) cluster() *Cluster {
	return &Cluster{CA: a.cert, CAPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})}
}

func (a *authority) issue(template *x509.Certificate, public any) ([]byte, error) {
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now(), time.Now().Add(a.life)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	a.made = append(a.made, cert)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

// Sign implements Signer.
func (a *authority) Sign(_ context.Context, r Request) ([]byte, error) {
	if a.fail != nil {
		return nil, a.fail
	}
	block, _ := pem.Decode(r.CSR)
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return a.issue(&x509.Certificate{Subject: request.Subject, DNSNames: request.DNSNames, IPAddresses: request.IPAddresses}, request.PublicKey)
}

func TestParseToken(t *testing.T) {
	token := NewToken(newAuthority(t).cert)
	if got, err := ParseToken(" " + token.String() + "\n"); err != nil || got != token {
		t.Errorf("ParseToken = %+v, %v; want %+v", got, err, token)
	}
	for name, text := range map[string]string{
		"empty":        "",
		"no pin":       token.Bootstrap(),
		"upper case":   strings.ToUpper(token.ID) + "." + token.Secret + "." + token.Pin,
		"short secret": token.ID + ".abc." + token.Pin,
		"no pin's sum": token.Bootstrap() + ".AAAA",
		"one too many": token.String() + ".x",
	} {
		if got, err := ParseToken(text); err == nil {
			t.Errorf("%s: ParseToken = %+v", name, got)
		}
	}
}

func TestWithPort(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1": "192.0.2.1:6443", "192.0.2.1:7443": "192.0.2.1:7443", "server.example.com": "server.example.com:6443",
		"": "", "192.0.2.1:x": "", "192.0.2.1:99999": "",
	} {
		if got, err := WithPort(text); got != want || (err == nil) != (want != "") {
			t.Errorf("WithPort(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestMembership(t *testing.T) {
	path := filepath.Join(t.TempDir(), MembershipFile)
	if _, there, err := ReadMembership(path); there || err != nil {
		t.Fatalf("of nothing: %v, %v", there, err)
	}
	want := Membership{Role: Worker, Servers: []string{"192.0.2.1:6443"}, Settings: Settings{
		PodCIDR: netip.MustParsePrefix("10.1.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.2.0.0/16"), ClusterDomain: "x.local",
	}}
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	got, there, err := ReadMembership(path)
	if err != nil || !there || got.Role != want.Role || got.Settings != want.Settings || got.Servers[0] != want.Servers[0] {
		t.Errorf("ReadMembership = %+v, %v, %v", got, there, err)
	}
	if again, err := ParseSettings(want.Settings.Data()); err != nil || again != want.Settings {
		t.Errorf("ParseSettings = %+v, %v", again, err)
	}
}

// TestKeeper lets four years pass: there is always a certificate, replaced at two thirds, and one that is on disk.
func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		renewed := 0
		opts := KeeperOptions{
			Dir: t.TempDir(), NodeName: "w", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7")}, Logger: slog.New(slog.DiscardHandler),
			Renewed: func() { renewed++ },
		}
		k, err := NewKeeper(opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Join(t.Context(), a.cluster(), a); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx, a) }()
		<-k.Served()
		for day := range 4 * 365 {
			time.Sleep(24 * time.Hour)
			synctest.Wait()
			if day == 200 { // nobody signs for a month when it is due
				a.fail = errors.New("no server answers")
			}
			if day == 275 {
				a.fail = nil
			}
			if k.Expires().Before(time.Now()) {
				t.Fatalf("day %d: the certificate ended at %v", day, k.Expires())
			}
		}
		// Two thirds of a year are 243 days: six times in four years, of each sort.
		if renewed < 5 || renewed > 7 {
			t.Errorf("renewed %d times in four years", renewed)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		again, err := NewKeeper(opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Load(); err != nil {
			t.Fatal(err)
		}
		if !again.Expires().Equal(k.Expires()) {
			t.Errorf("on disk is a certificate until %v, in use one until %v", again.Expires(), k.Expires())
		}
		select {
		case <-again.Served():
		default:
			t.Error("what the node serves with is not on disk")
		}
	})
}

// server is an API server with this authority, at a port of its own.
func server(t *testing.T, a *authority, handler http.Handler) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "kube-apiserver"}, DNSNames: []string{ServerName}}, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(cert)
	s := httptest.NewUnstartedServer(handler)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: key}}}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestDiscover(t *testing.T) {
	a := newAuthority(t)
	info := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != clusterInfoPath {
			http.NotFound(w, r)
			return
		}
		text := "apiVersion: v1\nkind: Config\nclusters:\n- name: \"\"\n  cluster:\n    server: https://x\n    certificate-authority-data: " +
			base64.StdEncoding.EncodeToString(a.cluster().CAPEM) + "\n"
		_ = json.NewEncoder(w).Encode(corev1.ConfigMap{Data: map[string]string{"kubeconfig": text}})
	}
	closed := func(w http.ResponseWriter, r *http.Request) { // nobody reads without credentials
		if r.URL.Path == wellKnownCA {
			_, _ = w.Write(a.cluster().CAPEM)
			return
		}
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
	}
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		pin     string
		wrong   string
	}{
		"cluster-info":     {info, Pin(a.cert), ""},
		"no anonymous":     {closed, Pin(a.cert), ""},
		"another's pin":    {info, Pin(newAuthority(t).cert), "the pin in the token is of another authority"},
		"not a server":     {http.NotFound, Pin(a.cert), "Not Found"},
		"not a kubeconfig": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }, Pin(a.cert), "cluster-info"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Discover(t.Context(), server(t, a, tc.handler), tc.pin)
			if tc.wrong == "" {
				if err != nil || !got.CA.Equal(a.cert) {
					t.Errorf("Discover = %v, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.wrong) {
				t.Errorf("Discover = %v; want %q", err, tc.wrong)
			}
		})
	}
}

// TestServers kills servers: requests go to one that is left, and a machine that went silent is given up.
func TestServers(t *testing.T) {
	a := newAuthority(t)
	says := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"kind":"` + name + `"}`)) })
	}
	good := server(t, a, says("good"))
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := gone.Addr().String()
	_ = gone.Close()
	foreign := server(t, newAuthority(t), says("foreign"))
	for name, addrs := range map[string][]string{
		"one":                   {good},
		"one that is gone":      {refused, good},
		"one that is silent":    {silent.Addr().String(), good},
		"one that is another's": {foreign, good},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewServers(addrs...)
			transport := s.Transport(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.cluster().Pool()})
			defer transport.CloseIdleConnections()
			for range 2 {
				var out struct{ Kind string }
				if err := (API{Transport: transport}).Do(t.Context(), http.MethodGet, "/", nil, &out); err != nil || out.Kind != "good" {
					t.Fatalf("%+v, %v", out, err)
				}
				s.Reconnect()
			}
			if order := s.order(); order[0] != good {
				t.Errorf("the next connection goes to %v", order)
			}
		})
	}
	s := NewServers(refused)
	transport := s.Transport(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.cluster().Pool()})
	if err := (API{Transport: transport}).Do(t.Context(), http.MethodGet, "/", nil, nil); err == nil || !strings.Contains(err.Error(), refused) {
		t.Errorf("without a server: %v", err)
	}
	if !s.Set([]string{good}) || s.Set([]string{good}) || s.Set(nil) {
		t.Error("Set does not tell changes")
	}
}
