package workload

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func newDaemonSet(change ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	history := int32(10)
	ds := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "log"},
		Spec:       appsv1.DaemonSetSpec{Selector: selector(), Template: template("nginx:1"), RevisionHistoryLimit: &history},
	}
	rolls("0", "1")(ds)
	for _, f := range change {
		f(ds)
	}
	return ds
}

// rolls sets the limits of a rolling update.
func rolls(surge, unavailable string) func(*appsv1.DaemonSet) {
	s, u := intstr.Parse(surge), intstr.Parse(unavailable)
	return func(ds *appsv1.DaemonSet) {
		ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{
			Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: &s, MaxUnavailable: &u},
		}
	}
}

func newNode(name string, taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"disk": "ssd"}}, Spec: corev1.NodeSpec{Taints: taints}}
}

func nodes(count int) []client.Object {
	var out []client.Object
	for i := range count {
		out = append(out, newNode(fmt.Sprintf("n%d", i)))
	}
	return out
}

func (w *world) daemon() *appsv1.DaemonSet {
	w.t.Helper()
	var ds appsv1.DaemonSet
	if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: "log"}, &ds); err != nil {
		w.t.Fatal(err)
	}
	return ds.DeepCopy()
}

func (w *world) changeDaemon(f func(ds *appsv1.DaemonSet)) {
	w.t.Helper()
	ds := w.daemon()
	f(ds)
	if err := w.Update(context.Background(), ds); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) changeNode(name string, f func(node *corev1.Node)) {
	w.t.Helper()
	var node corev1.Node
	if err := w.Get(context.Background(), types.NamespacedName{Name: name}, &node); err != nil {
		w.t.Fatal(err)
	}
	next := node.DeepCopy()
	f(next)
	if err := w.Update(context.Background(), next); err != nil {
		w.t.Fatal(err)
	}
}

// onNodes prints the pods as "node image", in order.
func (w *world) onNodes() string {
	var out []string
	for _, pod := range w.pods() {
		out = append(out, pod.Spec.NodeName+" "+pod.Spec.Containers[0].Image)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// daemonPods makes pods from "a@r1 b@r2:pending b@r1:gone": node, revision and state (ready
// if none is given). Their names are like "a-0".
func daemonPods(text string, now time.Time) []*corev1.Pod {
	var pods []*corev1.Pod
	for i, word := range strings.Fields(text) {
		word, state, _ := strings.Cut(word, ":")
		node, revision, _ := strings.Cut(word, "@")
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("%s-%d", node, i), UID: types.UID(fmt.Sprint(i)), CreationTimestamp: metav1.NewTime(now.Add(time.Duration(i) * time.Second)),
			Labels: map[string]string{appsv1.DefaultDaemonSetUniqueLabelKey: revision},
		}}
		pod.Spec.NodeName = node
		pod.Status.Phase = corev1.PodRunning
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}}
		switch state {
		case "pending":
			pod.Status = corev1.PodStatus{Phase: corev1.PodPending}
		case "failed":
			pod.Status = corev1.PodStatus{Phase: corev1.PodFailed}
		case "done":
			pod.Status = corev1.PodStatus{Phase: corev1.PodSucceeded}
		case "waits":
			pod.Status = corev1.PodStatus{Phase: corev1.PodPending}
			pod.Spec.NodeName = ""
			pod.Spec.Affinity = pinTo(nil, node)
		case "gone":
			at := metav1.NewTime(now)
			pod.DeletionTimestamp = &at
		}
		pods = append(pods, pod)
	}
	return pods
}

