package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/controller/controllertest"
	"gantry.dev/gantry/internal/heartbeat"
)

type notes struct {
	mu   sync.Mutex
	seen []string
}

func (n *notes) Event(_ runtime.Object, kind, reason, note string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, kind+" "+reason+" "+note)
}

func newNode(name string, ready corev1.ConditionStatus, change ...func(*corev1.Node)) *corev1.Node {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if ready != "" {
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	}
	for _, f := range change {
		f(node)
	}
	return node
}

func cidr(text string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.PodCIDR, n.Spec.PodCIDRs = text, []string{text} }
}

func TestRanges(t *testing.T) {
	for name, tc := range map[string]struct {
		cluster string
		bits    int
		nodes   []string
		want    string
	}{
		"first":            {"10.42.0.0/16", 24, nil, "10.42.0.0/24"},
		"second":           {"10.42.0.0/16", 24, []string{"10.42.0.0/24"}, "10.42.1.0/24"},
		"a gap":            {"10.42.0.0/16", 24, []string{"10.42.0.0/24", "10.42.2.0/24"}, "10.42.1.0/24"},
		"a larger part":    {"10.42.0.0/16", 24, []string{"10.42.0.0/23"}, "10.42.2.0/24"},
		"none left":        {"10.42.0.0/23", 24, []string{"10.42.0.0/24", "10.42.1.0/24"}, ""},
		"end of all":       {"255.255.255.0/24", 24, []string{"255.255.255.0/24"}, ""},
		"of another range": {"10.42.0.0/16", 24, []string{"10.43.0.0/24"}, "10.42.0.0/24"},
		"six":              {"fd00:1::/56", 64, []string{"fd00:1::/64"}, "fd00:1:0:1::/64"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRanges(netip.MustParsePrefix(tc.cluster), tc.bits)
			for i, text := range tc.nodes {
				node := newNode(fmt.Sprint(i), "", cidr(text))
				node.UID = types.UID(node.Name)
				r.hold(node)
			}
			got, err := r.take("new")
			if (err != nil) != (tc.want == "") || (err == nil && got.String() != tc.want) {
				t.Errorf("take = %v, %v; want %s", got, err, tc.want)
			}
		})
	}
}

// Parts go round: one that became free is not given out before those that nobody had.
func TestRangesGoRound(t *testing.T) {
	r := newRanges(netip.MustParsePrefix("10.42.0.0/22"), 24)
	var got []string
	take := func(uid types.UID) {
		part, err := r.take(uid)
		if err != nil {
			got = append(got, "none")
			return
		}
		got = append(got, part.String())
	}
	take("a")
	take("b")
	r.release("a")
	r.release("a")
	take("c")
	take("d")
	take("e")
	take("f")
	r.release("b")
	take("f")
	take("f")
	want := []string{"10.42.0.0/24", "10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24", "10.42.0.0/24", "none", "10.42.1.0/24", "10.42.1.0/24"}
	if !slices.Equal(got, want) {
		t.Errorf("parts are %v, want %v", got, want)
	}
}

func TestPlanTaints(t *testing.T) {
	notReady := corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}
	own := corev1.Taint{Key: "example.com/own", Effect: corev1.TaintEffectNoSchedule}
	with := func(taints ...corev1.Taint) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Spec.Taints = taints }
	}
	for name, tc := range map[string]struct {
		node     *corev1.Node
		evict    bool
		want     string
		changed  bool
		settling bool
	}{
		"ready loses it":  {newNode("n", "True", with(notReady, own)), true, "example.com/own:NoSchedule", true, false},
		"not ready":       {newNode("n", "False"), true, "node.kubernetes.io/not-ready:NoSchedule node.kubernetes.io/not-ready:NoExecute", true, false},
		"unreachable":     {newNode("n", "Unknown", with(notReady)), true, "node.kubernetes.io/unreachable:NoSchedule node.kubernetes.io/unreachable:NoExecute", true, false},
		"all in trouble":  {newNode("n", "Unknown"), false, "node.kubernetes.io/unreachable:NoSchedule", true, false},
		"never reported":  {newNode("n", "", with(notReady)), true, "node.kubernetes.io/not-ready:NoSchedule", false, false},
		"cordoned":        {newNode("n", "True", func(n *corev1.Node) { n.Spec.Unschedulable = true }), true, "node.kubernetes.io/unschedulable:NoSchedule", true, false},
		"as it should be": {newNode("n", "True", with(own)), true, "example.com/own:NoSchedule", false, false},
		"settling":        {newNode("n", "True"), true, "node.kubernetes.io/unreachable:NoSchedule", true, true},
		"pressure": {newNode("n", "True", func(n *corev1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue})
		}), true, "node.kubernetes.io/disk-pressure:NoSchedule", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			taints, changed := planTaints(tc.node, tc.evict, tc.settling, time.Unix(1, 0))
			var got []string
			for _, taint := range taints {
				got = append(got, fmt.Sprintf("%s:%s", taint.Key, taint.Effect))
			}
			if strings.Join(got, " ") != tc.want || changed != tc.changed {
				t.Errorf("planTaints = %q, %t; want %q, %t", got, changed, tc.want, tc.changed)
			}
		})
	}
}

