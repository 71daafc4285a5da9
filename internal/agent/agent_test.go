package agent

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/agent/agenttest"
	"gantry.dev/gantry/internal/container"
)

// rig is one node in a bubble of virtual time.
type rig struct {
	t       *testing.T
	api     *agenttest.API
	runtime *agenttest.Runtime
	images  *agenttest.Images
	network *agenttest.Network
	opts    Options
	agent   *Agent
	stop    func()

	static    StaticPods
	informers Informers // nil: api
	figures   figures   // nil: the machine's
}

// bubble runs a test on a node whose agent runs.
func bubble(t *testing.T, test func(r *rig)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, api: agenttest.NewAPI(), runtime: agenttest.NewRuntime(), images: &agenttest.Images{}, network: &agenttest.Network{}}
		r.opts = Options{
			NodeName: "node-1", NodeUID: "node-uid", NodeIPs: []string{"192.0.2.1"},
			PodsDir: dir + "/pods", LogDir: dir + "/log", ClusterDNS: []string{"10.96.0.10"},
			Capacity:  corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi")},
			DiskUsage: func(string) (int64, int64, error) { return 50, 100, nil },
			Logger:    slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		}
		r.start()
		defer func() { r.stop() }()
		r.giveRange()
		test(r)
	})
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (r *rig) start() {
	r.t.Helper()
	var informers Informers = r.api
	if r.informers != nil {
		informers = r.informers
	}
	a, err := New(Parts{
		Client: r.api, Informers: informers, Runtime: r.runtime, Images: r.images, Network: r.network, Volumes: agenttest.Volumes{}, Static: r.static,
	}, r.opts)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.figures != nil {
		a.pressure.figures = r.figures
	}
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	synctest.Wait()
	r.agent = a
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run ended with %v", err)
		}
	}
}

func (r *rig) restart() {
	r.stop()
	r.start()
}

func (r *rig) giveRange() {
	r.t.Helper()
	var node corev1.Node
	if err := r.api.Get(r.t.Context(), client.ObjectKey{Name: "node-1"}, &node); err != nil {
		r.t.Fatal(err)
	}
	node.Spec.PodCIDR, node.Spec.PodCIDRs = "10.1.0.0/24", []string{"10.1.0.0/24"}
	if err := r.api.Update(r.t.Context(), &node); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
}

func newPod(name string, edit ...func(*corev1.Pod)) *corev1.Pod {
	grace, links, token := int64(30), true, false
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)},
		Spec: corev1.PodSpec{
			NodeName: "node-1", RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst,
			TerminationGracePeriodSeconds: &grace, EnableServiceLinks: &links, AutomountServiceAccountToken: &token,
			Containers: []corev1.Container{newContainer("main")},
		},
		Status: corev1.PodStatus{
			Phase:      corev1.PodPending,
			Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now().Rfc3339Copy()}},
		},
	}
	for _, e := range edit {
		e(pod)
	}
	return pod
}

func newContainer(name string) corev1.Container {
	return corev1.Container{
		Name: name, Image: "busybox", ImagePullPolicy: corev1.PullIfNotPresent,
		TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
	}
}

func (r *rig) create(pod *corev1.Pod) {
	r.t.Helper()
	if err := r.api.Create(r.t.Context(), pod); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
}

func (r *rig) pod(name string) *corev1.Pod {
	r.t.Helper()
	var pod corev1.Pod
	if err := r.api.Get(r.t.Context(), client.ObjectKey{Namespace: "default", Name: name}, &pod); err != nil {
		r.t.Fatal(err)
	}
	return &pod
}

func (r *rig) exists(name string) bool {
	return r.api.Get(r.t.Context(), client.ObjectKey{Namespace: "default", Name: name}, &corev1.Pod{}) == nil
}

func (r *rig) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// events lists "Reason: message xCount" of the pod's events.
func (r *rig) events(name string) []string {
	r.t.Helper()
	var list corev1.EventList
	if err := r.api.List(r.t.Context(), &list); err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, e := range list.Items {
		if e.InvolvedObject.Name == name {
			out = append(out, e.Reason+": "+e.Message)
		}
	}
	slices.Sort(out)
	return out
}