func TestDaemonSetPlan(t *testing.T) {
	now := time.Unix(1e9, 0)
	surge := []func(*appsv1.DaemonSet){rolls("1", "0")}
	onDelete := func(ds *appsv1.DaemonSet) {
		ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
	}
	for name, tc := range map[string]struct {
		change []func(*appsv1.DaemonSet)
		nodes  string // "a b:keep c:none"
		pods   string
		held   time.Duration
		want   string
	}{
		"one on each":                        {nil, "a b", "", 0, "create a, create b"},
		"one where none is":                  {nil, "a b", "a@r2", 0, "create b"},
		"not beside one that goes":           {nil, "a", "a@r2:gone", 0, ""},
		"not where it only may stay":         {nil, "a b:keep", "a@r2 b@r2", 0, ""},
		"not created where it only may stay": {nil, "a:keep", "", 0, ""},
		"not where none should be":           {nil, "a:none", "a@r2", 0, "delete a-0"},
		"one too many, the oldest stays":     {nil, "a", "a@r2 a@r2", 0, "delete a-1"},
		"a failed one":                       {nil, "a", "a@r2:failed", 0, "delete a-0"},
		"a failed one is held":               {nil, "a", "a@r2:failed", time.Minute, ""},
		"a done one":                         {nil, "a", "a@r2:done", 0, "delete a-0"},
		"waits for a node that is gone":      {nil, "a", "a@r2 b@r2:waits", 0, "delete b-1"},
		"waits for its node":                 {nil, "a", "a@r2:waits", 0, ""},
		"rolls one":                          {nil, "a b c", "a@r1 b@r1 c@r1", 0, "delete a-0"},
		"waits while one is down":            {nil, "a b c", "a@r2:pending b@r1 c@r1", 0, ""},
		"an old one that is down goes":       {nil, "a b c", "a@r2:pending b@r1:pending c@r1", 0, "delete b-1"},
		"half may be down":                   {[]func(*appsv1.DaemonSet){rolls("0", "50%")}, "a b c", "a@r1 b@r1 c@r1", 0, "delete a-0, delete b-1"},
		"on delete":                          {[]func(*appsv1.DaemonSet){onDelete}, "a b", "a@r1 b@r1", 0, ""},
		"surge: a new one beside":            {surge, "a b", "a@r1 b@r1", 0, "create a"},
		"surge: waits for it":                {surge, "a b", "a@r1 a@r2:pending b@r1", 0, ""},
		"surge: takes the old one away":      {surge, "a b", "a@r1 a@r2 b@r1", 0, "delete a-0"},
		"surge: an old one that is down":     {surge, "a b", "a@r1:pending b@r1", 0, "create a, create b"},
		"surge: beside one that goes":        {surge, "a", "a@r2:gone", 0, "create a"},
		"surge: three on a node":             {surge, "a", "a@r1 a@r1 a@r2:pending", 0, "delete a-1"},
		"surge: unwanted ones last":          {surge, "a b:keep", "a@r2 b@r1", 0, "delete b-1"},
		"surge: unwanted ones stay for now":  {surge, "a b:keep", "a@r2:pending b@r1", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var fits []nodeFit
			for _, word := range strings.Fields(tc.nodes) {
				node, state, _ := strings.Cut(word, ":")
				fits = append(fits, nodeFit{node, map[string]fit{"": fitRun, "keep": fitKeep, "none": fitNone}[state]})
			}
			state := daemonState{
				ds: newDaemonSet(tc.change...), nodes: fits, pods: daemonPods(tc.pods, now), hash: "r2", now: now,
				held: func(string) time.Duration { return tc.held },
			}
			plan := planDaemonSet(state, state.places())
			var out []string
			for _, node := range plan.create {
				out = append(out, "create "+node)
			}
			for _, pod := range plan.remove {
				out = append(out, "delete "+pod.Name)
			}
			if got := strings.Join(out, ", "); got != tc.want || plan.again != tc.held {
				t.Errorf("plan %q again after %v, want %q after %v", got, plan.again, tc.want, tc.held)
			}
		})
	}
}

