package agent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/agent/agenttest"
	"gantry.dev/gantry/internal/agent/eviction"
	"gantry.dev/gantry/internal/container"
)

var errSome = errors.New("some failure")

// fakeFigures are what a test says the node has left.
type fakeFigures struct {
	mu             sync.Mutex // guards the fields below
	free, freeDisk int64
	used           int64 // memory of every container and pod
	pods           eviction.Usages
	looks          int
}

// set changes what the agent, which looks at any time, is told next.
func (f *fakeFigures) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// count reads what the agent may be changing.
func (f *fakeFigures) count(read func() int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return read()
}

func (f *fakeFigures) looked() int64 { return int64(f.looks) }

func (f *fakeFigures) quick() (eviction.Observations, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	return eviction.Observations{
		eviction.MemoryAvailable: {Available: f.free, Capacity: 8 << 30, At: time.Now()},
		eviction.NodeFSAvailable: {Available: f.freeDisk, Capacity: 1000, At: time.Now()},
	}, nil
}

func (f *fakeFigures) all() (eviction.Observations, error) { return f.quick() }

func (f *fakeFigures) usages(context.Context, []*corev1.Pod, bool) eviction.Usages {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pods
}

func (f *fakeFigures) storage(_ context.Context, pod *corev1.Pod) (eviction.Usage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pods[string(pod.UID)], nil
}

func (f *fakeFigures) memoryOf(*corev1.Pod, string) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used, nil
}

func (f *fakeFigures) split() bool { return false }

// underPressure runs a test on a node with upstream's thresholds that has plenty of everything.
func underPressure(t *testing.T, test func(r *rig, f *fakeFigures)) {
	bubble(t, func(r *rig) {
		thresholds, err := eviction.Parse(eviction.DefaultHard(), nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		f := &fakeFigures{free: 4 << 30, freeDisk: 500, pods: eviction.Usages{}}
		r.opts.Eviction, r.figures = Eviction{Thresholds: thresholds}, f
		r.restart()
		test(r, f)
	})
}

func named(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Name = name }
}

func (r *rig) nodeCondition(kind corev1.NodeConditionType) corev1.NodeCondition {
	r.t.Helper()
	var node corev1.Node
	if err := r.api.Get(r.t.Context(), client.ObjectKey{Name: "node-1"}, &node); err != nil {
		r.t.Fatal(err)
	}
	for _, c := range node.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.NodeCondition{}
}

