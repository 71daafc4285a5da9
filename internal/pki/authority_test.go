package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"
)

func testNames() Names {
	return Names{
		NodeName: "node-1", ClusterDomain: "cluster.local", ServiceIP: netip.MustParseAddr("10.96.0.1"),
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10")}, ExtraSANs: []string{"gantry.example", "203.0.113.7"},
	}
}

func newAuthority(t *testing.T, dir string) *Authority {
	t.Helper()
	a, err := New(Options{
		Dir: filepath.Join(dir, "pki"), Names: testNames(), Logger: slog.New(slog.DiscardHandler),
		Kubeconfigs: []Kubeconfig{{Path: filepath.Join(dir, "admin.kubeconfig"), Server: "https://127.0.0.1:6443", Client: Admin}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ensured(t *testing.T, dir string) *Authority {
	t.Helper()
	a := newAuthority(t, dir)
	if err := a.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

// snapshot maps each file below dir to its content.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v; want 0600", path, info.Mode(), err)
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestEnsureIsStable(t *testing.T) {
	dir := t.TempDir()
	ensured(t, dir)
	first := snapshot(t, dir)
	for _, name := range []string{"ca", "front-proxy-ca", "etcd/ca", "apiserver", "apiserver-kubelet-client", "front-proxy-client",
		"etcd/server", "etcd/peer", "kubelet", "kubelet-client", "admin", "super-admin"} {
		for _, ending := range []string{".crt", ".key"} {
			if first["pki/"+name+ending] == "" {
				t.Errorf("pki/%s%s is not there", name, ending)
			}
		}
	}
	if first["pki/sa.key"] == "" || first["pki/sa.pub"] == "" || len(first) != 2*12+2+1 {
		t.Errorf("there are %d files", len(first))
	}
	ensured(t, dir)
	if diff := cmp.Diff(first, snapshot(t, dir)); diff != "" {
		t.Errorf("a second start changed files:\n%s", diff)
	}
}

// handshake lets a client with one certificate talk to a server with another.
func handshake(server, client *tls.Config) (clientState, serverState tls.ConnectionState, err error) {
	left, right := net.Pipe()
	defer left.Close()
	defer right.Close()
	s, c := tls.Server(left, server), tls.Client(right, client)
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	if err = c.Handshake(); err == nil {
		err = <-done
	} else {
		_ = right.Close()
		<-done
	}
	return c.ConnectionState(), s.ConnectionState(), err
}

func TestTrust(t *testing.T) {
	a := ensured(t, t.TempDir())
	for name, tc := range map[string]struct {
		server     Leaf
		clients    CA
		client     Leaf
		servers    CA
		serverName string
		ok         bool
	}{
		"admin to API by name":      {APIServer, ClusterCA, Admin, ClusterCA, "kubernetes.default.svc.cluster.local", true},
		"pod to API by address":     {APIServer, ClusterCA, Admin, ClusterCA, "10.96.0.1", true},
		"extra address":             {APIServer, ClusterCA, Admin, ClusterCA, "203.0.113.7", true},
		"extra name":                {APIServer, ClusterCA, Admin, ClusterCA, "gantry.example", true},
		"foreign name":              {APIServer, ClusterCA, Admin, ClusterCA, "evil.example", false},
		"API to agent":              {Kubelet, ClusterCA, APIServerKubeletClient, ClusterCA, "node-1", true},
		"front proxy is no client":  {APIServer, ClusterCA, FrontProxyClient, ClusterCA, "localhost", false},
		"etcd does not trust admin": {EtcdServer, EtcdCA, Admin, EtcdCA, "localhost", false},
		"etcd peers":                {EtcdPeer, EtcdCA, EtcdPeer, EtcdCA, "192.0.2.10", true},
		"client cannot serve":       {KubeletClient, ClusterCA, Admin, ClusterCA, "node-1", false},
	} {
		t.Run(name, func(t *testing.T) {
			client := a.ClientTLS(tc.client, tc.servers)
			client.ServerName = tc.serverName
			server := a.ServerTLS(tc.server, tc.clients)
			server.MaxVersion = tls.VersionTLS12 // the server's verdict is part of the client's handshake
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return a.Certificate(tc.client) }
			_, _, err := handshake(server, client)
			if (err == nil) != tc.ok {
				t.Errorf("handshake: %v, want ok=%v", err, tc.ok)
			}
		})
	}
	cert, err := a.Certificate(KubeletClient)
	if err != nil || cert.Leaf.Subject.CommonName != "system:node:node-1" || !cmp.Equal(cert.Leaf.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("kubelet client is %v, %v", cert.Leaf.Subject, err)
	}
	if _, err := a.Certificate("nobody"); err == nil {
		t.Error("a certificate that does not exist was returned")
	}
}

func TestKubeconfigWorksWithClientGo(t *testing.T) {
	dir := t.TempDir()
	ensured(t, dir)
	rest, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(rest.CertData, rest.KeyData); err != nil || rest.Host != "https://127.0.0.1:6443" {
		t.Errorf("kubeconfig: host %s, %v", rest.Host, err)
	}
}

func TestDamage(t *testing.T) {
	for name, tc := range map[string]struct {
		damage func(pki string) error
		want   string // of the error; "" means that it heals
	}{
		"leaf cut short":        {truncate("apiserver.crt"), ""},
		"leaf key gone":         {remove("kubelet.key"), ""},
		"leaf of another key":   {copyFile("admin.key", "apiserver.key"), ""},
		"CA cert gone":          {remove("ca.crt"), ""},
		"sa.pub gone":           {remove("sa.pub"), ""},
		"CA key gone":           {remove("ca.key"), "ca.key is missing although its certificate is there; restore it from a backup"},
		"CA cert cut short":     {truncate("ca.crt"), "ca.crt is empty or cut short"},
		"CA of another key":     {copyFile("front-proxy-ca.key", "ca.key"), "ca.crt does not belong to"},
		"leaf in place of a CA": {both(copyFile("admin.key", "ca.key"), copyFile("admin.crt", "ca.crt")), "not the certificate of an authority"},
		"sa.key gone":           {remove("sa.key"), "sa.key is missing although sa.pub is there"},
		"sa.key of another":     {copyFile("ca.key", "sa.key"), "sa.pub does not belong to"},
		"key holds a cert":      {copyFile("ca.crt", "ca.key"), "ca.key holds no private key"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			before := ensured(t, dir)
			if err := tc.damage(filepath.Join(dir, "pki")); err != nil {
				t.Fatal(err)
			}
			after := newAuthority(t, dir)
			err := after.Ensure(t.Context())
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("Ensure = %v, want %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			// What the old process trusts and the new one issues must fit together.
			client := before.ClientTLS(Admin, ClusterCA)
			client.ServerName = "localhost"
			if _, _, err := handshake(after.ServerTLS(APIServer, ClusterCA), client); err != nil {
				t.Errorf("handshake over the repair: %v", err)
			}
		})
	}
}

func truncate(name string) func(string) error {
	return func(pki string) error { return os.Truncate(filepath.Join(pki, name), 20) }
}

func remove(name string) func(string) error {
	return func(pki string) error { return os.Remove(filepath.Join(pki, name)) }
}

func copyFile(from, to string) func(string) error {
	return func(pki string) error {
		text, err := os.ReadFile(filepath.Join(pki, from))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(pki, to), text, 0o600)
	}
}

func both(a, b func(string) error) func(string) error {
	return func(pki string) error {
		if err := a(pki); err != nil {
			return err
		}
		return b(pki)
	}
}

func TestNamesChange(t *testing.T) {
	dir := t.TempDir()
	a := ensured(t, dir)
	before := snapshot(t, dir)
	err := a.SetNames(t.Context(), func(n *Names) { n.Addresses = append(n.Addresses, netip.MustParseAddr("198.51.100.9")) })
	if err != nil {
		t.Fatal(err)
	}
	var changed []string
	for name, text := range snapshot(t, dir) {
		if before[name] != text && strings.HasSuffix(name, ".crt") {
			changed = append(changed, name)
		}
	}
	if len(changed) != 4 { // apiserver, kubelet, etcd/server, etcd/peer
		t.Errorf("changed: %v", changed)
	}
	client := a.ClientTLS(Admin, ClusterCA)
	client.ServerName = "198.51.100.9"
	if _, _, err := handshake(a.ServerTLS(APIServer, ClusterCA), client); err != nil {
		t.Errorf("the new address is not served: %v", err)
	}
}

// TestTwoYears runs the renewal loop over two years of virtual time and shakes hands every ten days
// with TLS configurations made once, as a server and a long-lived client hold them.
func TestTwoYears(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a := ensured(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		server, client := a.ServerTLS(APIServer, ClusterCA), a.ClientTLS(Admin, ClusterCA)
		client.ServerName = "localhost"
		serials := map[string]bool{}
		for range 73 {
			time.Sleep(10 * 24 * time.Hour)
			got, seen, err := handshake(server, client)
			if err != nil {
				t.Fatalf("handshake on %v: %v", time.Now(), err)
			}
			leaf := got.PeerCertificates[0]
			serials[leaf.SerialNumber.String()] = true
			for _, cert := range []*x509.Certificate{leaf, seen.PeerCertificates[0]} {
				if left := time.Until(cert.NotAfter); left < leafLifetime/4 {
					t.Fatalf("%s has only %v left on %v", cert.Subject.CommonName, left, time.Now())
				}
			}
			checkKubeconfig(t, filepath.Join(dir, "admin.kubeconfig"))
		}
		if len(serials) != 4 {
			t.Errorf("%d certificates served the API in two years, want 4: at 0, 8, 16 and 24 months", len(serials))
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	snapshot(t, dir)
}

func checkKubeconfig(t *testing.T, path string) {
	t.Helper()
	loaded, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	user := loaded.AuthInfos["gantry-admin"]
	pair, err := tls.X509KeyPair(user.ClientCertificateData, user.ClientKeyData)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(pair.Leaf.NotAfter); left < leafLifetime/4 {
		t.Fatalf("the kubeconfig's certificate has only %v left", left)
	}
}

func TestClock(t *testing.T) {
	dir := t.TempDir()
	ensured(t, dir) // in the real present
	synctest.Test(t, func(t *testing.T) {
		// A bubble starts in the year 2000: the clock of a machine without a battery.
		err := newAuthority(t, dir).Ensure(t.Context())
		if err == nil || !strings.Contains(err.Error(), "this machine's clock says 2000-01-01") {
			t.Errorf("Ensure = %v", err)
		}
	})
	dir = t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ensured(t, dir)
		time.Sleep(caLifetime - 30*24*time.Hour)
		a := ensured(t, dir)
		cert, err := a.Certificate(APIServer)
		if err != nil || cert.Leaf.NotAfter.After(a.cas[ClusterCA].cert.NotAfter) {
			t.Errorf("a leaf outlives its authority: %v, %v", cert.Leaf.NotAfter, err)
		}
		time.Sleep(31 * 24 * time.Hour)
		if err := newAuthority(t, dir).Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "ca.crt ended at") {
			t.Errorf("Ensure = %v", err)
		}
	})
}

func TestNewChecks(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("New accepted nothing at all")
	}
}