func inWorld(t *testing.T, objs []client.Object, f func(c *controllertest.Cluster, events *notes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := controllertest.New(t, objs...)
		events := &notes{}
		nc, err := New(c, c, events, Options{ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16")})
		if err != nil {
			t.Fatal(err)
		}
		evictor, err := NewEvictor(c, c, events, EvictorOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for _, run := range []func(context.Context) error{nc.Run, evictor.Run} {
			running.Go(func() {
				if err := run(ctx); err != nil {
					t.Errorf("Run = %v", err)
				}
			})
		}
		wait(time.Second)
		f(c, events)
		cancel()
		running.Wait()
	})
}

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func get(t *testing.T, c client.Client, name string) *corev1.Node {
	t.Helper()
	var node corev1.Node
	if err := c.Get(context.Background(), types.NamespacedName{Name: name}, &node); err != nil {
		t.Fatal(err)
	}
	return node.DeepCopy()
}

func renew(t *testing.T, c client.Client, name string) {
	t.Helper()
	now := metav1.NowMicro()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name}, Spec: coordinationv1.LeaseSpec{RenewTime: &now}}
	if err := c.Update(context.Background(), lease); apierrors.IsNotFound(err) {
		err = c.Create(context.Background(), lease)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCIDRsAreDistinct(t *testing.T) {
	var objs []client.Object
	for i := range 50 {
		objs = append(objs, newNode(fmt.Sprintf("n%02d", i), "True"))
	}
	inWorld(t, objs, func(c *controllertest.Cluster, _ *notes) {
		seen := map[string]bool{}
		for i := range 50 {
			seen[get(t, c, fmt.Sprintf("n%02d", i)).Spec.PodCIDR] = true
		}
		if len(seen) != 50 || seen[""] {
			t.Errorf("%d distinct CIDRs for 50 nodes: %v", len(seen), seen)
		}
	})
}

// A node for which no addresses are left is tainted like any other.
func TestNoAddressesLeft(t *testing.T) {
	var objs []client.Object
	for i := range 257 { // one more than the range has parts
		objs = append(objs, newNode(fmt.Sprintf("n%03d", i), "False"))
	}
	inWorld(t, objs, func(c *controllertest.Cluster, _ *notes) {
		without := 0
		for i := range objs {
			node := get(t, c, objs[i].GetName())
			if node.Spec.PodCIDR == "" {
				without++
			}
			if len(node.Spec.Taints) == 0 {
				t.Errorf("%s, which is not ready, has no taint; its addresses are %q", node.Name, node.Spec.PodCIDR)
			}
		}
		if without != 1 {
			t.Errorf("%d nodes have no addresses, want 1", without)
		}
	})
}

func TestSilentNode(t *testing.T) {
	five := int64(300)
	pod := func(name string, tolerations ...corev1.Toleration) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.PodSpec{NodeName: "quiet", Tolerations: tolerations},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
		}
	}
	usual := pod("usual", corev1.Toleration{Key: corev1.TaintNodeUnreachable, Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &five})
	daemon := pod("daemon", corev1.Toleration{Operator: "Exists"})
	objs := []client.Object{newNode("quiet", "True"), newNode("loud", "True"), usual, daemon}
	inWorld(t, objs, func(c *controllertest.Cluster, events *notes) {
		for range 4 {
			renew(t, c, "quiet")
			renew(t, c, "loud")
			wait(10 * time.Second)
		}
		if s := readiness(get(t, c, "quiet")); s != corev1.ConditionTrue {
			t.Errorf("quiet is %s while its lease is renewed", s)
		}
		for range 5 {
			renew(t, c, "loud")
			wait(10 * time.Second)
		}
		quiet := get(t, c, "quiet")
		ready := findCondition(quiet, corev1.NodeReady)
		if ready.Status != corev1.ConditionUnknown || ready.Reason != "NodeStatusUnknown" || len(quiet.Spec.Taints) != 2 {
			t.Errorf("condition %+v, taints %+v", ready, quiet.Spec.Taints)
		}
		if s := readiness(get(t, c, "loud")); s != corev1.ConditionTrue {
			t.Errorf("loud is %s", s)
		}
		if !slices.Contains(events.seen, "Normal NodeNotReady Node quiet status is now: NodeNotReady") {
			t.Errorf("events %q", events.seen)
		}
		var p corev1.Pod
		if err := c.Get(context.Background(), client.ObjectKeyFromObject(usual), &p); err != nil || p.Status.Conditions[0].Status != corev1.ConditionFalse {
			t.Errorf("pod of a silent node: %+v, %v", p.Status.Conditions, err)
		}
		for range 31 {
			renew(t, c, "loud")
			wait(10 * time.Second)
		}
		if err := c.Get(context.Background(), client.ObjectKeyFromObject(usual), &p); err != nil || p.DeletionTimestamp == nil {
			t.Errorf("usual not evicted after 300 s: %v", err)
		}
		if err := c.Get(context.Background(), client.ObjectKeyFromObject(daemon), &p); err != nil || p.DeletionTimestamp != nil {
			t.Errorf("daemon was evicted: %v", err)
		}
		// The node comes back.
		renew(t, c, "quiet")
		back := get(t, c, "quiet")
		findCondition(back, corev1.NodeReady).Status = corev1.ConditionTrue
		findCondition(back, corev1.NodeReady).LastHeartbeatTime = metav1.Now()
		if err := c.Status().Update(context.Background(), back); err != nil {
			t.Fatal(err)
		}
		wait(time.Second)
		if taints := get(t, c, "quiet").Spec.Taints; len(taints) != 0 {
			t.Errorf("taints left %+v", taints)
		}
	})
}

