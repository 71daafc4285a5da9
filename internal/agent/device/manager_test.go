package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"

	"gantry.dev/gantry/internal/container"
)

const gpu = "example.com/gpu"

// running is a manager with its Run.
type running struct {
	*Manager
	root string
	stop func()
}

// start runs a manager in a folder of its own; a second one in the same folder is a restart.
func start(t *testing.T, root string, change func(*Options)) running {
	t.Helper()
	opts := Options{Roots: []string{root}, Checkpoint: filepath.Join(root, "devices.json")}
	if change != nil {
		change(&opts)
	}
	m, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.Run(ctx)
	}()
	stop := sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	eventually(t, "the registration socket", func() bool {
		conn, err := net.Dial("unix", filepath.Join(root, pluginsDir, socketName))
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return running{m, root, stop}
}

// rootDir is short: sockets are kept there.
func rootDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dev")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so after 20 s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (r running) waitFor(t *testing.T, name string, total, free int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s has %d devices, %d of them healthy", name, total, free), func() bool {
		capacity, allocatable, _ := r.Capacity()
		c, a := capacity[corev1.ResourceName(name)], allocatable[corev1.ResourceName(name)]
		return c.Value() == total && a.Value() == free
	})
}

func offerDevices(t *testing.T, r running, p *testPlugin, ids ...string) {
	t.Helper()
	p.devices = devices(pluginapi.Healthy, ids...)
	startPlugin(t, filepath.Join(r.root, pluginsDir), "p.sock", p)
	if err := p.register(t.Context(), r.root, pluginapi.Version); err != nil {
		t.Fatal(err)
	}
	r.waitFor(t, p.resource, int64(len(ids)), int64(len(ids)))
}

func asking(name string, n int) corev1.Container {
	q := *resource.NewQuantity(int64(n), resource.DecimalSI)
	list := corev1.ResourceList{gpu: q, corev1.ResourceCPU: resource.MustParse("1"), "example.com/unknown": q}
	return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Limits: list, Requests: list}}
}

func podOf(uid string, containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "pod-" + uid, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{Containers: containers},
	}
}

