package app

import (
	"errors"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/app/render"
)

func begin() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func TestStepCanary(t *testing.T) {
	minutes := func(n int) metav1.Time { return metav1.NewTime(begin().Add(-time.Duration(n) * time.Minute)) }
	at := func(step int32, since int) *v1alpha1.CanaryStatus {
		return &v1alpha1.CanaryStatus{Step: step, Weight: []int32{5, 50, 100}[step], Since: minutes(since), BaseRequests: 1000, BaseErrors: 10}
	}
	counted := func(requests, errors int64) *Counts {
		return &Counts{Requests: 1000 + requests, Errors: 10 + errors, P95: 80 * time.Millisecond}
	}
	for name, tc := range map[string]struct {
		at     *v1alpha1.CanaryStatus
		plan   func(p *plannedRollout)
		o      observed
		step   int32
		weight int32
		move   canaryMove
		reason string
	}{
		"waits for its pods":                  {at: nil, o: observed{}, weight: 0},
		"begins when they are ready":          {at: nil, o: observed{ready: true}, weight: 5},
		"stays for its time":                  {at: at(0, 4), o: observed{counts: counted(200, 0)}, weight: 5},
		"goes on after it":                    {at: at(0, 5), o: observed{counts: counted(200, 0)}, step: 1, weight: 50},
		"goes on without a sample":            {at: at(0, 5), o: observed{counts: counted(3, 3)}, step: 1, weight: 50},
		"goes on where nobody counts":         {at: at(0, 5), o: observed{}, step: 1, weight: 50},
		"waits for who counts":                {at: at(0, 9), o: observed{blind: true}, weight: 5},
		"too many errors":                     {at: at(1, 1), o: observed{counts: counted(200, 11)}, step: 1, weight: 50, move: canaryAbort, reason: v1alpha1.ReasonAnalysis},
		"just few enough":                     {at: at(1, 1), o: observed{counts: counted(200, 10)}, step: 1, weight: 50},
		"too slow":                            {at: at(1, 1), plan: func(p *plannedRollout) { p.p95 = 50 * time.Millisecond }, o: observed{counts: counted(200, 0)}, step: 1, weight: 50, move: canaryAbort, reason: v1alpha1.ReasonAnalysis},
		"counts that began anew":              {at: at(0, 1), o: observed{counts: &Counts{Requests: 200, Errors: 50}}, weight: 5, move: canaryAbort, reason: v1alpha1.ReasonAnalysis},
		"a restart":                           {at: at(0, 1), o: observed{restarts: 1}, weight: 5, move: canaryAbort, reason: v1alpha1.ReasonAnalysis},
		"a failed test":                       {at: at(0, 1), plan: func(p *plannedRollout) { p.test = true }, o: observed{test: testFailed}, weight: 5, move: canaryAbort, reason: v1alpha1.ReasonCommandFailed},
		"a test that runs is waited for":      {at: at(0, 9), plan: func(p *plannedRollout) { p.test = true }, o: observed{test: testRunning}, weight: 5},
		"after its test":                      {at: at(0, 9), plan: func(p *plannedRollout) { p.test = true }, o: observed{test: testPassed}, step: 1, weight: 50},
		"by hand it waits":                    {at: at(0, 900), plan: func(p *plannedRollout) { p.every = 0 }, o: observed{}, weight: 5},
		"promoted":                            {at: at(0, 1), plan: func(p *plannedRollout) { p.every = 0 }, o: observed{intent: v1alpha1.IntentPromote}, step: 1, weight: 50},
		"a promotion of an earlier step":      {at: at(1, 1), o: observed{intent: v1alpha1.IntentPromote}, step: 1, weight: 50},
		"promoted, but it fails its analysis": {at: at(0, 1), o: observed{intent: v1alpha1.IntentPromote, counts: counted(200, 99)}, weight: 5, move: canaryAbort, reason: v1alpha1.ReasonAnalysis},
		"aborted":                             {at: at(1, 1), o: observed{intent: v1alpha1.IntentAbort}, step: 1, weight: 50, move: canaryAbort, reason: v1alpha1.ReasonAborted},
		"the last step":                       {at: at(2, 5), o: observed{counts: counted(200, 0)}, step: 2, weight: 100, move: canaryDone},
	} {
		t.Run(name, func(t *testing.T) {
			plan := rolloutOf(&v1alpha1.Rollout{Steps: []int32{5, 50, 100}})
			if tc.plan != nil {
				tc.plan(&plan)
			}
			tc.o.now = begin()
			next, move, reason, message, _ := stepCanary(tc.at, plan, tc.o)
			if next == nil {
				next = &v1alpha1.CanaryStatus{}
			}
			if next.Step != tc.step || next.Weight != tc.weight || move != tc.move || reason != tc.reason || (reason == "") != (message == "") {
				t.Errorf("stepCanary = %+v, %v, %q, %q; want step %d, weight %d, %v, %q", next, move, reason, message, tc.step, tc.weight, tc.move, tc.reason)
			}
		})
	}
}