func TestOnlyNodeIsNotEvicted(t *testing.T) {
	inWorld(t, []client.Object{newNode("only", "True")}, func(c *controllertest.Cluster, _ *notes) {
		wait(time.Minute)
		taints := get(t, c, "only").Spec.Taints
		if len(taints) != 1 || taints[0].Effect != corev1.TaintEffectNoSchedule {
			t.Errorf("taints %+v, want no NoExecute", taints)
		}
	})
}

func TestEvictionIsCancelled(t *testing.T) {
	ten := int64(10)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}, Spec: corev1.PodSpec{
		NodeName: "n", Tolerations: []corev1.Toleration{{Key: "x", Operator: "Exists", TolerationSeconds: &ten}},
	}}
	tainted := newNode("n", "True", func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectNoExecute}} })
	inWorld(t, []client.Object{tainted, pod}, func(c *controllertest.Cluster, events *notes) {
		wait(5 * time.Second)
		free := get(t, c, "n")
		free.Spec.Taints = nil
		if err := c.Update(context.Background(), free); err != nil {
			t.Fatal(err)
		}
		renew(t, c, "n")
		wait(20 * time.Second)
		var p corev1.Pod
		if err := c.Get(context.Background(), client.ObjectKeyFromObject(pod), &p); err != nil || p.DeletionTimestamp != nil {
			t.Errorf("evicted all the same: %v", err)
		}
		if !slices.Contains(events.seen, "Normal TaintManagerEviction Cancelling deletion of Pod default/p") {
			t.Errorf("events %q", events.seen)
		}
	})
}

// beating is a world in which nodes send beats until they are told to be quiet.
type beating struct {
	*controllertest.Cluster
	beats *Heartbeats
	mu    sync.Mutex
	quiet map[string]bool
	said  heartbeat.Beat
}

func (b *beating) silence(names ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.quiet = map[string]bool{}
	for _, name := range names {
		b.quiet[name] = true
	}
}

