package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

func TestClientIsTrustedByItsAuthorityOnly(t *testing.T) {
	ours, err := NewAuthority("ours")
	if err != nil {
		t.Fatal(err)
	}
	others, err := NewAuthority("others")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ours.Client("jane", "dev", "ops")
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatalf("the key does not belong to the certificate: %v", err)
	}
	if got := loaded.Leaf.Subject; got.CommonName != "jane" || !slices.Equal(got.Organization, []string{"dev", "ops"}) {
		t.Errorf("subject = %v, want jane of dev and ops", got)
	}
	verify := func(authority *Authority) error {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(authority.CertPEM())
		_, err := loaded.Leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		return err
	}
	if err := verify(ours); err != nil {
		t.Errorf("its own authority refuses it: %v", err)
	}
	if verify(others) == nil {
		t.Error("another authority accepts it")
	}
}

func TestWriteFilesMakesWhatTheProgramsRead(t *testing.T) {
	dir := t.TempDir()
	if err := writeFiles(dir, "https://127.0.0.1:6443"); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadAuthority(dir); err != nil {
		t.Errorf("the authority cannot be loaded: %v", err)
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "apiserver.crt"), filepath.Join(dir, "apiserver.key")); err != nil {
		t.Errorf("the server's pair cannot be loaded: %v", err)
	}
	for _, name := range []string{"admin", "controller-manager", "scheduler"} {
		path := filepath.Join(dir, name+".kubeconfig")
		config, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil || config.Host != "https://127.0.0.1:6443" {
			t.Errorf("%s = %v, %v", path, config, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v; want 0600", path, info.Mode(), err)
		}
	}
}

func TestCacheKeyFollowsThePins(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := func() string {
		got, err := cacheKey(dir, Version)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	write("go.mod", "module m\nrequire a v1.0.0\n")
	write("go.sum", "")
	before := key()
	if again := key(); again != before {
		t.Errorf("two keys for one module: %s, %s", before, again)
	}
	write("go.mod", "module m\nrequire a v1.0.1\n")
	if key() == before {
		t.Error("another version has the same key")
	}
}