func TestRolloutDefaults(t *testing.T) {
	if got := rolloutOf(nil); len(got.steps) != 4 || got.every != 5*time.Minute || got.sample != 100 || got.errors != 0.05 {
		t.Errorf("rolloutOf(nil) = %+v", got)
	}
	if got := rolloutOf(&v1alpha1.Rollout{Errors: "1.5%"}); got.errors != 0.015 {
		t.Errorf("errors = %v", got.errors)
	}
}

// numbered is a release in a phase.
func numbered(number int64, phase, image string, command bool) *v1alpha1.Release {
	out := &v1alpha1.Release{Spec: v1alpha1.ReleaseSpec{App: "shop", Number: number, Content: v1alpha1.AppSpec{Image: image, Source: &v1alpha1.Source{Reason: "deploy"}}}}
	if command {
		out.Spec.Content.Release = &v1alpha1.ReleaseCommand{Command: "migrate"}
	}
	out.Status.Phase = phase
	return out
}

func TestHistory(t *testing.T) {
	h := newHistory([]*v1alpha1.Release{
		numbered(4, "", "d", false), numbered(1, v1alpha1.ReleaseLive, "a", false), numbered(2, v1alpha1.ReleaseLive, "b", true), numbered(3, v1alpha1.ReleaseRolling, "c", false),
	})
	if h.live.Spec.Number != 2 || h.next.Spec.Number != 4 || h.last().Spec.Number != 4 {
		t.Errorf("live %v, next %v", h.live.Spec.Number, h.next.Spec.Number)
	}
	if s := h.superseded(); len(s) != 1 || s[0].Spec.Number != 3 {
		t.Errorf("superseded %v", s)
	}
	if r := h.replaced(); len(r) != 1 || r[0].Spec.Number != 1 {
		t.Errorf("replaced %v", r)
	}
	back := numbered(5, "", "a", false)
	h = newHistory(append(h.all, back))
	to := h.returnsTo(back)
	if to == nil || to.Spec.Number != 1 || !strings.Contains(h.rollbackWarning(to), "v2 ran since v1") {
		t.Errorf("returnsTo = %+v", to)
	}
}

func TestSurplusReleasesSpareTheLiveOne(t *testing.T) {
	var all []*v1alpha1.Release
	for n := int64(1); n <= 60; n++ {
		all = append(all, numbered(n, v1alpha1.ReleaseReplaced, "a", false))
	}
	all[2].Status.Phase = v1alpha1.ReleaseLive
	if got := newHistory(all).surplus(); len(got) != 9 {
		t.Errorf("%d releases go, want 9", len(got))
	}
}