func TestEvictionForMemory(t *testing.T) {
	underPressure(t, func(r *rig, f *fakeFigures) {
		r.create(newPod("good", guaranteed("", "1Gi"), named("good")))
		r.create(newPod("bad", named("bad")))
		f.set(func() {
			f.pods = eviction.Usages{
				"uid-good": {MemoryBytes: 500 << 20},
				"uid-bad":  {MemoryBytes: 200 << 20, Containers: []eviction.ContainerUsage{{Name: "bad", MemoryBytes: 200 << 20}}},
			}
		})
		r.runtime.OnExit = func(c container.Config, _ behavior) {
			if c.Name == "bad" {
				f.set(func() { f.free = 4 << 30 })
			}
		}
		f.set(func() { f.free = 50 << 20 })
		r.sleep(2 * time.Second)
		bad := r.pod("bad")
		want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container bad was using 200Mi, request is 0, has larger consumption of memory. "
		if bad.Status.Phase != corev1.PodFailed || bad.Status.Reason != "Evicted" || bad.Status.Message != want {
			t.Fatalf("bad is %s, %s, %q", bad.Status.Phase, bad.Status.Reason, bad.Status.Message)
		}
		c := podCondition(bad, corev1.DisruptionTarget)
		if c == nil || c.Status != corev1.ConditionTrue || c.Reason != corev1.PodReasonTerminationByKubelet || c.Message != want {
			t.Errorf("its condition is %+v", c)
		}
		r.hasEvent("bad", "Evicted: "+strings.TrimSpace(want))
		r.hasEvent("node-1", "EvictionThresholdMet: Attempting to reclaim memory")
		if got := r.nodeCondition(corev1.NodeMemoryPressure); got.Status != corev1.ConditionTrue || got.Reason != "KubeletHasInsufficientMemory" {
			t.Errorf("the node's condition is %+v", got)
		}
		if r.pod("good").Status.Phase != corev1.PodRunning {
			t.Error("the pod that keeps to what it asked for was ended")
		}
		r.create(newPod("late"))
		late := r.pod("late")
		if late.Status.Reason != "Evicted" || late.Status.Message != "Pod was rejected: The node had condition: [MemoryPressure]. " {
			t.Errorf("a best-effort pod is %s, %s, %q", late.Status.Phase, late.Status.Reason, late.Status.Message)
		}
		r.create(newPod("burstable", guaranteed("", "1Mi")))
		if r.pod("burstable").Status.Phase != corev1.PodRunning {
			t.Errorf("a pod with requests is %+v", r.pod("burstable").Status)
		}
		r.sleep(5*time.Minute + 15*time.Second)
		if got := r.nodeCondition(corev1.NodeMemoryPressure); got.Status != corev1.ConditionFalse || got.Reason != "KubeletHasSufficientMemory" {
			t.Errorf("after the transition period the node's condition is %+v", got)
		}
		r.hasEvent("node-1", "NodeHasInsufficientMemory: ")
		r.hasEvent("node-1", "NodeHasSufficientMemory: ")
	})
}

// TestEvictionEndsOneAtATime keeps memory short until two pods are gone.
func TestEvictionEndsOneAtATime(t *testing.T) {
	underPressure(t, func(r *rig, f *fakeFigures) {
		r.runtime.Behave = stubborn
		for _, name := range []string{"a", "b", "c"} {
			r.create(newPod(name, named(name)))
		}
		f.set(func() {
			f.pods = eviction.Usages{"uid-a": {MemoryBytes: 1}, "uid-b": {MemoryBytes: 3}, "uid-c": {MemoryBytes: 2}}
		})
		f.set(func() { f.free = 50 << 20 })
		r.sleep(1500 * time.Millisecond)
		if a, b, c := r.pod("a"), r.pod("b"), r.pod("c"); a.Status.Phase != corev1.PodRunning || c.Status.Phase != corev1.PodRunning || b.Status.Phase != corev1.PodRunning {
			t.Fatalf("before its container has ended: a %s, b %s, c %s", a.Status.Phase, b.Status.Phase, c.Status.Phase)
		}
		r.hasEvent("b", "Evicted: ")
		r.sleep(2 * time.Second) // the least that containers get
		if b, c := r.pod("b"), r.pod("c"); b.Status.Phase != corev1.PodFailed || c.Status.Phase != corev1.PodRunning {
			t.Fatalf("b %s, c %s", b.Status.Phase, c.Status.Phase)
		}
		r.sleep(time.Second)
		f.set(func() { f.free = 4 << 30 })
		r.sleep(10 * time.Second)
		if a, c := r.pod("a"), r.pod("c"); c.Status.Phase != corev1.PodFailed || a.Status.Phase != corev1.PodRunning {
			t.Errorf("a %s, c %s", a.Status.Phase, c.Status.Phase)
		}
	})
}

type behavior = agenttest.Behavior

func stubborn(container.Config) behavior { return behavior{IgnoreStop: true} }