func TestDaemonSetFit(t *testing.T) {
	taint := func(key string, effect corev1.TaintEffect) corev1.Taint {
		return corev1.Taint{Key: key, Effect: effect}
	}
	onlySSD := func(spec *corev1.PodSpec) { spec.NodeSelector = map[string]string{"disk": "ssd"} }
	onlyHDD := func(spec *corev1.PodSpec) { spec.NodeSelector = map[string]string{"disk": "hdd"} }
	for name, tc := range map[string]struct {
		taints []corev1.Taint
		change func(*corev1.PodSpec)
		want   fit
	}{
		"plain":                 {nil, nil, fitRun},
		"selected":              {nil, onlySSD, fitRun},
		"not selected":          {nil, onlyHDD, fitNone},
		"another node":          {nil, func(spec *corev1.PodSpec) { spec.NodeName = "other" }, fitNone},
		"cordoned":              {[]corev1.Taint{taint(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)}, nil, fitRun},
		"not ready":             {[]corev1.Taint{taint(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)}, nil, fitRun},
		"no network":            {[]corev1.Taint{taint(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)}, nil, fitKeep},
		"no network needed":     {[]corev1.Taint{taint(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)}, func(spec *corev1.PodSpec) { spec.HostNetwork = true }, fitRun},
		"kept free":             {[]corev1.Taint{taint("gpu", corev1.TaintEffectNoSchedule)}, nil, fitKeep},
		"kept free and cleared": {[]corev1.Taint{taint("gpu", corev1.TaintEffectNoSchedule), taint("gpu", corev1.TaintEffectNoExecute)}, nil, fitNone},
		"tolerated": {[]corev1.Taint{taint("gpu", corev1.TaintEffectNoExecute)}, func(spec *corev1.PodSpec) {
			spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}, fitRun},
		"only better not": {[]corev1.Taint{taint("gpu", corev1.TaintEffectPreferNoSchedule)}, nil, fitRun},
	} {
		t.Run(name, func(t *testing.T) {
			pods := template("nginx:1")
			if tc.change != nil {
				tc.change(&pods.Spec)
			}
			rule := ruleOf(&pods)
			if got := rule.of(newNode("n", tc.taints...)); got != tc.want {
				t.Errorf("fit %d, want %d", got, tc.want)
			}
		})
	}
}

func TestDaemonSetLife(t *testing.T) {
	counted := func(ds *appsv1.DaemonSet) {
		ds.Annotations = map[string]string{appsv1.DeprecatedTemplateGeneration: "1"}
	}
	inWorld(t, append(nodes(3), newDaemonSet(counted)), func(w *world) {
		w.settle()
		if got, want := w.onNodes(), "n0 nginx:1, n1 nginx:1, n2 nginx:1"; got != want {
			t.Fatalf("pods %s, want %s", got, want)
		}
		want := appsv1.DaemonSetStatus{
			CurrentNumberScheduled: 3, DesiredNumberScheduled: 3, NumberReady: 3, ObservedGeneration: 1, UpdatedNumberScheduled: 3, NumberAvailable: 3,
		}
		if diff := cmp.Diff(want, w.daemon().Status); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
		pods := template("nginx:1")
		hash := TemplateHash(&pods, nil)
		pod := w.pods()[0]
		if diff := cmp.Diff(map[string]string{"app": "web", "controller-revision-hash": hash, "pod-template-generation": "1"}, pod.Labels); diff != "" {
			t.Errorf("labels (-want +got):\n%s", diff)
		}
		if n := len(pod.Spec.Tolerations); n != 6 || pod.GenerateName != "log-" {
			t.Errorf("%d tolerations, want 6; name from %q", n, pod.GenerateName)
		}
		revision := w.revisions()[0]
		if revision.Name != "log-"+hash || revision.Labels["controller-revision-hash"] != hash || revision.Revision != 1 {
			t.Errorf("revision %+v", revision.ObjectMeta)
		}
		// Nodes come, are kept free, cleared and go.
		if err := w.Create(context.Background(), newNode("n3")); err != nil {
			t.Fatal(err)
		}
		w.changeNode("n0", func(node *corev1.Node) {
			node.Spec.Taints = []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}}
		})
		w.changeNode("n1", func(node *corev1.Node) {
			node.Spec.Taints = []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoExecute}}
		})
		w.settle()
		if got, want := w.onNodes(), "n0 nginx:1, n2 nginx:1, n3 nginx:1"; got != want {
			t.Errorf("pods %s, want %s", got, want)
		}
		if status := w.daemon().Status; status.NumberMisscheduled != 1 || status.DesiredNumberScheduled != 2 {
			t.Errorf("status %+v", status)
		}
		w.changeNode("n0", func(node *corev1.Node) { node.Spec.Taints = nil })
		w.changeDaemon(func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.NodeSelector = map[string]string{"disk": "none"} })
		w.settle()
		if status := w.daemon().Status; len(w.pods()) != 0 || status.DesiredNumberScheduled != 0 || status.NumberMisscheduled != 0 {
			t.Errorf("%d pods, status %+v", len(w.pods()), status)
		}
	})
}