func (r *rig) hasEvent(name, want string) {
	r.t.Helper()
	if !slices.ContainsFunc(r.events(name), func(e string) bool { return strings.HasPrefix(e, want) }) {
		r.t.Errorf("pod %s has no event %q; it has %q", name, want, r.events(name))
	}
}

func (r *rig) container(name string) container.Status {
	r.t.Helper()
	list, err := r.runtime.List(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	var newest container.Status
	for _, s := range list {
		for _, c := range s.Containers {
			if c.Name == name && (newest.ID == "" || c.Attempt > newest.Attempt) {
				newest = c
			}
		}
	}
	if newest.ID == "" {
		r.t.Fatalf("there is no container %s", name)
	}
	return newest
}

func condition(pod *corev1.Pod, kind corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return "missing"
}

func TestPodRuns(t *testing.T) {
	bubble(t, func(r *rig) {
		r.create(newPod("web"))
		pod := r.pod("web")
		if pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP != "10.1.0.2" || pod.Status.HostIP != "192.0.2.1" {
			t.Fatalf("status is %s, %s on %s; want Running, 10.1.0.2 on 192.0.2.1", pod.Status.Phase, pod.Status.PodIP, pod.Status.HostIP)
		}
		for _, kind := range []corev1.PodConditionType{corev1.PodReady, corev1.PodInitialized, corev1.ContainersReady, corev1.PodScheduled, corev1.PodReadyToStartContainers} {
			if got := condition(pod, kind); got != corev1.ConditionTrue {
				t.Errorf("condition %s is %s", kind, got)
			}
		}
		s := pod.Status.ContainerStatuses[0]
		if !s.Ready || s.Started == nil || !*s.Started || s.State.Running == nil || !strings.HasPrefix(s.ContainerID, "containerd://") || s.Image != "busybox" {
			t.Errorf("container status is %+v", s)
		}
		if pod.Status.QOSClass != corev1.PodQOSBestEffort || pod.Status.StartTime == nil {
			t.Errorf("class %s, start %v", pod.Status.QOSClass, pod.Status.StartTime)
		}
		for _, want := range []string{"Pulled: ", "Created: Container created", "Started: Container started"} {
			r.hasEvent("web", want)
		}
		before := r.api.Writes("patch status Pod")
		r.sleep(time.Hour)
		if after := r.api.Writes("patch status Pod"); after != before {
			t.Errorf("an unchanged pod was written %d times", after-before)
		}
	})
}

func TestPodIsDeleted(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.Behave = func(container.Config) agenttest.Behavior { return agenttest.Behavior{StopTakes: 3 * time.Second} }
		r.runtime.RemoveTakes = time.Second // longer than the API takes to say that the pod is gone
		r.create(newPod("web"))
		if err := r.api.Delete(t.Context(), r.pod("web")); err != nil {
			t.Fatal(err)
		}
		r.sleep(2 * time.Second)
		if !r.exists("web") {
			t.Fatal("the pod was deleted before its container had ended")
		}
		r.sleep(2 * time.Second)
		if r.exists("web") {
			t.Fatalf("the pod is still there: %+v", r.pod("web").Status)
		}
		r.sleep(time.Second)
		if events := r.events("web"); slices.ContainsFunc(events, func(e string) bool { return strings.HasPrefix(e, "FailedKillPod") }) {
			t.Errorf("the removal was cut off: %q", events)
		}
		if list, _ := r.runtime.List(t.Context()); len(list) != 0 || r.network.Count() != 0 {
			t.Errorf("%d sandboxes and %d networks are left", len(list), r.network.Count())
		}
		r.hasEvent("web", "Killing: Stopping container main")
		if len(r.agent.Pods()) != 0 {
			t.Error("the agent still knows the pod")
		}
	})
}