func TestDiskPressureFreesImagesFirst(t *testing.T) {
	underPressure(t, func(r *rig, f *fakeFigures) {
		r.create(newPod("web"))
		if _, err := r.images.Pull(t.Context(), "old:1", nil); err != nil {
			t.Fatal(err)
		}
		r.agent.unused.since["sha256:old:1"] = time.Now().Add(-time.Hour)
		r.images.OnRemove = func(string) { f.set(func() { f.freeDisk = 500 }) }
		f.set(func() { f.freeDisk = 50 })
		r.sleep(12 * time.Second)
		if images, _ := r.images.Images(t.Context()); len(images) != 1 || f.count(func() int64 { return f.freeDisk }) != 500 {
			t.Errorf("%d images are left", len(images))
		}
		if r.pod("web").Status.Phase != corev1.PodRunning {
			t.Error("a pod was ended though an image was enough")
		}
		if got := r.nodeCondition(corev1.NodeDiskPressure); got.Status != corev1.ConditionTrue || got.Reason != "KubeletHasDiskPressure" {
			t.Errorf("the node's condition is %+v", got)
		}
		r.create(newPod("late", guaranteed("1", "1Mi")))
		if late := r.pod("late"); late.Status.Reason != "Evicted" {
			t.Errorf("a pod that comes under disk pressure is %+v", late.Status)
		}
		r.create(newPod("critical", func(p *corev1.Pod) {
			n := int32(systemCritical)
			p.Spec.Priority = &n
		}))
		if r.pod("critical").Status.Phase != corev1.PodRunning {
			t.Errorf("a critical pod is %+v", r.pod("critical").Status)
		}
	})
}

func TestStorageLimits(t *testing.T) {
	underPressure(t, func(r *rig, f *fakeFigures) {
		size := resource.MustParse("1Mi")
		r.create(newPod("filler", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}}}}
		}))
		r.sleep(15 * time.Second)
		if r.pod("filler").Status.Phase != corev1.PodRunning {
			t.Fatalf("it is %+v", r.pod("filler").Status)
		}
		f.set(func() {
			f.pods = eviction.Usages{"uid-filler": {Volumes: map[string]eviction.Disk{"data": {Bytes: 2 << 20}}}}
		})
		r.sleep(11 * time.Second)
		p := r.pod("filler")
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Evicted" || p.Status.Message != `Usage of EmptyDir volume "data" exceeds the limit "1Mi". ` {
			t.Errorf("it is %s, %s, %q", p.Status.Phase, p.Status.Reason, p.Status.Message)
		}
		if podCondition(p, corev1.DisruptionTarget) != nil {
			t.Error("a pod that broke its own limit was not disrupted")
		}
	})
}

func TestMemoryIsWatchedOftenWhenItIsShort(t *testing.T) {
	underPressure(t, func(r *rig, f *fakeFigures) {
		f.set(func() { f.looks = 0 })
		r.sleep(10 * time.Second)
		if looks := f.count(f.looked); looks < 9 || looks > 12 {
			t.Errorf("%d looks in 10 s", looks)
		}
		f.set(func() { f.free, f.looks = 150<<20, 0 })
		r.sleep(10 * time.Second)
		if looks := f.count(f.looked); looks < 36 {
			t.Errorf("%d looks in 10 s when memory is short", looks)
		}
	})
}

func TestAdmissionOnTheNode(t *testing.T) {
	bubble(t, func(r *rig) {
		for name, tc := range map[string]struct {
			edit            func(*corev1.Pod)
			reason, message string
		}{
			"cpu":      {guaranteed("5", ""), "OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu, requested: 5000, used: 0, capacity: 4000"},
			"selector": {func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"no": "such"} }, "NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"},
			"windows":  {func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, "PodOSNotSupported", "Pod was rejected: Failed to admit pod as the OS field doesn't match node OS"},
		} {
			r.create(newPod(name, tc.edit))
			r.sleep(time.Second)
			if p := r.pod(name); p.Status.Phase != corev1.PodFailed || p.Status.Reason != tc.reason || p.Status.Message != tc.message {
				t.Errorf("%s is %s, %s, %q", name, p.Status.Phase, p.Status.Reason, p.Status.Message)
			}
		}
	})
}