// watchDaemonLimits fails the test when a node has too many pods or too few are ready.
func watchDaemonLimits(w *world, perNode, leastReady int) func(controllertest.Write) error {
	return func(write controllertest.Write) error {
		pod, ok := write.Object.(*corev1.Pod)
		if !ok || write.Sub != "" {
			return nil
		}
		ready, beside := 0, 0
		for _, other := range w.pods() {
			if _, ok := readySince(&other); ok && active(&other) {
				ready++
			}
			if active(&other) && pinned(&other) == pinned(pod) {
				beside++
			}
		}
		switch {
		case write.Verb == "create" && beside >= perNode:
			w.t.Errorf("a pod is created on %s beside %d", pinned(pod), beside)
		case write.Verb == "delete" && pod.DeletionTimestamp == nil && ready <= leastReady:
			w.t.Errorf("a pod is deleted with %d ready, want more than %d", ready, leastReady)
		}
		return nil
	}
}

func TestDaemonSetRolls(t *testing.T) {
	for name, tc := range map[string]struct {
		strategy            func(*appsv1.DaemonSet)
		perNode, leastReady int
	}{
		"two unavailable": {rolls("0", "2"), 1, 3},
		"two surging":     {rolls("2", "0"), 2, 5},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, append(nodes(5), newDaemonSet(tc.strategy)), func(w *world) {
				w.settle()
				w.SetBeforeWrite(watchDaemonLimits(w, tc.perNode, tc.leastReady))
				w.changeDaemon(func(ds *appsv1.DaemonSet) { ds.Spec.Template = template("nginx:2") })
				w.settle()
				if got, want := w.onNodes(), "n0 nginx:2, n1 nginx:2, n2 nginx:2, n3 nginx:2, n4 nginx:2"; got != want {
					t.Errorf("pods %s, want %s", got, want)
				}
				if status := w.daemon().Status; status.UpdatedNumberScheduled != 5 || status.NumberAvailable != 5 {
					t.Errorf("status %+v", status)
				}
				w.changeDaemon(func(ds *appsv1.DaemonSet) { ds.Spec.Template = template("nginx:1") })
				w.settle()
				numbers := map[string]int64{}
				for _, revision := range w.revisions() {
					numbers[revision.Name] = revision.Revision
				}
				pods := template("nginx:1")
				if len(numbers) != 2 || numbers["log-"+TemplateHash(&pods, nil)] != 3 {
					t.Errorf("revisions %v, want the first one as the third", numbers)
				}
			})
		})
	}
}

func TestDaemonSetOnDeleteAndHistory(t *testing.T) {
	limit := int32(1)
	inWorld(t, append(nodes(2), newDaemonSet(func(ds *appsv1.DaemonSet) {
		ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
		ds.Spec.RevisionHistoryLimit = &limit
	})), func(w *world) {
		w.settle()
		for i := 2; i < 6; i++ {
			w.changeDaemon(func(ds *appsv1.DaemonSet) { ds.Spec.Template = template(fmt.Sprintf("nginx:%d", i)) })
			w.settle()
		}
		if got, want := w.onNodes(), "n0 nginx:1, n1 nginx:1"; got != want {
			t.Errorf("pods %s, want %s", got, want)
		}
		gone := w.pods()[0]
		if err := w.Delete(context.Background(), &gone); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if got, want := w.onNodes(), "n0 nginx:5, n1 nginx:1"; got != want {
			t.Errorf("pods %s, want %s", got, want)
		}
		var kept []int64
		for _, revision := range w.revisions() {
			kept = append(kept, revision.Revision)
		}
		slices.Sort(kept)
		if diff := cmp.Diff([]int64{1, 5}, kept); diff != "" {
			t.Errorf("revisions (-want +got):\n%s", diff)
		}
	})
}

