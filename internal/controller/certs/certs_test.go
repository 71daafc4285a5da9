package certs

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
	"gantry.dev/gantry/internal/network/routes/compile"
)

func TestIssuerOf(t *testing.T) {
	const directory = "https://ca.example/directory"
	named := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	for host, want := range map[string]string{
		"shop.example.com": directory, "203.0.113.7": directory, "2001:db8::1": directory, "10.0.0.1": directory,
		"shop.localhost": IssuerLocal, "localhost": IssuerLocal, "node-1": IssuerLocal, "a.b.test": IssuerLocal, "*.example.com": IssuerLocal,
		"10.0.0.2": IssuerLocal, "100.64.0.1": IssuerLocal, "127.0.0.1": IssuerLocal, "fe80::1": IssuerLocal,
	} {
		if got := issuerOf(host, directory, named); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
	if got := issuerOf("shop.example.com", "", nil); got != IssuerLocal {
		t.Errorf("without ACME: %s", got)
	}
}

func TestPointsHere(t *testing.T) {
	addrs := func(texts ...string) (out []netip.Addr) {
		for _, text := range texts {
			out = append(out, netip.MustParseAddr(text))
		}
		return out
	}
	for name, tc := range map[string]struct {
		found, ours []netip.Addr
		want        string
	}{
		"here":                  {addrs("203.0.113.7"), addrs("10.0.0.1", "203.0.113.7"), ""},
		"nowhere":               {nil, addrs("203.0.113.7"), "has no address in the DNS: add an A record with 203.0.113.7"},
		"elsewhere":             {addrs("198.51.100.1"), addrs("203.0.113.7"), "points to 198.51.100.1, not to this machine: set its A record to 203.0.113.7"},
		"our address not known": {addrs("198.51.100.1"), addrs("10.0.0.1"), ""},
	} {
		if got := pointsHere("shop.example.com", tc.found, tc.ours); (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for failures, want := range map[int]time.Duration{1: 5 * time.Minute, 2: 10 * time.Minute, 5: 80 * time.Minute, 9: 12 * time.Hour, 1000: 12 * time.Hour} {
		if got := backoff(failures); got != want {
			t.Errorf("after %d failures %v, want %v", failures, got, want)
		}
	}
}

// recorder forgets events.
type recorder struct{}

func (recorder) Event(runtime.Object, string, string, string) {}

func asking(host string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: compile.Namespace, Name: "certificate-" + host,
			Labels: map[string]string{compile.LabelCertificate: "host"}, Annotations: map[string]string{compile.AnnotationHost: host}},
		Type: corev1.SecretTypeTLS, Data: map[string][]byte{corev1.TLSCertKey: {}, corev1.TLSPrivateKeyKey: {}},
	}
}

// run works until check is done.
func run(t *testing.T, cluster *controllertest.Cluster, opts Options, check func(c *Controller)) {
	t.Helper()
	c, err := New(cluster, cluster, recorder{}, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	check(c)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestLocal: the cluster's own authority issues, renews at two thirds, and is itself replaced in time.
func TestLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret := asking("shop.localhost")
		cluster := controllertest.New(t, secret)
		run(t, cluster, Options{}, func(*Controller) {
			get := func() *corev1.Secret {
				out := &corev1.Secret{}
				if err := cluster.Get(t.Context(), client.ObjectKeyFromObject(secret), out); err != nil {
					t.Fatal(err)
				}
				return out
			}
			synctest.Wait()
			first := leafOf(get())
			if first == nil || first.VerifyHostname("shop.localhost") != nil || get().Annotations[AnnotationIssuer] != IssuerLocal {
				t.Fatalf("the Secret is %v", get().Annotations)
			}
			time.Sleep(59 * 24 * time.Hour)
			synctest.Wait()
			if second := leafOf(get()); !second.Equal(first) {
				t.Error("renewed after 59 of 90 days")
			}
			time.Sleep(2 * 24 * time.Hour)
			synctest.Wait()
			renewed := leafOf(get())
			if renewed.Equal(first) || time.Until(renewed.NotAfter) < 80*24*time.Hour {
				t.Errorf("after 61 days it holds until %v", renewed.NotAfter)
			}
		})
	})
}

// TestMisdirected: a name that does not lead here gets a certificate of the cluster's own, and the reason.
func TestMisdirected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeExternalIP, Address: "203.0.113.7"}}}}
		secret := asking("shop.example.com")
		cluster := controllertest.New(t, node, secret)
		asked := 0
		opts := Options{ACME: ACME{Directory: "https://127.0.0.1:1/directory"}, Resolve: func(context.Context, string) ([]netip.Addr, error) {
			if asked++; asked > 2 {
				return nil, errors.New("no server answers")
			}
			return []netip.Addr{netip.MustParseAddr("198.51.100.1")}, nil
		}}
		run(t, cluster, opts, func(*Controller) {
			for _, want := range []string{"points to 198.51.100.1", "points to 198.51.100.1", "no server answers"} {
				synctest.Wait()
				got := &corev1.Secret{}
				if err := cluster.Get(t.Context(), client.ObjectKeyFromObject(secret), got); err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(got.Annotations[AnnotationProblem], want) || leafOf(got) == nil || got.Annotations[AnnotationIssuer] != IssuerLocal || got.Annotations[AnnotationFailures] != "0" {
					t.Errorf("%v; want the problem %q and a local certificate", got.Annotations, want)
				}
				time.Sleep(dnsRetry + 2*time.Second)
			}
		})
	})
}