func TestCriticalPodGetsRoom(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.Behave = func(container.Config) behavior { return behavior{StopTakes: 3 * time.Second} }
		r.create(newPod("big", guaranteed("3", ""), named("big")))
		r.create(newPod("small", guaranteed("1", ""), named("small")))
		critical := func(p *corev1.Pod) {
			n := int32(systemCritical)
			p.Spec.Priority = &n
		}
		r.create(newPod("needed", guaranteed("2", ""), critical, named("needed")))
		r.sleep(2 * time.Second)
		if p := r.pod("needed"); p.Status.Phase != corev1.PodPending {
			t.Errorf("it is %s while the others still run", p.Status.Phase)
		}
		r.sleep(3 * time.Second)
		big := r.pod("big")
		if big.Status.Phase != corev1.PodFailed || big.Status.Reason != "Preempting" || big.Status.Message != "Preempted in order to admit critical pod" {
			t.Errorf("big is %s, %s, %q", big.Status.Phase, big.Status.Reason, big.Status.Message)
		}
		if c := podCondition(big, corev1.DisruptionTarget); c == nil || c.Message != "Pod was preempted by Kubelet to accommodate a critical pod." {
			t.Errorf("its condition is %+v", c)
		}
		if r.pod("needed").Status.Phase != corev1.PodRunning || r.pod("small").Status.Phase != corev1.PodRunning {
			t.Errorf("needed is %s, small %s", r.pod("needed").Status.Phase, r.pod("small").Status.Phase)
		}
		r.create(newPod("huge", guaranteed("9", ""), critical))
		r.sleep(time.Second)
		if p := r.pod("huge"); p.Status.Reason != "UnexpectedAdmissionError" {
			t.Errorf("one that can never fit is %+v", p.Status)
		}
	})
}

func TestShutdown(t *testing.T) {
	bubble(t, func(r *rig) {
		events := make(chan bool)
		released := make(chan struct{}, 1)
		r.opts.Shutdown = Shutdown{
			Classes: ShutdownClasses(10*time.Second, 4*time.Second),
			Watch: func(ctx context.Context, delay time.Duration, on func(context.Context, bool)) error {
				if delay != 10*time.Second {
					t.Errorf("the machine is held back for %v", delay)
				}
				for {
					select {
					case <-ctx.Done():
						return ctx.Err()
					case stopping := <-events:
						on(ctx, stopping)
						released <- struct{}{}
					}
				}
			},
		}
		r.restart()
		r.runtime.Behave = stubborn
		r.create(newPod("web", named("web")))
		r.create(newPod("needed", named("needed"), func(p *corev1.Pod) {
			n := int32(systemCritical + 1000)
			p.Spec.Priority = &n
		}))
		events <- true
		r.sleep(time.Second)
		if c := r.nodeCondition(corev1.NodeReady); c.Status != corev1.ConditionFalse || c.Message != "node is shutting down" {
			t.Errorf("the node is %+v", c)
		}
		r.create(newPod("late"))
		if p := r.pod("late"); p.Status.Reason != "NodeShutdown" || p.Status.Message != "Pod was rejected: Pod was rejected as the node is shutting down." {
			t.Errorf("a new pod is %+v", p.Status)
		}
		if p := r.pod("needed"); p.Status.Phase != corev1.PodRunning {
			t.Errorf("the critical pod is %s before its turn", p.Status.Phase)
		}
		r.sleep(5 * time.Second)
		p := r.pod("web")
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Terminated" || p.Status.Message != shutdownMessage || podCondition(p, corev1.DisruptionTarget) == nil {
			t.Errorf("web is %+v", p.Status)
		}
		r.sleep(4 * time.Second)
		if p := r.pod("needed"); p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Terminated" {
			t.Errorf("the critical pod is %+v", p.Status)
		}
		select {
		case <-released:
		default:
			t.Error("the machine is still held back")
		}
		events <- false
		r.sleep(time.Second)
		if c := r.nodeCondition(corev1.NodeReady); c.Status != corev1.ConditionTrue {
			t.Errorf("after the shutdown was called off the node is %+v", c)
		}
	})
}