func TestNextRelease(t *testing.T) {
	live := numbered(3, v1alpha1.ReleaseLive, "a", false)
	live.Spec.Content.Secrets = []string{"KEY"}
	live.Annotations = map[string]string{v1alpha1.AnnotationSecrets: `{"KEY":"one"}`}
	bad := numbered(4, v1alpha1.ReleaseFailed, "a", false)
	for name, tc := range map[string]struct {
		change func(s *v1alpha1.AppSpec)
		prints map[string]string
		last   *v1alpha1.Release
		number int64
		reason string
	}{
		"nothing changed":     {last: live},
		"image":               {last: live, change: func(s *v1alpha1.AppSpec) { s.Image = "b"; s.Source.Reason = "deploy of main" }, number: 4, reason: "deploy of main"},
		"config":              {last: live, change: func(s *v1alpha1.AppSpec) { s.Config = map[string]string{"B": "1", "A": "2"} }, number: 4, reason: "env A, B"},
		"scale acts at once":  {last: live, change: func(s *v1alpha1.AppSpec) { s.Processes = nil; s.Restarts, s.Suspended = 3, true }},
		"domains act at once": {last: live, change: func(s *v1alpha1.AppSpec) { s.Domains = []v1alpha1.Domain{{Name: "a.b"}} }},
		"same secret":         {last: live, prints: map[string]string{"KEY": "one"}},
		"other secret":        {last: live, prints: map[string]string{"KEY": "two", "OTHER": "x"}, number: 4, reason: "secret KEY"},
		"no image":            {last: live, change: func(s *v1alpha1.AppSpec) { s.Image = "" }},
		"failed stays":        {last: bad},
		"failed, retried":     {last: bad, change: func(s *v1alpha1.AppSpec) { s.Restarts = 1 }, number: 5, reason: "retry of v4"},
	} {
		t.Run(name, func(t *testing.T) {
			app := &v1alpha1.App{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop", UID: "u"}, Spec: *tc.last.Spec.Content.DeepCopy()}
			if tc.change != nil {
				tc.change(&app.Spec)
			}
			got := nextRelease(app, newHistory([]*v1alpha1.Release{tc.last}), tc.prints)
			if tc.number == 0 {
				if got != nil {
					t.Errorf("nextRelease = %+v, want none", got.Spec)
				}
				return
			}
			if got == nil || got.Spec.Number != tc.number || got.Spec.Content.Source.Reason != tc.reason {
				t.Errorf("nextRelease = %+v, want number %d, reason %q", got, tc.number, tc.reason)
			}
		})
	}
}

// podWith is a pod of a process that started ten seconds ago.
func podWith(status corev1.ContainerStatus, listens string, change func(p *corev1.Pod)) corev1.Pod {
	status.Name = render.ContainerName
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "shop-web-1", CreationTimestamp: metav1.NewTime(begin().Add(-20 * time.Second))}}
	p.Spec.NodeName = "n"
	p.Status.ContainerStatuses = []corev1.ContainerStatus{status}
	if listens != "" {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: v1alpha1.ConditionListening, Status: corev1.ConditionTrue, Message: listens})
	}
	if change != nil {
		change(&p)
	}
	return p
}

