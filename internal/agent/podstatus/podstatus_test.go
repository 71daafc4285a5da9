package podstatus

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/container"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func running(name string) container.Status {
	return container.Status{ID: name + "-id", Name: name, State: container.StateRunning, CreatedAt: start, StartedAt: start}
}

func exited(name string, code int) container.Status {
	s := running(name)
	s.State, s.ExitCode, s.FinishedAt, s.Reason = container.StateExited, code, start.Add(time.Second), "Error"
	if code == 0 {
		s.Reason = "Completed"
	}
	return s
}

func podOf(policy corev1.RestartPolicy, init, sidecars, main int) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u", Generation: 3}}
	pod.Spec.RestartPolicy = policy
	always := corev1.ContainerRestartPolicyAlways
	for i := range init {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: fmt.Sprintf("i%d", i)})
	}
	for i := range sidecars {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: fmt.Sprintf("s%d", i), RestartPolicy: &always})
	}
	for i := range main {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: fmt.Sprintf("m%d", i)})
	}
	return pod
}

func TestNextAndPhase(t *testing.T) {
	for name, tc := range map[string]struct {
		pod   *corev1.Pod
		have  []container.Status
		none  bool // no sandbox
		want  string
		phase corev1.PodPhase
		init  corev1.ConditionStatus
	}{
		"new":                       {podOf("Always", 0, 0, 2), nil, true, "sandbox start[0 1]", "Pending", "True"},
		"new with init":             {podOf("Always", 2, 0, 1), nil, true, "sandbox init[0]", "Pending", "False"},
		"first init runs":           {podOf("Always", 2, 0, 1), []container.Status{running("i0")}, false, "", "Pending", "False"},
		"first init done":           {podOf("Always", 2, 0, 1), []container.Status{exited("i0", 0)}, false, "init[1]", "Pending", "False"},
		"init failed":               {podOf("Always", 1, 0, 1), []container.Status{exited("i0", 1)}, false, "init[0]", "Pending", "False"},
		"init failed, never":        {podOf("Never", 1, 0, 1), []container.Status{exited("i0", 1)}, false, "stop", "Failed", "False"},
		"init done":                 {podOf("Always", 1, 0, 1), []container.Status{exited("i0", 0)}, false, "start[0]", "Pending", "True"},
		"sidecar runs":              {podOf("Always", 0, 1, 1), []container.Status{running("s0")}, false, "start[0]", "Pending", "True"},
		"sidecar died":              {podOf("Always", 0, 1, 1), []container.Status{exited("s0", 1), running("m0")}, false, "init[0]", "Running", "True"},
		"runs":                      {podOf("Always", 0, 0, 1), []container.Status{running("m0")}, false, "", "Running", "True"},
		"one died":                  {podOf("Always", 0, 0, 2), []container.Status{running("m0"), exited("m1", 1)}, false, "start[1]", "Running", "True"},
		"one done, never":           {podOf("Never", 0, 0, 2), []container.Status{running("m0"), exited("m1", 1)}, false, "", "Running", "True"},
		"all done, never":           {podOf("Never", 0, 0, 1), []container.Status{exited("m0", 0)}, false, "stop", "Succeeded", "True"},
		"failed, never":             {podOf("Never", 0, 0, 1), []container.Status{exited("m0", 1)}, false, "stop", "Failed", "True"},
		"failed, on failure":        {podOf("OnFailure", 0, 0, 1), []container.Status{exited("m0", 1)}, false, "start[0]", "Running", "True"},
		"done, on failure":          {podOf("OnFailure", 0, 0, 1), []container.Status{exited("m0", 0)}, false, "stop", "Succeeded", "True"},
		"done, sidecar runs, never": {podOf("Never", 0, 1, 1), []container.Status{running("s0"), exited("m0", 0)}, false, "stop", "Running", "True"},
		"sandbox lost":              {podOf("Always", 0, 0, 1), []container.Status{exited("m0", 1)}, true, "sandbox start[0]", "Running", "True"},
		"sandbox lost, never":       {podOf("Never", 0, 0, 1), []container.Status{exited("m0", 1)}, true, "stop", "Failed", "True"},
	} {
		t.Run(name, func(t *testing.T) {
			o := Observed{HasSandbox: !tc.none, Containers: tc.have}
			if got := text(Next(tc.pod, o, NoResults{})); got != tc.want {
				t.Errorf("next is %q, want %q", got, tc.want)
			}
			status := Generate(Input{Pod: tc.pod, Observed: o, Now: metav1.NewTime(start)})
			if status.Phase != tc.phase {
				t.Errorf("phase is %s, want %s", status.Phase, tc.phase)
			}
			for _, c := range status.Conditions {
				if c.ObservedGeneration != 3 || !c.LastTransitionTime.Time.Equal(start) {
					t.Errorf("condition is %+v", c)
				}
				if c.Type == corev1.PodInitialized && c.Status != tc.init {
					t.Errorf("initialized is %s: %s, want %s", c.Status, c.Message, tc.init)
				}
			}
		})
	}
}