func TestDaemonSetHoldsFailedPodsBack(t *testing.T) {
	inWorld(t, append(nodes(1), newDaemonSet()), func(w *world) {
		w.settle()
		fail := func() types.UID {
			pod := w.pods()[0].DeepCopy()
			pod.Status.Phase = corev1.PodFailed
			if err := w.Status().Update(context.Background(), pod); err != nil {
				t.Fatal(err)
			}
			return pod.UID
		}
		first := fail()
		w.settle()
		if w.pods()[0].UID == first {
			t.Fatal("the first failed pod is not replaced")
		}
		want := fmt.Sprintf("Warning FailedDaemonPod Found failed daemon pod default/%s on node n0, will try to kill it", "log-")
		if !slices.ContainsFunc(w.events.all(), func(e string) bool { return strings.HasPrefix(e, want[:60]) }) {
			t.Errorf("events %q", w.events.all())
		}
		lived := map[types.UID]bool{}
		for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); {
			if pods := w.pods(); len(pods) == 1 && !finished(&pods[0]) && pods[0].Spec.NodeName != "" {
				lived[fail()] = true
			}
			time.Sleep(time.Second)
			synctest.Wait()
			w.play()
		}
		if n := len(lived); n < 5 || n > 15 {
			t.Errorf("%d pods failed in ten minutes, want waits that double", n)
		}
	})
}

func TestDaemonSetHashCollisionAndDuplicates(t *testing.T) {
	ds := newDaemonSet()
	taken := &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "log-" + TemplateHash(&ds.Spec.Template, nil)}}
	inWorld(t, append(nodes(1), ds, taken), func(w *world) {
		w.settle()
		if got := w.daemon().Status.CollisionCount; got == nil || *got != 1 || len(w.pods()) != 1 {
			t.Fatalf("collisions %v, %d pods", got, len(w.pods()))
		}
		one := int32(1)
		original := slices.IndexFunc(w.revisions(), func(r appsv1.ControllerRevision) bool { return r.Name == "log-"+TemplateHash(&ds.Spec.Template, &one) })
		twin := w.revisions()[original].DeepCopy()
		twin.Name, twin.UID, twin.ResourceVersion, twin.Revision = "log-twin", "", "", 7
		twin.Labels = map[string]string{"app": "web"}
		before := w.pods()[0].UID
		if err := w.Create(context.Background(), twin); err != nil {
			t.Fatal(err)
		}
		w.changeDaemon(func(ds *appsv1.DaemonSet) { ds.Spec.MinReadySeconds = 1 })
		w.settle()
		if len(w.revisions()) != 2 || w.pods()[0].UID != before || w.pods()[0].Labels["controller-revision-hash"] != "log-twin" {
			t.Errorf("%d revisions, pod labels %v", len(w.revisions()), w.pods()[0].Labels)
		}
	})
}

// TestDaemonSetCrashBetweenWrites lets every write after the Nth fail until the controllers
// are started again, for each N: the end is the same and the limits are kept on the way.
func TestDaemonSetCrashBetweenWrites(t *testing.T) {
	for name, tc := range map[string]struct {
		strategy            func(*appsv1.DaemonSet)
		perNode, leastReady int
	}{
		"unavailable": {rolls("0", "1"), 1, 2},
		"surge":       {rolls("1", "0"), 2, 3},
	} {
		t.Run(name, func(t *testing.T) {
			undisturbed, writes := crashDaemon(t, tc.strategy, tc.perNode, tc.leastReady, math.MaxInt)
			for n := 0; n <= writes; n++ {
				if got, _ := crashDaemon(t, tc.strategy, tc.perNode, tc.leastReady, n); got != undisturbed {
					t.Fatalf("crash after write %d ends in\n%s\nwant\n%s", n, got, undisturbed)
				}
			}
		})
	}
}

