//go:build linux

package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllertest"

	"gantry.dev/gantry/internal/network/nettest"
	"gantry.dev/gantry/internal/network/podnet"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// quiet is how long a packet that nobody stops may take; what does not come within it is taken for dropped.
const quiet = 400 * time.Millisecond

// world is a machine with pods, an API and a running enforcer.
type world struct {
	t        testing.TB
	api      client.Client
	inf      informers
	net      *podnet.Network
	enforcer *Enforcer
	stop     func()            // ends the enforcer
	paths    map[string]string // by "namespace/name"
	addrs    map[string]netip.Addr
}

type informers map[string]*replayed

// replayed is an informer that tells new handlers of what there is, as real ones do.
type replayed struct {
	controllertest.FakeInformer
	mu       sync.Mutex // guards the fields below
	objects  map[client.ObjectKey]client.Object
	handlers map[*handle]toolscache.ResourceEventHandler
}

// handle is a registration that has seen everything.
type handle struct{ _ int }

func (h *handle) HasSynced() bool                          { return true }
func (h *handle) HasSyncedChecker() toolscache.DoneChecker { return h }
func (h *handle) Name() string                             { return "test" }
func (h *handle) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

// AddEventHandler implements cache.Informer.
func (r *replayed) AddEventHandler(to toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := &handle{}
	if r.handlers == nil {
		r.handlers = map[*handle]toolscache.ResourceEventHandler{}
	}
	r.handlers[h] = to
	for _, obj := range r.objects {
		to.OnAdd(obj, true)
	}
	return h, nil
}

// RemoveEventHandler implements cache.Informer.
func (r *replayed) RemoveEventHandler(registration toolscache.ResourceEventHandlerRegistration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h, ok := registration.(*handle); ok {
		delete(r.handlers, h)
	}
	return nil
}

// tell brings an object, or that it is gone, to the handlers.
func (r *replayed) tell(obj client.Object, gone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := client.ObjectKeyFromObject(obj)
	old := r.objects[key]
	if gone {
		delete(r.objects, key)
	} else {
		if r.objects == nil {
			r.objects = map[client.ObjectKey]client.Object{}
		}
		r.objects[key] = obj
	}
	for _, to := range r.handlers {
		switch {
		case gone:
			to.OnDelete(old)
		case old == nil:
			to.OnAdd(obj, false)
		default:
			to.OnUpdate(old, obj)
		}
	}
}

func (i informers) GetInformer(_ context.Context, obj client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	return i[fmt.Sprintf("%T", obj)], nil
}

func podOptions(dir string) podnet.Options {
	return podnet.Options{Dir: dir, PodCIDR: netip.MustParsePrefix("10.244.0.0/24"),
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16")}
}

// newWorld makes the machine without pods and starts an enforcer.
func newWorld(t testing.TB) *world {
	t.Helper()
	nettest.Need(t)
	nettest.ForgetFlows(t)
	opts := podOptions(t.TempDir())
	n, err := podnet.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := podnet.Cleanup(context.Background(), opts); err != nil {
			t.Error(err)
		}
	})
	if err := n.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, net: n, paths: map[string]string{}, addrs: map[string]netip.Addr{},
		api: fake.NewClientBuilder().WithScheme(scheme.Scheme).Build(),
		inf: informers{"*v1.Pod": {}, "*v1.Namespace": {}, "*v1.NetworkPolicy": {}}}
	w.run()
	return w
}

// run starts an enforcer that ends with the test.
func (w *world) run() {
	w.t.Helper()
	e, err := New(w.api, w.inf, Options{NodeName: "n1", CheckInterval: 100 * time.Millisecond, MinInterval: time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil))})
	if err != nil {
		w.t.Fatal(err)
	}
	w.enforcer = e
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := e.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	w.stop = func() { cancel(); <-done }
	stop := w.stop
	w.t.Cleanup(func() {
		stop()
		if err := Cleanup(context.Background()); err != nil {
			w.t.Error(err)
		}
	})
}

func (w *world) put(obj client.Object) {
	w.t.Helper()
	old, ok := obj.DeepCopyObject().(client.Object)
	if !ok {
		w.t.Fatalf("%T is no object", obj)
	}
	status, isPod := obj.DeepCopyObject().(*corev1.Pod)
	known := w.api.Get(w.t.Context(), client.ObjectKeyFromObject(obj), old) == nil
	var write error
	if known {
		obj.SetResourceVersion(old.GetResourceVersion())
		write = w.api.Update(w.t.Context(), obj)
	} else {
		write = w.api.Create(w.t.Context(), obj)
	}
	if write == nil && isPod {
		status.ResourceVersion = obj.GetResourceVersion()
		write = w.api.Status().Update(w.t.Context(), status)
		obj = status
	}
	if write != nil {
		w.t.Fatal(write)
	}
	if told, ok := obj.DeepCopyObject().(client.Object); ok {
		w.inf[fmt.Sprintf("%T", obj)].tell(told, false)
	}
}

