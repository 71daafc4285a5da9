// Package acme tests certificates against pebble, the small authority of Let's Encrypt's makers.
package acme

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/certs"
	"gantry.dev/gantry/internal/controller/controllertest"
	"gantry.dev/gantry/internal/network/routes/compile"
)

// address is where the gateway is, and what a certificate is asked for.
const address = "127.0.0.1"

// gateway serves the challenges that are in the Secret, as the real one does from its table.
func gateway(t *testing.T, cluster client.Client) (port int) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secret := &corev1.Secret{}
		err := cluster.Get(r.Context(), client.ObjectKey{Namespace: compile.Namespace, Name: compile.ChallengeSecret}, secret)
		answer, ok := secret.Data[strings.TrimPrefix(r.URL.Path, "/.well-known/acme-challenge/")]
		if err != nil || !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(answer)
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().(*net.TCPAddr).Port
}

// closedPort is where nobody listens.
const closedPort = 1

// pebble starts an authority that looks at challenges on two ports. It returns its directory, and a file with who signs it.
func pebble(t *testing.T, httpPort, tlsPort int) (directory, caFile string) {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	quiet, store := log.New(io.Discard, "", 0), db.NewMemoryStore()
	profiles := map[string]ca.Profile{
		"default":    {Description: "ninety days", ValidityPeriod: 90 * 24 * 3600},
		"shortlived": {Description: "six days", ValidityPeriod: 160 * 3600},
	}
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, profiles)
	validator := va.New(quiet, httpPort, tlsPort, false, "", store)
	front := wfe.New(quiet, store, validator, authority, []string{"pebble.letsencrypt.org"}, false, false, 1, 1)
	server := httptest.NewTLSServer(front.Handler())
	t.Cleanup(server.Close)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return server.URL + wfe.DirectoryPath, caFile
}

type recorder struct{ t *testing.T }

func (r recorder) Event(_ runtime.Object, kind, reason, note string) { r.t.Log(kind, reason, note) }

func asking(host string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: compile.Namespace, Name: "certificate-" + host,
			Labels: map[string]string{compile.LabelCertificate: "host"}, Annotations: map[string]string{compile.AnnotationHost: host}},
		Type: corev1.SecretTypeTLS, Data: map[string][]byte{corev1.TLSCertKey: {}, corev1.TLSPrivateKeyKey: {}},
	}
}

// TestAddress gets a short-lived certificate for an address, by http-01; the challenge is gone afterwards, and a second
// controller goes on with the same account.
func TestAddress(t *testing.T) {
	secret := asking(address)
	cluster := controllertest.New(t, secret)
	port := gateway(t, cluster)
	directory, caFile := pebble(t, port, closedPort)
	opts := certs.Options{
		ACME:   certs.ACME{Directory: directory, CAFile: caFile, Email: "admin@example.com", Gateway: fmt.Sprintf("%s:%d", address, port)},
		Public: []netip.Addr{netip.MustParseAddr(address)},
	}
	var keys []string
	for range 2 {
		got := issued(t, cluster, opts, secret, directory)
		block, _ := pem.Decode(got.Data[corev1.TLSCertKey])
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil || leaf.VerifyHostname(address) != nil || leaf.NotAfter.Sub(leaf.NotBefore) > 161*time.Hour {
			t.Errorf("the certificate is for %v, from %v to %v, %v", leaf.IPAddresses, leaf.NotBefore, leaf.NotAfter, err)
		}
		challenges := &corev1.Secret{}
		if err := cluster.Get(t.Context(), client.ObjectKey{Namespace: compile.Namespace, Name: compile.ChallengeSecret}, challenges); err != nil || len(challenges.Data) != 0 {
			t.Errorf("challenges that are left: %v, %v", challenges.Data, err)
		}
		var all corev1.SecretList
		if err := cluster.List(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		for _, s := range all.Items {
			if strings.HasPrefix(s.Name, "acme-account-") {
				keys = append(keys, string(s.Data[corev1.TLSPrivateKeyKey]))
			}
		}
		empty := got.DeepCopy()
		empty.Data, empty.Annotations = secret.Data, secret.Annotations
		if err := cluster.Update(t.Context(), empty); err != nil {
			t.Fatal(err)
		}
	}
	if len(keys) != 2 || keys[0] != keys[1] {
		t.Errorf("there were %d account keys that differ", len(keys))
	}
}

// issued runs a controller until a Secret holds a certificate of an issuer.
func issued(t *testing.T, cluster *controllertest.Cluster, opts certs.Options, secret *corev1.Secret, issuer string) *corev1.Secret {
	t.Helper()
	controller, err := certs.New(cluster, cluster, recorder{t}, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- controller.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	got := &corev1.Secret{}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if err := cluster.Get(t.Context(), client.ObjectKeyFromObject(secret), got); err != nil {
			t.Fatal(err)
		}
		if got.Annotations[certs.AnnotationIssuer] == issuer {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("no certificate: %v", got.Annotations)
		}
	}
}

// TestNotServed: when the gateway does not serve the challenge, the authority is not asked to look, and the reason is said.
func TestNotServed(t *testing.T) {
	secret := asking(address)
	cluster := controllertest.New(t, secret)
	directory, caFile := pebble(t, closedPort, closedPort)
	opts := certs.Options{ACME: certs.ACME{Directory: directory, CAFile: caFile, Gateway: "127.0.0.1:1"}, Public: []netip.Addr{netip.MustParseAddr(address)}}
	controller, err := certs.New(cluster, cluster, recorder{t}, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- controller.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		got := &corev1.Secret{}
		if err := cluster.Get(t.Context(), client.ObjectKeyFromObject(secret), got); err != nil {
			t.Fatal(err)
		}
		if problem := got.Annotations[certs.AnnotationProblem]; strings.Contains(problem, "does not serve the challenge") {
			if got.Annotations[certs.AnnotationFailures] != "1" || got.Annotations[certs.AnnotationIssuer] != certs.IssuerLocal {
				t.Errorf("annotations are %v", got.Annotations)
			}
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("the problem is %q", problem)
		}
	}
}