func TestJudgePods(t *testing.T) {
	running := func(ago time.Duration) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(begin().Add(-ago))}}}
	}
	waiting := func(reason, message string, restarts int32) corev1.ContainerStatus {
		out := corev1.ContainerStatus{RestartCount: restarts, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
		out.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 1}
		return out
	}
	unscheduled := func(message string) func(p *corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.NodeName, p.Status.ContainerStatuses = "", nil
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: message}}
		}
	}
	for name, tc := range map[string]struct {
		pod  corev1.Pod
		more []corev1.Pod
		free bool // no port was said
		want string
		says string
	}{
		"starting":                {pod: podWith(running(10*time.Second), "", nil)},
		"not ready in time":       {pod: podWith(running(66*time.Second), "", nil), want: v1alpha1.ReasonUnhealthy, says: "GET /up"},
		"loopback":                {pod: podWith(running(3*time.Second), "127.0.0.1:8080", nil), want: v1alpha1.ReasonPort, says: "0.0.0.0:8080"},
		"loopback at first":       {pod: podWith(running(time.Second), "127.0.0.1:8080", nil)},
		"other port":              {pod: podWith(running(16*time.Second), "0.0.0.0:9090", nil), want: v1alpha1.ReasonPort, says: "0.0.0.0:9090"},
		"other port at first":     {pod: podWith(running(9*time.Second), "0.0.0.0:9090", nil)},
		"one other port is fine":  {pod: podWith(running(16*time.Second), "[::]:9090", nil), free: true},
		"two other ports":         {pod: podWith(running(16*time.Second), "[::]:9090 [::]:9091", nil), free: true, want: v1alpha1.ReasonPort},
		"two crashes":             {pod: podWith(waiting("CrashLoopBackOff", "", 1), "", nil)},
		"three crashes":           {pod: podWith(waiting("CrashLoopBackOff", "", 2), "", nil), want: v1alpha1.ReasonCrashing, says: "exit code 1"},
		"three crashes of two":    {pod: podWith(waiting("CrashLoopBackOff", "", 1), "", nil), more: []corev1.Pod{podWith(waiting("CrashLoopBackOff", "", 0), "", nil)}, want: v1alpha1.ReasonCrashing},
		"image":                   {pod: podWith(waiting("ErrImagePull", "x: not found", 0), "", nil), want: v1alpha1.ReasonImage},
		"a registry that is slow": {pod: podWith(waiting("ErrImagePull", "i/o timeout", 0), "", nil)},
		"no such command":         {pod: podWith(waiting("RunContainerError", `exec: "/x": stat /x: no such file or directory`, 0), "", nil), want: v1alpha1.ReasonCrashing, says: "/x"},
		"no such secret":          {pod: podWith(waiting("CreateContainerConfigError", `secret "x" not found`, 0), "", nil), want: v1alpha1.ReasonSecretMissing},
		"no room":                 {pod: podWith(corev1.ContainerStatus{}, "", unscheduled("0/1 nodes are available: 1 Insufficient memory.")), want: v1alpha1.ReasonNoRoom, says: "Insufficient memory"},
		"a full disk":             {pod: podWith(corev1.ContainerStatus{}, "", unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint(s).")), want: v1alpha1.ReasonNoRoom, says: "gantry node ls"},
		"no volume":               {pod: podWith(corev1.ContainerStatus{}, "", unscheduled("pod has unbound immediate persistentvolumeclaims")), want: v1alpha1.ReasonVolumeNotReady},
		"ready": {pod: podWith(running(time.Hour), "", func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		})},
	} {
		t.Run(name, func(t *testing.T) {
			j := judged{name: "web", port: 8080, said: !tc.free, process: v1alpha1.Process{Health: &v1alpha1.Health{Path: "/up"}}}
			got := judgePods(j, append([]corev1.Pod{tc.pod}, tc.more...), begin())
			if got.reason != tc.want || !strings.Contains(got.message, tc.says) {
				t.Errorf("judgePods = %+v, want %q with %q", got, tc.want, tc.says)
			}
		})
	}
}

func TestReplicasFor(t *testing.T) {
	at := func(n int32) *appsv1.Deployment { return &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &n}} }
	for name, tc := range map[string]struct {
		scale                   render.Scale
		current                 *appsv1.Deployment
		scaled, asleep, rolling bool
		want                    int32
	}{
		"new":                   {scale: render.Scale{Min: 2, Max: 5}, want: 2},
		"fixed":                 {scale: render.Scale{Min: 2, Max: 2}, current: at(4), want: 2},
		"chosen by somebody":    {scale: render.Scale{Min: 2, Max: 5}, current: at(4), scaled: true, want: 4},
		"beyond its bounds":     {scale: render.Scale{Min: 2, Max: 5}, current: at(9), scaled: true, want: 5},
		"asleep":                {scale: render.Scale{Max: 5}, current: at(0), asleep: true, want: 0},
		"asleep, rolling out":   {scale: render.Scale{Max: 5}, current: at(0), asleep: true, rolling: true, want: 1},
		"must not sleep longer": {scale: render.Scale{Min: 1, Max: 1}, current: at(0), asleep: true, want: 1},
	} {
		if got := replicasFor(tc.scale, tc.current, tc.scaled, tc.asleep, tc.rolling); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

func TestJudgeDomain(t *testing.T) {
	for name, tc := range map[string]struct {
		found   []string
		err     error
		reached []string
		good    bool
		says    string
	}{
		"points here":    {found: []string{"203.0.113.7"}, reached: []string{"203.0.113.7"}, good: true},
		"somewhere else": {found: []string{"192.0.2.1"}, reached: []string{"203.0.113.7"}, says: "it points to 192.0.2.1; make a DNS record: a.example A 203.0.113.7"},
		"unknown":        {err: errors.New("no such host"), reached: []string{"2001:db8::1"}, says: "a.example AAAA 2001:db8::1"},
		"balancer":       {err: errors.New("no such host"), reached: []string{"lb.example"}, says: "a.example CNAME lb.example"},
	} {
		if got := judgeDomain("a.example", tc.found, tc.err, tc.reached); got.good != tc.good || !strings.Contains(got.message, tc.says) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
