package agent

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/heartbeat"
)

// hearer is a leading server that can be cut off.
type hearer struct {
	mu     sync.Mutex
	cut    bool
	answer heartbeat.Answer
	last   heartbeat.Beat
}

func (h *hearer) Name() string { return "server" }
func (h *hearer) Close()       {}

func (h *hearer) Beat(_ context.Context, beat heartbeat.Beat, _ time.Duration) (heartbeat.Answer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cut {
		return heartbeat.Answer{}, errors.New("cut off")
	}
	h.last = beat
	return h.answer, nil
}

func (h *hearer) set(cut, takeover bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cut, h.answer = cut, heartbeat.Answer{Leads: true, Takeover: takeover}
}

func (h *hearer) beat() heartbeat.Beat {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// beating runs a test on a node that sends heartbeats and has a pod of a StatefulSet and one of none.
func beating(t *testing.T, takeover bool, test func(r *rig, h *hearer)) {
	bubble(t, func(r *rig) {
		h := &hearer{}
		h.set(false, takeover)
		r.stop()
		r.opts.Heartbeats = func() []heartbeat.Server { return []heartbeat.Server{h} }
		r.opts.Clock = r.runtime.SinceStart
		r.start()
		r.create(statefulPod("db"))
		web := newPod("web")
		web.Spec.Containers[0].Name = "web"
		r.create(web)
		r.sleep(3 * time.Second)
		test(r, h)
	})
}

func statefulPod(name string) *corev1.Pod {
	yes := true
	return newPod(name, func(pod *corev1.Pod) {
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db", UID: "s", Controller: &yes}}
	})
}

func (r *rig) running(name string) bool {
	r.t.Helper()
	list, err := r.runtime.List(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range list {
		for _, c := range s.Containers {
			if c.Name == name && c.State == container.StateRunning {
				return true
			}
		}
	}
	return false
}

// A node that is cut off from everything for a day ends its fenced pod at the deadline, and keeps and restarts the others.
// When it is back nothing but the fenced pod has changed.
func TestCutOffForADay(t *testing.T) {
	beating(t, true, func(r *rig, h *hearer) {
		if got := h.beat().Fence(); got != heartbeat.DefaultDeadline {
			t.Errorf("beats announce a deadline of %v, want %v", got, heartbeat.DefaultDeadline)
		}
		if condition(r.pod("db"), heartbeat.ConditionFenced) != corev1.ConditionTrue || condition(r.pod("web"), heartbeat.ConditionFenced) != "missing" {
			t.Error("the pod of the StatefulSet, and no other, must say that it is fenced")
		}
		h.set(true, true)
		r.api.SetDown(true)
		r.sleep(8 * time.Second)
		if !r.running("main") {
			t.Error("the fenced pod ended before its deadline")
		}
		r.sleep(3 * time.Second)
		if r.running("main") {
			t.Error("the fenced pod runs on after its deadline")
		}
		r.sleep(12 * time.Hour)
		r.runtime.Exit(r.container("web").ID, 1)
		r.sleep(12 * time.Hour)
		if now := r.container("web"); now.Attempt != 1 || now.State != container.StateRunning {
			t.Errorf("the other pod's attempt %d is %s, want 1 running", now.Attempt, now.State)
		}
		starts := len(r.runtime.Starts())
		h.set(false, true)
		r.api.SetDown(false)
		r.sleep(30 * time.Second)
		if s := r.pod("db").Status; s.Phase != corev1.PodFailed || s.Reason != "Fenced" {
			t.Errorf("the fenced pod is %s, %s; want Failed, Fenced", s.Phase, s.Reason)
		}
		if now := len(r.runtime.Starts()); now != starts {
			t.Errorf("%d containers were started when the node was back", now-starts)
		}
	})
}

// Where no other node could take the pod over nothing is fenced; and what was fenced is let go of only after the servers
// have known for a while.
func TestFencedOnlyWithAnotherNode(t *testing.T) {
	beating(t, false, func(r *rig, h *hearer) {
		if r.runtime.Fenced("uid-db") || h.beat().FenceMillis != 0 {
			t.Error("the pod is fenced though no other node could run it")
		}
		h.set(false, true)
		r.sleep(2 * time.Second)
		if !r.runtime.Fenced("uid-db") || r.runtime.Fenced("uid-web") || h.beat().FenceMillis == 0 {
			t.Error("with another node the pod of the StatefulSet, and no other, must be fenced")
		}
		h.set(false, false)
		r.sleep(9 * time.Second)
		if !r.runtime.Fenced("uid-db") || h.beat().FenceMillis != 0 {
			t.Error("the servers must know before the deadline goes")
		}
		r.sleep(4 * time.Second)
		if r.runtime.Fenced("uid-db") {
			t.Error("the deadline is there though no other node could run the pod")
		}
		h.set(true, false)
		r.sleep(time.Hour)
		if !r.running("main") {
			t.Error("a pod that nobody could take over was ended")
		}
	})
}

// A restart that was announced moves the deadline; a new agent takes over what an old one has fenced.
func TestFenceOverARestart(t *testing.T) {
	beating(t, true, func(r *rig, h *hearer) {
		r.stop()
		if h.beat().Leaving != heartbeat.LeavingRestart {
			t.Errorf("the last beat was %+v; want that it announces a restart", h.beat())
		}
		r.sleep(50 * time.Second)
		if !r.running("main") {
			t.Fatal("the pod ended during a restart that was announced")
		}
		r.start()
		r.sleep(time.Minute)
		if !r.running("main") || h.beat().Fence() != heartbeat.DefaultDeadline {
			t.Errorf("after the restart the pod runs: %t, beats announce %v", r.running("main"), h.beat().Fence())
		}
		h.set(true, true)
		r.sleep(11 * time.Second)
		if r.running("main") {
			t.Error("the new agent does not keep the old one's deadline")
		}
	})
}

// A server that does not lead keeps no fenced pod alive.
func TestFollowersDoNotCount(t *testing.T) {
	beating(t, true, func(r *rig, h *hearer) {
		h.mu.Lock()
		h.answer = heartbeat.Answer{}
		h.mu.Unlock()
		r.sleep(11 * time.Second)
		if r.running("main") {
			t.Error("the pod runs though no leading server hears the node")
		}
	})
}

// A pod that stops when cut off does so on a lone node too, and is not started before a server is heard.
func TestStopWhenCutOff(t *testing.T) {
	beating(t, false, func(r *rig, h *hearer) {
		stop := newPod("stop", func(pod *corev1.Pod) { pod.Annotations = map[string]string{annotationCutOff: "stop"} })
		stop.Spec.Containers[0].Name = "stop"
		r.create(stop)
		r.sleep(2 * time.Second)
		h.set(true, false)
		r.sleep(11 * time.Second)
		if r.running("stop") || !r.running("main") {
			t.Error("the pod that is to stop, and no other, must have ended")
		}
		late := newPod("late", func(pod *corev1.Pod) { pod.Annotations = map[string]string{annotationCutOff: "stop"} })
		late.Spec.Containers[0].Name = "late"
		r.create(late)
		r.sleep(20 * time.Second)
		for _, name := range r.runtime.Starts() {
			if name == "late" {
				t.Error("a pod that is to stop was started while the node is cut off")
			}
		}
		h.set(false, false)
		r.sleep(time.Second)
		if !r.running("late") {
			t.Error("the pod does not start when the node is back")
		}
	})
}

// What a workload declares wins over what it would get: a pod of a StatefulSet that is kept runs on, also over a restart of the
// agent, and says nothing of fences; one of none that is fenced says so and ends. A word that means nothing is told.
func TestDeclaredWhenCutOff(t *testing.T) {
	beating(t, true, func(r *rig, h *hearer) {
		declared := func(name, value string, pod *corev1.Pod) {
			pod.Annotations = map[string]string{annotationCutOff: value}
			pod.Spec.Containers[0].Name = name
			r.create(pod)
		}
		declared("kept", "keep", statefulPod("kept"))
		declared("fenced", "fence", newPod("fenced"))
		declared("odd", "later", newPod("odd"))
		r.sleep(2 * time.Second)
		for name, want := range map[string]corev1.ConditionStatus{"kept": "missing", "fenced": corev1.ConditionTrue, "odd": "missing"} {
			if got := condition(r.pod(name), heartbeat.ConditionFenced); got != want {
				t.Errorf("condition %s of %s is %s, want %s", heartbeat.ConditionFenced, name, got, want)
			}
		}
		r.hasEvent("odd", "UnknownWhenCutOff: ")
		h.set(true, true)
		r.sleep(5 * time.Second)
		r.restart()
		r.sleep(time.Hour)
		if !r.running("kept") || r.running("fenced") || !r.running("odd") {
			t.Errorf("after an hour kept runs: %t, fenced: %t, odd: %t; want true, false, true", r.running("kept"), r.running("fenced"), r.running("odd"))
		}
		if n := r.container("kept").Attempt; n != 0 {
			t.Errorf("the kept pod was restarted %d times", n)
		}
		h.set(false, true)
		r.sleep(30 * time.Second)
		if s := r.pod("fenced").Status; s.Phase != corev1.PodFailed || s.Reason != "Fenced" {
			t.Errorf("the fenced pod is %s, %s; want Failed, Fenced", s.Phase, s.Reason)
		}
	})
}

func TestPlanCutOff(t *testing.T) {
	here := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"n"}},
		}}},
	}}}}
	anywhere := &corev1.PersistentVolume{}
	annotated := func(value string) *corev1.Pod {
		return newPod("p", func(pod *corev1.Pod) { pod.Annotations = map[string]string{annotationCutOff: value} })
	}
	for name, tc := range map[string]struct {
		pod      *corev1.Pod
		volume   *corev1.PersistentVolume
		readOnly bool
		want     cutOff
	}{
		"no identity":                    {newPod("p"), nil, false, cutOffKeep},
		"an identity":                    {statefulPod("p"), nil, false, cutOffFence},
		"an identity and a local volume": {statefulPod("p"), here, false, cutOffPinned},
		"an identity and a shared one":   {statefulPod("p"), anywhere, false, cutOffShared},
		"a shared volume":                {newPod("p"), anywhere, false, cutOffShared},
		"a shared volume, read only":     {newPod("p"), anywhere, true, cutOffKeep},
		"a local volume":                 {newPod("p"), here, false, cutOffPinned},
		"told to stop":                   {annotated("stop"), here, false, cutOffStop},
		"told to keep":                   {annotated("keep"), anywhere, false, cutOffKeep},
		"told to fence":                  {annotated("fence"), nil, false, cutOffFence},
		"told nonsense":                  {annotated("later"), nil, false, cutOffKeep},
	} {
		t.Run(name, func(t *testing.T) {
			var volumes []*corev1.PersistentVolume
			if tc.volume != nil {
				volumes = append(volumes, tc.volume)
			}
			if got := planCutOff(tc.pod, volumes, []bool{tc.readOnly}); got != tc.want {
				t.Errorf("planCutOff = %q, want %q", got, tc.want)
			}
		})
	}
}