func (w *world) remove(obj client.Object) {
	w.t.Helper()
	if err := w.api.Delete(w.t.Context(), obj); err != nil {
		w.t.Fatal(err)
	}
	w.inf[fmt.Sprintf("%T", obj)].tell(obj, true)
}

func (w *world) namespace(name string, labels ...string) {
	w.t.Helper()
	w.put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: pairs(labels)}})
}

func pairs(list []string) map[string]string {
	out := map[string]string{}
	for i := 0; i+1 < len(list); i += 2 {
		out[list[i]] = list[i+1]
	}
	return out
}

// testPod is a pod of the node with labels, and with the ports 80 ("http"), 81 and 5000 of TCP and UDP.
func testPod(namespace, name string, labels ...string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + "-" + name), Labels: pairs(labels)},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{
			{Name: "http", ContainerPort: 80, Protocol: corev1.ProtocolTCP}, {Name: "http", ContainerPort: 80, Protocol: corev1.ProtocolUDP}}}}}}
}

// pod makes a pod that serves, as the agent does: API object, network with rules, address in the status.
func (w *world) pod(namespace, name string, labels ...string) {
	w.t.Helper()
	obj := testPod(namespace, name, labels...)
	w.put(obj)
	w.connect(obj)
	for _, port := range []string{":80", ":81", ":5000"} {
		nettest.ServeName(w.t, w.paths[namespace+"/"+name], port, name)
	}
}

func (w *world) connect(obj *corev1.Pod) {
	w.t.Helper()
	path, addrs, err := w.net.SetupCovered(w.t.Context(), w.request(obj))
	if err != nil {
		w.t.Fatal(err)
	}
	w.paths[obj.Namespace+"/"+obj.Name], w.addrs[obj.Namespace+"/"+obj.Name] = path, addrs[0]
	obj.Status.PodIPs = []corev1.PodIP{{IP: addrs[0].String()}}
	w.put(obj)
}

func (w *world) request(obj *corev1.Pod) podnet.Request {
	uid := string(obj.UID)
	return podnet.Request{UID: uid, Cover: func(ctx context.Context, addrs []netip.Addr, isNew bool) error {
		return w.enforcer.Cover(ctx, uid, obj, addrs, isNew)
	}}
}

// disconnect takes a pod's network away.
func (w *world) disconnect(namespace, name string) {
	w.t.Helper()
	if err := w.net.Teardown(w.t.Context(), namespace+"-"+name); err != nil {
		w.t.Fatal(err)
	}
	w.enforcer.Uncover(namespace + "-" + name)
}

// relabel gives a pod other labels.
func (w *world) relabel(namespace, name string, labels ...string) {
	w.t.Helper()
	var obj corev1.Pod
	if err := w.api.Get(w.t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &obj); err != nil {
		w.t.Fatal(err)
	}
	obj.Labels = pairs(labels)
	w.put(&obj)
}

// webPolicy is a policy, when it says nothing else about the pods with app=web in the namespace shop.
func webPolicy(name string, spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
	if len(spec.PodSelector.MatchLabels) == 0 && spec.PodSelector.MatchExpressions == nil {
		spec.PodSelector = metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	}
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)}, Spec: spec}
}

// settle waits until the enforcer has done what it was told.
func (w *world) settle() {
	w.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		w.enforcer.events.Lock()
		waiting := len(w.enforcer.dirty)
		w.enforcer.events.Unlock()
		w.enforcer.mu.Lock()
		done := w.enforcer.known && waiting == 0 && w.enforcer.state.empty() == (w.enforcer.unlisten == nil) && len(w.enforcer.state.stale) == 0
		w.enforcer.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal("the enforcer does not come to rest")
		}
		time.Sleep(time.Millisecond)
	}
}

// reaches tries a connection and reports whether it came to be. A refusal counts as an answer of the other side.
func (w *world) reaches(from, network, address string) bool {
	w.t.Helper()
	ok := false
	try := func() error {
		conn, err := (&net.Dialer{Timeout: quiet}).Dial(network, address)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(quiet))
		if network == "udp4" {
			if _, err := conn.Write([]byte("?")); err != nil {
				return err
			}
		}
		_, err = conn.Read(make([]byte, 100))
		ok = err == nil
		return err
	}
	path := w.paths[from]
	if path == "" {
		path = from
	}
	var err error
	if path == "" {
		err = try()
	} else {
		err = nettest.In(w.t, path, try)
	}
	var timeout net.Error
	if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
		w.t.Errorf("from %q to %s %s: %v, want an answer or silence", from, network, address, err)
	}
	return ok
}

// expect holds one connection against what shall become of it. Pods go by "namespace/name".
func (w *world) expect(from, network, to string, want bool) {
	w.t.Helper()
	host, port, err := net.SplitHostPort(to)
	if err != nil {
		w.t.Fatal(err)
	}
	if addr, ok := w.addrs[host]; ok {
		host = addr.String()
	}
	if got := w.reaches(from, network, net.JoinHostPort(host, port)); got != want {
		w.t.Errorf("%s reaches %s by %s: %v, want %v", from, to, network, got, want)
	}
}