// send sends one node's beats and, when it is asked to, reports that it is well.
func (b *beating) send(ctx context.Context, name string) {
	ticker := time.NewTicker(heartbeat.Every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		b.mu.Lock()
		quiet, beat := b.quiet[name], b.said
		b.mu.Unlock()
		if beat.Name = name; !quiet {
			if answer := b.beats.Beat(time.Now(), beat); answer.Report {
				var node corev1.Node
				if b.Get(ctx, types.NamespacedName{Name: name}, &node) == nil {
					well := node.DeepCopy()
					findCondition(well, corev1.NodeReady).Status = corev1.ConditionTrue
					_ = b.Status().Update(ctx, well) // a conflict: asked again with the next beat
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

func inBeatingWorld(t *testing.T, nodes int, pods []client.Object, f func(b *beating)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		objs := pods
		for i := range nodes {
			objs = append(objs, newNode(fmt.Sprintf("n%d", i), "True", func(n *corev1.Node) {
				n.Annotations = map[string]string{heartbeat.NodeAnnotation: "300ms"}
			}))
		}
		c := controllertest.New(t, objs...)
		beats, err := NewHeartbeats(HeartbeatOptions{})
		if err != nil {
			t.Fatal(err)
		}
		b := &beating{Cluster: c, beats: beats, quiet: map[string]bool{}}
		nc, err := New(c, c, &notes{}, Options{ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), Heartbeats: beats})
		if err != nil {
			t.Fatal(err)
		}
		evictor, err := NewEvictor(c, c, &notes{}, EvictorOptions{DefaultSeconds: 1})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for _, run := range []func(context.Context) error{nc.Run, evictor.Run} {
			running.Go(func() {
				if err := run(ctx); err != nil {
					t.Errorf("Run = %v", err)
				}
			})
		}
		for i := range nodes {
			running.Go(func() { b.send(ctx, fmt.Sprintf("n%d", i)) })
			time.Sleep(time.Millisecond)
		}
		wait(time.Second)
		f(b)
		cancel()
		running.Wait()
	})
}

func podOn(node, name string, conditions ...corev1.PodCondition) *corev1.Pod {
	one := int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Finalizers: []string{"test/agent"}},
		Spec: corev1.PodSpec{NodeName: node, Tolerations: []corev1.Toleration{
			{Key: corev1.TaintNodeUnreachable, Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &one}}},
		Status: corev1.PodStatus{Conditions: append(conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue})},
	}
}

func (b *beating) pod(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	err := b.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: name}, &pod)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return pod.DeepCopy()
}

// A node of 200 that is killed is NotReady, and its pods out of Services, within 2 s; its pods are deleted 1 s later, and
// when it comes back it is ready at once.
func TestAKilledNode(t *testing.T) {
	var pods []client.Object
	for i := range 100 {
		pods = append(pods, podOn("n7", fmt.Sprint("p", i)))
	}
	inBeatingWorld(t, 200, pods, func(b *beating) {
		wait(time.Minute)
		b.silence("n7")
		wait(2 * time.Second)
		if s := readiness(get(t, b, "n7")); s != corev1.ConditionUnknown {
			t.Errorf("n7 is %s 2 s after its last beat", s)
		}
		for i := range pods {
			if pod := b.pod(t, fmt.Sprint("p", i)); pod == nil || controller.PodReady(pod) || pod.DeletionTimestamp != nil {
				t.Fatalf("pod %d after 2 s: %+v; want that it is there, and not ready", i, pod)
			}
		}
		wait(time.Second)
		for i := range pods {
			if pod := b.pod(t, fmt.Sprint("p", i)); pod == nil || pod.DeletionTimestamp == nil {
				t.Fatalf("pod %d is not evicted after 3 s", i)
			}
		}
		b.silence()
		wait(time.Second)
		if node := get(t, b, "n7"); readiness(node) != corev1.ConditionTrue || len(node.Spec.Taints) > 0 {
			t.Errorf("n7 is %s with taints %v a second after it came back", readiness(node), node.Spec.Taints)
		}
		for i := range 200 {
			if s := readiness(get(t, b, fmt.Sprint("n", i))); s != corev1.ConditionTrue {
				t.Errorf("n%d is %s", i, s)
			}
		}
	})
}

// A link that flaps moves pods once; the node gets none until it has been quiet for a while.
func TestAFlappingNode(t *testing.T) {
	inBeatingWorld(t, 3, nil, func(b *beating) {
		for range 5 {
			b.silence("n1")
			wait(2 * time.Second)
			b.silence()
			wait(time.Second)
		}
		node := get(t, b, "n1")
		if readiness(node) != corev1.ConditionTrue || len(node.Spec.Taints) != 1 || node.Spec.Taints[0].Effect != corev1.TaintEffectNoSchedule {
			t.Errorf("n1 is %s with taints %v; want that it is ready and gets no pods", readiness(node), node.Spec.Taints)
		}
		wait(time.Minute)
		if taints := get(t, b, "n1").Spec.Taints; len(taints) > 0 {
			t.Errorf("after a minute of quiet it has taints %v", taints)
		}
	})
}

