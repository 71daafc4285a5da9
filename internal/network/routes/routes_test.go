//go:build linux

package routes

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllertest"

	"gantry.dev/gantry/internal/network/edge"
	"gantry.dev/gantry/internal/network/nettest"
)

// TestMain also is the edge that the tests start: the feeder calls this program like it.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-socket" {
		os.Exit(edge.Main(os.Args[1:]))
	}
	os.Exit(nettest.Main(m))
}

func ptr[T any](v T) *T { return &v }

func service(name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Port: 81}}}}
}

func TestServiceRecords(t *testing.T) {
	slice := discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: ptr("pg"), Port: ptr(int32(5432)), Protocol: ptr(corev1.ProtocolTCP)}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.244.0.5"}, Hostname: ptr("db-0")},
			{Addresses: []string{"10.244.0.6"}},
			{Addresses: []string{"10.244.0.7"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(false)}},
		}}
	alias := service("ext", "")
	alias.Spec.Type, alias.Spec.ExternalName = corev1.ServiceTypeExternalName, "WWW.Example.com."
	for name, tc := range map[string]struct {
		svc    *corev1.Service
		slices []discoveryv1.EndpointSlice
		want   []string
	}{
		"cluster address": {service("web", "10.96.0.20"), nil, []string{
			"20.0.96.10.in-addr.arpa 12 web.default.svc.c", "_http._tcp.web.default.svc.c 33 web.default.svc.c:80", "web.default.svc.c 1 10.96.0.20"}},
		"headless": {service("db", "None"), []discoveryv1.EndpointSlice{slice, slice}, []string{
			"10-244-0-6.db.default.svc.c 1 10.244.0.6", "5.0.244.10.in-addr.arpa 12 db-0.db.default.svc.c", "6.0.244.10.in-addr.arpa 12 10-244-0-6.db.default.svc.c",
			"_pg._tcp.db.default.svc.c 33 10-244-0-6.db.default.svc.c:5432", "_pg._tcp.db.default.svc.c 33 db-0.db.default.svc.c:5432",
			"db-0.db.default.svc.c 1 10.244.0.5", "db.default.svc.c 0", "db.default.svc.c 1 10.244.0.5", "db.default.svc.c 1 10.244.0.6"}},
		"headless, nobody": {service("db", "None"), nil, []string{"db.default.svc.c 0"}},
		"alias":            {alias, nil, []string{"ext.default.svc.c 5 www.example.com"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, r := range serviceRecords(tc.svc, tc.slices, "c") {
				line := fmt.Sprintf("%s %d", r.Name, r.Type)
				if r.Addr.IsValid() {
					line += " " + r.Addr.String()
				}
				if r.Target != "" {
					line += " " + r.Target
				}
				if r.Port != 0 {
					line += fmt.Sprintf(":%d", r.Port)
				}
				got = append(got, line)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("serviceRecords (-want +got):\n%s", diff)
			}
		})
	}
}

type informers map[string]*controllertest.FakeInformer

func (i informers) GetInformer(_ context.Context, obj client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	return i[fmt.Sprintf("%T", obj)], nil
}

// world is an API with a feeder that runs until stop.
type world struct {
	t    *testing.T
	api  client.Client
	inf  informers
	opts Options
}

func newWorld(t *testing.T) *world {
	t.Helper()
	nettest.Need(t)
	dir, err := os.MkdirTemp("", "routes")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, api: fake.NewClientBuilder().WithScheme(scheme.Scheme).Build(),
		inf: informers{"*v1.Service": {}, "*v1.EndpointSlice": {}, "*v1.Namespace": {}},
		opts: Options{Binary: binary, Socket: filepath.Join(dir, "s"), StateDir: filepath.Join(dir, "edge"), ResolvConf: "/nonexistent",
			Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")},
			Ranges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
			Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := Stop(ctx, w.opts.Socket); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) run() (stop func()) {
	w.t.Helper()
	return runFeeder(w.t, w.api, w.inf, w.opts)
}

// runFeeder runs a feeder until stop is called, and wants it to end well.
func runFeeder(t testing.TB, api client.Reader, inf Informers, opts Options) (stop func()) {
	t.Helper()
	f, err := New(api, inf, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func (w *world) create(obj client.Object) {
	w.t.Helper()
	if err := w.api.Create(w.t.Context(), obj); err != nil {
		w.t.Fatal(err)
	}
	w.inf[fmt.Sprintf("%T", obj)].Add(obj)
}

// until asks until the name has the address ("" for none).
func (w *world) until(name, want string) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		m := new(mdns.Msg)
		m.SetQuestion(name+".default.svc.cluster.local.", mdns.TypeA)
		r, _, err := (&mdns.Client{Timeout: time.Second}).Exchange(m, "127.0.0.1:53")
		got := ""
		if err == nil && len(r.Answer) == 1 {
			got = r.Answer[0].(*mdns.A).A.String()
		}
		if err == nil && got == want {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(w.opts.StateDir + ".log")
			w.t.Fatalf("%s = %q, %v; want %q\n%s", name, got, err, want, log)
		}
	}
}

func (w *world) pid() int {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		stats, err := Stats(w.t.Context(), w.opts.Socket)
		if err == nil {
			return stats.PID
		}
		if time.Now().After(deadline) { // one that hands over hangs up
			w.t.Fatal(err)
		}
	}
}

func TestFeeder(t *testing.T) {
	w := newWorld(t)
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	w.create(service("web", "10.96.0.20"))
	stop := w.run()
	w.until("web", "10.96.0.20")
	w.create(service("more", "10.96.0.21"))
	w.until("more", "10.96.0.21")
	gone := service("web", "10.96.0.20")
	if err := w.api.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	w.inf["*v1.Service"].Delete(gone)
	w.until("web", "")
	first := w.pid()

	stop() // gantry goes; the edge stays and is adopted by the next
	w.until("more", "10.96.0.21")
	w.create(service("late", "10.96.0.22"))
	stop = w.run()
	w.until("late", "10.96.0.22")
	if w.pid() != first {
		t.Error("the running edge was not adopted")
	}

	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.until("late", "10.96.0.22")
	second := w.pid()
	if second == first {
		t.Error("the killed edge still answers")
	}
	stop()

	// Another program (one byte more) takes over.
	program, err := os.ReadFile(w.opts.Binary)
	if err != nil {
		t.Fatal(err)
	}
	w.opts.Binary = filepath.Join(filepath.Dir(w.opts.Socket), "newer")
	if err := os.WriteFile(w.opts.Binary, append(program, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	stop = w.run()
	for deadline := time.Now().Add(20 * time.Second); w.pid() == second; {
		w.until("late", "10.96.0.22")
		if time.Now().After(deadline) {
			t.Fatal("the edge was not replaced")
		}
	}
	w.until("late", "10.96.0.22")
	stop()
}