func TestRegistrationIsChecked(t *testing.T) {
	r := start(t, rootDir(t), nil)
	for name, tc := range map[string]struct{ resource, version, want string }{
		"another version":  {gpu, "v1alpha1", `requested API version "v1alpha1" is not supported by kubelet`},
		"a native name":    {"cpu", pluginapi.Version, `the ResourceName "cpu" is invalid`},
		"Kubernetes' name": {"kubernetes.io/gpu", pluginapi.Version, "is invalid"},
		"a broken name":    {"example.com/a b", pluginapi.Version, "is invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &testPlugin{resource: tc.resource, path: "/nowhere/p.sock"}
			if err := p.register(t.Context(), r.root, tc.version); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("register = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestDevicesFollowTheirPlugin(t *testing.T) {
	changes, told := make(chan struct{}, 100), make(chan []types.UID, 10)
	r := start(t, rootDir(t), func(o *Options) {
		o.Changed = func() { changes <- struct{}{} }
		o.HealthChanged = func(pods []types.UID) { told <- pods }
	})
	p := &testPlugin{resource: gpu}
	offerDevices(t, r, p, "a", "b")
	<-changes
	pod := podOf("1", asking("c", 1))
	if err := r.Allocate(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	p.set(append(devices(pluginapi.Unhealthy, "a"), devices(pluginapi.Healthy, "b")...))
	r.waitFor(t, gpu, 2, 1)
	if got := <-told; !slices.Equal(got, []types.UID{"1"}) {
		t.Errorf("told of %v, want pod 1", got)
	}
	statuses := []corev1.ContainerStatus{{Name: "c"}, {Name: "other"}}
	r.Health("1", statuses)
	want := []corev1.ResourceStatus{{Name: gpu, Resources: []corev1.ResourceHealth{{ResourceID: "a", Health: corev1.ResourceHealthStatusUnhealthy}}}}
	if diff := cmp.Diff(want, statuses[0].AllocatedResourcesStatus); diff != "" || statuses[1].AllocatedResourcesStatus != nil {
		t.Errorf("health (-want +got):\n%s", diff)
	}
	p.server.Stop()
	r.waitFor(t, gpu, 2, 0)
	if err := r.Allocate(t.Context(), podOf("2", asking("c", 1))); err == nil || err.Error() != "no healthy devices present; cannot allocate unhealthy devices "+gpu {
		t.Errorf("Allocate without the plugin = %v", err)
	}
	again := &testPlugin{resource: gpu}
	offerDevices(t, r, again, "a", "b", "c")
	if err := r.Allocate(t.Context(), pod); err != nil {
		t.Errorf("a pod that has its device: %v", err)
	}
}

func TestRegistryPlugin(t *testing.T) {
	r := start(t, rootDir(t), nil)
	p := &testPlugin{resource: gpu, devices: devices(pluginapi.Healthy, "a")}
	startPlugin(t, filepath.Join(r.root, registryDir), "gpu.sock", p)
	r.waitFor(t, gpu, 1, 1)
	eventually(t, "the plugin is told", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.told != nil && p.told.PluginRegistered
	})
}

func TestGrant(t *testing.T) {
	root := rootDir(t)
	cdi := filepath.Join(root, "cdi")
	if err := os.MkdirAll(cdi, 0o755); err != nil {
		t.Fatal(err)
	}
	spec := `{"cdiVersion": "0.6.0", "kind": "example.com/card", "containerEdits": {"env": ["ALL=1"]}, "devices": [
		{"name": "one", "containerEdits": {"env": ["ONE=1", "A=cdi"], "deviceNodes": [{"path": "/dev/one", "hostPath": "/dev/null", "permissions": "rw"}],
		 "mounts": [{"hostPath": "/lib", "containerPath": "/lib2", "options": ["ro", "rbind"]}], "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true"]}]}}]}`
	if err := os.WriteFile(filepath.Join(cdi, "card.json"), []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	r := start(t, root, func(o *Options) { o.CDIDirs = []string{cdi, filepath.Join(root, "none")} })
	p := &testPlugin{
		resource: gpu, options: pluginapi.DevicePluginOptions{PreStartRequired: true, GetPreferredAllocationAvailable: true},
		prefer: []string{"c", "x"},
		answer: &pluginapi.ContainerAllocateResponse{
			Envs:        map[string]string{"A": "1", "B": "2"},
			Devices:     []*pluginapi.DeviceSpec{{HostPath: "/dev/zero", ContainerPath: "/dev/gpu", Permissions: "mrw"}},
			Mounts:      []*pluginapi.Mount{{HostPath: "/usr", ContainerPath: "/u", ReadOnly: true}},
			Annotations: map[string]string{"k": "v"},
			CdiDevices:  []*pluginapi.CDIDevice{{Name: "example.com/card=one"}},
		},
	}
	offerDevices(t, r, p, "a", "b", "c")
	pod := podOf("1", asking("c", 2))
	grant, err := r.Prepare(t.Context(), pod, &pod.Spec.Containers[0])
	if err != nil {
		t.Fatal(err)
	}
	want := Grant{
		Env:         []string{"A=1", "B=2", "ONE=1", "ALL=1"},
		Devices:     []container.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/gpu", Permissions: "mrw"}, {HostPath: "/dev/null", ContainerPath: "/dev/one", Permissions: "rw"}},
		Mounts:      []container.Mount{{HostPath: "/usr", ContainerPath: "/u", ReadOnly: true}, {HostPath: "/lib", ContainerPath: "/lib2", ReadOnly: true}},
		Hooks:       []container.Hook{{Stage: "createContainer", Path: "/bin/true", Args: []string{"true"}}},
		Annotations: map[string]string{"k": "v"},
	}
	if diff := cmp.Diff(want, grant); diff != "" {
		t.Errorf("grant (-want +got):\n%s", diff)
	}
	allocated, started := p.calls()
	if got := [][]string{{"a", "c"}}; !cmp.Equal(allocated, got) || !cmp.Equal(started, got) {
		t.Errorf("allocated %v, started %v, want a and the preferred c once each", allocated, started)
	}
	p.answer.CdiDevices[0].Name = "example.com/card=two"
	other := podOf("2", asking("c", 1))
	if _, err := r.Prepare(t.Context(), other, &other.Spec.Containers[0]); err == nil || !strings.Contains(err.Error(), "unresolvable CDI devices example.com/card=two") {
		t.Errorf("an unknown CDI device: %v", err)
	}
}

func TestFailedAllocationHoldsNothing(t *testing.T) {
	r := start(t, rootDir(t), nil)
	p := &testPlugin{resource: gpu, refuse: errors.New("out of order")}
	offerDevices(t, r, p, "a")
	if err := r.Allocate(t.Context(), podOf("1", asking("c", 1))); err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Fatalf("Allocate = %v", err)
	}
	p.refuse = nil
	if err := r.Allocate(t.Context(), podOf("2", asking("c", 1))); err != nil {
		t.Fatal(err)
	}
	err := r.Allocate(t.Context(), podOf("3", asking("c", 1)))
	if want := "requested number of devices unavailable for example.com/gpu. Requested: 1, Available: 0"; err == nil || err.Error() != want {
		t.Errorf("Allocate = %v, want %q", err, want)
	}
	r.Release("2")
	if err := r.Allocate(t.Context(), podOf("3", asking("c", 1))); err != nil {
		t.Errorf("after the release: %v", err)
	}
}

func TestInitContainersShare(t *testing.T) {
	r := start(t, rootDir(t), nil)
	offerDevices(t, r, &testPlugin{resource: gpu}, "a", "b", "c")
	always := corev1.ContainerRestartPolicyAlways
	side := asking("side", 1)
	side.RestartPolicy = &always
	pod := podOf("1", asking("main", 1), asking("second", 1))
	pod.Spec.InitContainers = []corev1.Container{asking("first", 2), side}
	if err := r.Allocate(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	ids := func(name string) string { return strings.Join(r.pods.get("1", name, gpu).IDs, ",") }
	got := map[string]string{}
	for _, name := range []string{"first", "side", "main", "second"} {
		got[name] = ids(name)
	}
	if diff := cmp.Diff(map[string]string{"first": "a,b", "side": "a", "main": "b", "second": "c"}, got); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
}

// TestExclusive has pods come and go at once, with the manager killed between: no device ever
// has two holders.
func TestExclusive(t *testing.T) {
	root := rootDir(t)
	var mu sync.Mutex
	holders := map[string]types.UID{}
	alive := map[types.UID]bool{}
	for restart := range 4 {
		r := start(t, root, nil)
		r.Reconcile(func(uid types.UID) bool { return alive[uid] })
		offerDevices(t, r, &testPlugin{resource: gpu, options: pluginapi.DevicePluginOptions{GetPreferredAllocationAvailable: true}, prefer: []string{"a", "b"}}, "a", "b", "c", "d")
		var wg sync.WaitGroup
		for i := range 20 {
			pod := podOf(fmt.Sprintf("%d-%d", restart, i), asking("c", 1+i%2))
			wg.Go(func() {
				if err := r.Allocate(t.Context(), pod); err != nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				alive[pod.UID] = true
				r.mu.Lock()
				defer r.mu.Unlock()
				for _, id := range r.pods.get(pod.UID, "c", gpu).IDs {
					if other, ok := holders[id]; ok {
						t.Errorf("device %s was given to %s and %s", id, other, pod.UID)
					}
					holders[id] = pod.UID
				}
			})
		}
		wg.Wait()
		if len(holders) < 3 {
			t.Errorf("restart %d: only %v are held", restart, holders)
		}
		// One pod ends; its devices are for others, also after the restart.
		for _, uid := range slices.Sorted(maps.Keys(alive))[:1] {
			maps.DeleteFunc(holders, func(_ string, holder types.UID) bool { return holder == uid })
			delete(alive, uid)
			r.Release(uid)
		}
		r.stop()
	}
}

func TestRestart(t *testing.T) {
	root := rootDir(t)
	r := start(t, root, nil)
	offerDevices(t, r, &testPlugin{resource: gpu, answer: &pluginapi.ContainerAllocateResponse{Envs: map[string]string{"X": "1"}}}, "a")
	pod := podOf("1", asking("c", 1))
	if err := r.Allocate(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r = start(t, root, nil)
	r.waitFor(t, gpu, 0, 0)
	grant, err := r.Prepare(t.Context(), pod, &pod.Spec.Containers[0])
	if err != nil || !slices.Equal(grant.Env, []string{"X=1"}) {
		t.Errorf("before the plugin is back: %v, %v", grant, err)
	}
	if err := r.Allocate(t.Context(), podOf("2", asking("c", 1))); err == nil {
		t.Error("a device was given without its plugin")
	}
	offerDevices(t, r, &testPlugin{resource: gpu}, "a")
	if err := r.Allocate(t.Context(), podOf("2", asking("c", 1))); err == nil {
		t.Error("the device of a pod was given again after a restart")
	}
}

func TestPodResources(t *testing.T) {
	pod := podOf("1", asking("c", 1), corev1.Container{Name: "plain"})
	r := start(t, rootDir(t), func(o *Options) { o.Pods = func() []*corev1.Pod { return []*corev1.Pod{pod} } })
	p := &testPlugin{resource: gpu}
	offerDevices(t, r, p, "a", "b")
	p.set([]*pluginapi.Device{{ID: "a", Health: pluginapi.Healthy, Topology: &pluginapi.TopologyInfo{Nodes: []*pluginapi.NUMANode{{ID: 1}}}}, {ID: "b", Health: pluginapi.Unhealthy}})
	r.waitFor(t, gpu, 2, 1)
	if err := r.Allocate(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	conn, err := dialUnix(filepath.Join(r.root, podResourcesDir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	api := podresourcesapi.NewPodResourcesListerClient(conn)
	list, err := api.List(t.Context(), &podresourcesapi.ListPodResourcesRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if got := list.String(); !strings.Contains(got, `resource_name:"example.com/gpu"`) || !strings.Contains(got, `device_ids:"a"`) || !strings.Contains(got, "ID:1") || !strings.Contains(got, `name:"plain"`) {
		t.Errorf("List = %s", got)
	}
	all, err := api.GetAllocatableResources(t.Context(), &podresourcesapi.AllocatableResourcesRequest{})
	if err != nil || len(all.Devices) != 1 {
		t.Errorf("GetAllocatableResources = %v, %v; want the healthy device", all, err)
	}
	if _, err := api.Get(t.Context(), &podresourcesapi.GetPodResourcesRequest{PodName: "no", PodNamespace: "default"}); err == nil {
		t.Error("Get found a pod that is not there")
	}
	if one, err := api.Get(t.Context(), &podresourcesapi.GetPodResourcesRequest{PodName: pod.Name, PodNamespace: pod.Namespace}); err != nil || len(one.PodResources.Containers) != 2 {
		t.Errorf("Get = %v, %v", one, err)
	}
}

func TestAnotherKubeletIsLeftAlone(t *testing.T) {
	root := rootDir(t)
	first := start(t, root, nil)
	offerDevices(t, first, &testPlugin{resource: gpu}, "a")
	second, err := New(Options{Roots: []string{root}, Checkpoint: filepath.Join(root, "other.json")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := second.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, pluginsDir, "p.sock")); err != nil {
		t.Errorf("the other's plugin was removed: %v", err)
	}
}