// A pod that only its node can run waits for it, unless the pod itself says otherwise or somebody declares the node to be off.
func TestPodsThatWaitForTheirNode(t *testing.T) {
	local := corev1.PodCondition{Type: heartbeat.ConditionFenced, Status: corev1.ConditionFalse, Reason: heartbeat.ReasonLocalVolume}
	said := podOn("n1", "said", local)
	*said.Spec.Tolerations[0].TolerationSeconds = 5
	inBeatingWorld(t, 3, []client.Object{podOn("n1", "waits", local), said}, func(b *beating) {
		evicted := func(name string) bool { return b.pod(t, name).DeletionTimestamp != nil }
		b.silence("n1")
		wait(time.Minute)
		if evicted("waits") || !evicted("said") {
			t.Errorf("waits is evicted: %t, want false; said is: %t, want true", evicted("waits"), evicted("said"))
		}
		off := get(t, b, "n1")
		off.Spec.Taints = append(off.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute})
		if err := b.Update(t.Context(), off); err != nil {
			t.Fatal(err)
		}
		wait(time.Second)
		if !evicted("waits") {
			t.Error("on a node that is out of service the pod is not evicted")
		}
	})
}

func TestReleaseOfFencedPods(t *testing.T) {
	fenced := corev1.PodCondition{Type: heartbeat.ConditionFenced, Status: corev1.ConditionTrue, Reason: heartbeat.ReasonIdentity}
	shared := fenced
	shared.Reason = heartbeat.ReasonSharedStorage
	pods := []client.Object{podOn("n1", "db-0", fenced), podOn("n1", "shared-0", shared), podOn("n1", "other")}
	for name, tc := range map[string]struct {
		said time.Duration
		want bool
	}{"a node that fences": {10 * time.Second, true}, "a node that does not": {0, false}} {
		t.Run(name, func(t *testing.T) {
			inBeatingWorld(t, 3, pods, func(b *beating) {
				b.said.FenceMillis = tc.said.Milliseconds()
				wait(time.Second)
				b.silence("n1")
				wait(14 * time.Second)
				if pod := b.pod(t, "db-0"); pod == nil || pod.DeletionTimestamp == nil || pod.Status.Phase == corev1.PodFailed {
					t.Errorf("db-0 after 14 s: %+v; want that it is on its way out, and not given away", pod)
				}
				wait(3 * time.Second)
				pod := b.pod(t, "db-0")
				if given := pod == nil || pod.Status.Phase == corev1.PodFailed; given != tc.want {
					t.Errorf("db-0 after 17 s is given away: %t, want %t", given, tc.want)
				}
				for _, name := range []string{"shared-0", "other"} {
					if pod := b.pod(t, name); pod == nil || pod.Status.Phase == corev1.PodFailed {
						t.Errorf("%s was given away", name)
					}
				}
			})
		})
	}
}

func TestReleasable(t *testing.T) {
	set := []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Controller: new(true)}}
	claim := []corev1.Volume{{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	fenced := func(status corev1.ConditionStatus, reason string) []corev1.PodCondition {
		return []corev1.PodCondition{{Type: heartbeat.ConditionFenced, Status: status, Reason: reason}}
	}
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		want   bool
	}{
		"its node said so":                {func(p *corev1.Pod) { p.Status.Conditions = fenced(corev1.ConditionTrue, heartbeat.ReasonIdentity) }, true},
		"shared storage":                  {func(p *corev1.Pod) { p.Status.Conditions = fenced(corev1.ConditionTrue, heartbeat.ReasonSharedStorage) }, false},
		"its node said that it is kept":   {func(p *corev1.Pod) { p.Status.Conditions = fenced(corev1.ConditionFalse, heartbeat.ReasonLocalVolume) }, false},
		"nothing said, of a Deployment":   {func(*corev1.Pod) {}, false},
		"nothing said, of a StatefulSet":  {func(p *corev1.Pod) { p.OwnerReferences = set }, true},
		"nothing said, with a claim":      {func(p *corev1.Pod) { p.OwnerReferences, p.Spec.Volumes = set, claim }, false},
		"nothing said, with another shim": {func(p *corev1.Pod) { p.OwnerReferences, p.Spec.RuntimeClassName = set, new("stock") }, false},
		"nothing said, and is to be kept": {func(p *corev1.Pod) {
			p.OwnerReferences, p.Annotations = set, map[string]string{"gantry.dev/when-cut-off": "keep"}
		}, false},
		"nothing said, and is to be fenced": {func(p *corev1.Pod) { p.Annotations = map[string]string{"gantry.dev/when-cut-off": "fence"} }, true},
		"not evicted":                       {func(p *corev1.Pod) { p.OwnerReferences, p.DeletionTimestamp = set, nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &metav1.Time{}}}
			tc.change(pod)
			if got := releasable(pod); got != tc.want {
				t.Errorf("releasable = %t, want %t", got, tc.want)
			}
		})
	}
}