func text(a Actions) string {
	s := ""
	add := func(format string, args ...any) {
		if s != "" {
			s += " "
		}
		s += fmt.Sprintf(format, args...)
	}
	if a.Stop {
		add("stop")
	}
	if a.Sandbox {
		add("sandbox")
	}
	if len(a.Init) > 0 {
		add("init%v", a.Init)
	}
	if len(a.Start) > 0 {
		add("start%v", a.Start)
	}
	for _, k := range a.Kill {
		add("kill[%s]", k.Name)
	}
	return s
}

func TestRestartRules(t *testing.T) {
	never := corev1.ContainerRestartPolicyNever
	c := corev1.Container{RestartPolicy: &never, RestartPolicyRules: []corev1.ContainerRestartRule{{
		Action:    corev1.ContainerRestartRuleActionRestart,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
	}}}
	if !ShouldRestart(&c, corev1.RestartPolicyNever, 42) || ShouldRestart(&c, corev1.RestartPolicyAlways, 1) {
		t.Error("the container's rule does not decide")
	}
}

func TestTransitionsAndStableStatus(t *testing.T) {
	pod := podOf("Always", 0, 0, 1)
	o := Observed{HasSandbox: true, IPs: []string{"10.1.0.2"}, Containers: []container.Status{running("m0")}}
	first := Generate(Input{Pod: pod, Observed: o, HostIPs: []string{"192.0.2.1"}, Now: metav1.NewTime(start)})
	o.Containers = []container.Status{exited("m0", 1)}
	second := Generate(Input{Pod: pod, Old: &first, Observed: o, HostIPs: []string{"192.0.2.1"}, Now: metav1.NewTime(start.Add(time.Minute))})
	for _, c := range second.Conditions {
		changed := c.Type == corev1.PodReady || c.Type == corev1.ContainersReady
		if want := start; !changed && !c.LastTransitionTime.Time.Equal(want) || changed && c.LastTransitionTime.Time.Equal(want) {
			t.Errorf("condition %s changed at %v", c.Type, c.LastTransitionTime)
		}
		if c.Type == corev1.PodReady && (c.Reason != "ContainersNotReady" || c.Message != "containers with unready status: [m0]") {
			t.Errorf("ready says %s, %q", c.Reason, c.Message)
		}
	}
	if !second.StartTime.Equal(first.StartTime) {
		t.Error("the start time has moved")
	}
	waiting := map[string]Waiting{"m0": {"CrashLoopBackOff", "back-off"}}
	third := Generate(Input{Pod: pod, Old: &second, Observed: o, Waiting: waiting, Now: metav1.NewTime(start)})
	c := third.ContainerStatuses[0]
	if c.State.Waiting == nil || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != 1 {
		t.Errorf("in back-off the status is %+v", c)
	}
}

func TestTerminalPhaseWaitsForTheLastProcess(t *testing.T) {
	pod := podOf("Never", 0, 0, 1)
	pod.Status.Phase = corev1.PodRunning
	in := Input{Pod: pod, Observed: Observed{HasSandbox: true, Containers: []container.Status{running("m0")}},
		Failure: &Waiting{"DeadlineExceeded", "too long"}, Now: metav1.NewTime(start)}
	if got := Generate(in); got.Phase != corev1.PodRunning {
		t.Errorf("phase is %s while a container runs", got.Phase)
	}
	in.Observed.Containers, in.Ended = []container.Status{exited("m0", 143)}, true
	if got := Generate(in); got.Phase != corev1.PodFailed || got.Reason != "DeadlineExceeded" {
		t.Errorf("status is %s, %s", got.Phase, got.Reason)
	}
}