// crashDaemon starts pods on 3 nodes and rolls them to a new template, with a crash after
// so many writes of the controllers. It returns the end state and how many writes there were.
func crashDaemon(t *testing.T, strategy func(*appsv1.DaemonSet), perNode, leastReady, after int) (end string, writes int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{Cluster: controllertest.New(t, append(nodes(3), newDaemonSet(strategy))...), t: t, events: &notes{}}
		check := watchDaemonLimits(w, perNode, leastReady)
		var mu sync.Mutex // guards crashed and writes
		crashed := false
		w.SetBeforeWrite(func(write controllertest.Write) error {
			pod, isPod := write.Object.(*corev1.Pod)
			_, isSet := write.Object.(*appsv1.DaemonSet)
			if (isPod && (write.Sub != "" || pod.DeletionTimestamp != nil)) || (isSet && write.Sub == "") {
				return nil // the node's or the user's, not a controller's
			}
			mu.Lock()
			defer mu.Unlock()
			if crashed = crashed || writes >= after; crashed {
				return errors.New("crashed")
			}
			writes++
			return check(write)
		})
		for phase := range 2 {
			for life := 0; ; life++ {
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				w.start(ctx, &running)
				if phase == 1 && life == 0 {
					w.changeDaemon(func(ds *appsv1.DaemonSet) { ds.Spec.Template = template("nginx:2") })
				}
				w.settle()
				cancel()
				running.Wait()
				if !crashed {
					break
				}
				crashed, after = false, math.MaxInt // the next life is spared
			}
		}
		out := []string{w.onNodes()}
		for _, revision := range w.revisions() {
			out = append(out, fmt.Sprintf("%s %d", revision.Name, revision.Revision))
		}
		status := w.daemon().Status
		status.Conditions = nil
		end = strings.Join(append(out, fmt.Sprintf("%+v", status)), "\n")
	})
	return end, writes
}

func TestPlacesFollowNodes(t *testing.T) {
	woken := 0
	p := places{wake: func(types.NamespacedName) { woken++ }}
	for i := range 3 {
		p.onNode(nil, newNode(fmt.Sprintf("n%d", i)))
	}
	ds := newDaemonSet()
	before := p.of(ds)
	tainted := newNode("n1", corev1.Taint{Key: "gpu", Effect: corev1.TaintEffectNoSchedule})
	p.onNode(newNode("n1"), tainted)
	p.onNode(tainted, tainted.DeepCopy()) // a heartbeat
	p.onNode(newNode("n2"), nil)
	p.onNode(nil, newNode("n0a"))
	want := []nodeFit{{"n0", fitRun}, {"n0a", fitRun}, {"n1", fitKeep}}
	if got := p.of(ds); !slices.Equal(got, want) || woken != 3 {
		t.Errorf("fits %v with %d wakings, want %v with 3", got, woken, want)
	}
	if len(before) != 3 || before[1].fit != fitRun {
		t.Errorf("an earlier answer was changed: %v", before)
	}
}

func BenchmarkDaemonSetPass(b *testing.B) {
	const count = 5000
	now := time.Unix(1e9, 0)
	var text strings.Builder
	var fits []nodeFit
	for i := range count {
		fmt.Fprintf(&text, "n%04d@r2 ", i)
		fits = append(fits, nodeFit{fmt.Sprintf("n%04d", i), fitRun})
	}
	state := daemonState{ds: newDaemonSet(), nodes: fits, pods: daemonPods(text.String(), now), hash: "r2", now: now, held: func(string) time.Duration { return 0 }}
	b.ReportAllocs()
	for b.Loop() {
		all := state.places()
		_ = planDaemonSet(state, all)
		_, _ = planDaemonStatus(state, all)
	}
}
