package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/agent/agenttest"
	"gantry.dev/gantry/internal/container"
)

func exits(after time.Duration, code int) func(container.Config) agenttest.Behavior {
	return func(container.Config) agenttest.Behavior {
		return agenttest.Behavior{RunFor: after, ExitCode: code}
	}
}

func TestCrashLoopBackOff(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.Behave = exits(time.Second, 1)
		start := time.Now()
		r.create(newPod("crash"))
		var waits []time.Duration
		last := r.container("main")
		for len(waits) < 8 {
			r.sleep(500 * time.Millisecond)
			if now := r.container("main"); now.Attempt != last.Attempt {
				waits = append(waits, now.StartedAt.Sub(last.StartedAt.Add(time.Second)).Round(time.Second))
				last = now
			}
			if time.Since(start) > time.Hour {
				t.Fatalf("the container was restarted after %v only", waits)
			}
		}
		want := []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 300 * time.Second, 300 * time.Second}
		if !slices.Equal(waits, want) {
			t.Errorf("restarts waited %v, want %v", waits, want)
		}
		r.sleep(30 * time.Second)
		s := r.pod("crash").Status
		c := s.ContainerStatuses[0]
		if s.Phase != corev1.PodRunning || c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff" ||
			c.State.Waiting.Message != "back-off 5m0s restarting failed container=main pod=crash_default(uid-crash)" {
			t.Errorf("status is %s, %+v", s.Phase, c.State.Waiting)
		}
		if c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != 1 || c.LastTerminationState.Terminated.Reason != "Error" {
			t.Errorf("last state is %+v", c.LastTerminationState)
		}
		if c.RestartCount != 8 || condition(r.pod("crash"), corev1.PodReady) != corev1.ConditionFalse {
			t.Errorf("%d restarts, ready %s", c.RestartCount, condition(r.pod("crash"), corev1.PodReady))
		}
		r.hasEvent("crash", "BackOff: Back-off restarting failed container main in pod crash_default(uid-crash)")
	})
}

func TestBackOffStartsAnewAfterALongRun(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.Behave = exits(11*time.Minute, 1)
		r.create(newPod("slow"))
		r.sleep(2*11*time.Minute + 5*time.Second)
		if got := r.container("main"); got.Attempt != 2 || got.State != container.StateRunning {
			t.Errorf("attempt %d is %s, want 2 running", got.Attempt, got.State)
		}
	})
}

func TestAgentRestartKeepsContainers(t *testing.T) {
	bubble(t, func(r *rig) {
		r.create(newPod("web"))
		r.runtime.Behave = exits(time.Second, 3)
		crash := newPod("crash")
		crash.Spec.Containers[0].Name = "crash"
		r.create(crash)
		r.sleep(25 * time.Second)
		web, before := r.container("main"), r.container("crash")
		writes := r.api.Writes("patch status Pod")
		r.restart()
		if after := r.api.Writes("patch status Pod"); after != writes {
			t.Errorf("the new agent wrote %d statuses", after-writes)
		}
		if now := r.container("main"); now.ID != web.ID || now.State != container.StateRunning {
			t.Errorf("container %s became %s, %s", web.ID, now.ID, now.State)
		}
		if pod := r.pod("web"); condition(pod, corev1.PodReady) != corev1.ConditionTrue || pod.Status.PodIP != "10.1.0.2" {
			t.Errorf("after the restart the pod is ready %s at %s", condition(pod, corev1.PodReady), pod.Status.PodIP)
		}
		for r.container("crash").Attempt == before.Attempt {
			r.sleep(time.Second)
		}
		if now := r.container("crash"); now.Attempt != before.Attempt+1 || now.Annotations[annotationBackoff] != "40s" {
			t.Errorf("attempt %d with back-off %s, want %d with 40s", now.Attempt, now.Annotations[annotationBackoff], before.Attempt+1)
		}
	})
}

func TestAPIAwayForADay(t *testing.T) {
	bubble(t, func(r *rig) {
		r.create(newPod("web"))
		r.api.SetDown(true)
		id := r.container("main").ID
		r.sleep(12 * time.Hour)
		r.runtime.Exit(id, 1)
		r.sleep(12 * time.Hour)
		if now := r.container("main"); now.Attempt != 1 || now.State != container.StateRunning {
			t.Fatalf("without the API attempt %d is %s", now.Attempt, now.State)
		}
		r.api.SetDown(false)
		r.sleep(30 * time.Second)
		if c := r.pod("web").Status.ContainerStatuses[0]; c.RestartCount != 1 || c.LastTerminationState.Terminated == nil {
			t.Errorf("the status tells of %d restarts: %+v", c.RestartCount, c)
		}
	})
}

func TestDeletedWhileAway(t *testing.T) {
	bubble(t, func(r *rig) {
		r.create(newPod("gone"))
		r.create(newPod("going"))
		r.stop()
		zero := int64(0)
		if err := r.api.Delete(t.Context(), r.pod("gone"), &client.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
		if err := r.api.Delete(t.Context(), r.pod("going")); err != nil {
			t.Fatal(err)
		}
		r.start()
		r.sleep(10 * time.Second)
		if r.exists("going") {
			t.Error("a pod whose deletion began while the agent was away is still there")
		}
		if list, _ := r.runtime.List(t.Context()); len(list) != 0 || r.network.Count() != 0 {
			t.Errorf("%d sandboxes and %d networks are left", len(list), r.network.Count())
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for name, tc := range map[string]struct {
		policy corev1.RestartPolicy
		code   int
		want   corev1.PodPhase
		reason string
	}{
		"never, well":      {corev1.RestartPolicyNever, 0, corev1.PodSucceeded, "PodCompleted"},
		"never, failed":    {corev1.RestartPolicyNever, 2, corev1.PodFailed, "PodFailed"},
		"on failure, well": {corev1.RestartPolicyOnFailure, 0, corev1.PodSucceeded, "PodCompleted"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				r.runtime.Behave = exits(time.Second, tc.code)
				r.create(newPod("job", func(p *corev1.Pod) { p.Spec.RestartPolicy = tc.policy }))
				r.sleep(2 * time.Second)
				pod := r.pod("job")
				if pod.Status.Phase != tc.want || pod.Status.ContainerStatuses[0].State.Terminated == nil {
					t.Fatalf("status is %s, %+v", pod.Status.Phase, pod.Status.ContainerStatuses)
				}
				for _, c := range pod.Status.Conditions {
					if c.Type == corev1.PodReady && (c.Status != corev1.ConditionFalse || c.Reason != tc.reason) {
						t.Errorf("ready is %s for %s, want False for %s", c.Status, c.Reason, tc.reason)
					}
				}
				if r.network.Count() != 0 {
					t.Error("an ended pod keeps its network")
				}
				if err := r.api.Delete(t.Context(), pod); err != nil {
					t.Fatal(err)
				}
				r.sleep(time.Second)
				if r.exists("job") || len(r.agent.Pods()) != 0 {
					t.Error("an ended pod cannot be deleted")
				}
			})
		})
	}
}

func always() *corev1.ContainerRestartPolicy {
	p := corev1.ContainerRestartPolicyAlways
	return &p
}

func TestInitContainersAndSidecars(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.Behave = func(c container.Config) agenttest.Behavior {
			if strings.HasPrefix(c.Name, "init") {
				return agenttest.Behavior{RunFor: 2 * time.Second}
			}
			return agenttest.Behavior{StopTakes: time.Second}
		}
		r.create(newPod("app", func(p *corev1.Pod) {
			side := newContainer("side")
			side.RestartPolicy = always()
			p.Spec.InitContainers = []corev1.Container{newContainer("init-a"), side, newContainer("init-b")}
		}))
		pod := r.pod("app")
		if pod.Status.Phase != corev1.PodPending || condition(pod, corev1.PodInitialized) != corev1.ConditionFalse {
			t.Errorf("at first: %s, initialized %s", pod.Status.Phase, condition(pod, corev1.PodInitialized))
		}
		if w := pod.Status.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "PodInitializing" {
			t.Errorf("the app container waits for %+v", w)
		}
		r.sleep(5 * time.Second)
		if got, want := r.runtime.Starts(), []string{"init-a", "side", "init-b", "main"}; !slices.Equal(got, want) {
			t.Fatalf("started %v, want %v", got, want)
		}
		if pod = r.pod("app"); pod.Status.Phase != corev1.PodRunning || condition(pod, corev1.PodReady) != corev1.ConditionTrue {
			t.Errorf("then: %s, ready %s", pod.Status.Phase, condition(pod, corev1.PodReady))
		}
		r.runtime.Exit(r.container("side").ID, 1)
		r.sleep(time.Second)
		if side := r.container("side"); side.Attempt != 1 || side.State != container.StateRunning {
			t.Errorf("the sidecar is attempt %d, %s", side.Attempt, side.State)
		}
		if err := r.api.Delete(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		r.sleep(1500 * time.Millisecond)
		if side := r.container("side"); side.State != container.StateRunning {
			t.Error("the sidecar ended before the app container")
		}
		r.sleep(5 * time.Second)
		if r.exists("app") {
			t.Error("the pod is still there")
		}
	})
}

func TestFailedInitContainer(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.Behave = exits(time.Second, 1)
		r.create(newPod("app", func(p *corev1.Pod) {
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			p.Spec.InitContainers = []corev1.Container{newContainer("init")}
		}))
		r.sleep(2 * time.Second)
		if pod := r.pod("app"); pod.Status.Phase != corev1.PodFailed {
			t.Errorf("phase is %s, want Failed", pod.Status.Phase)
		}
		if slices.Contains(r.runtime.Starts(), "main") {
			t.Error("the app container was started")
		}
	})
}

func TestProbes(t *testing.T) {
	bubble(t, func(r *rig) {
		var ready, live, started atomic.Bool
		live.Store(true)
		r.runtime.OnExec = func(_ context.Context, _ container.Status, cmd []string, s container.Streams) (int, error) {
			ok := map[string]*atomic.Bool{"ready": &ready, "live": &live, "started": &started}[cmd[0]].Load()
			if ok {
				return 0, nil
			}
			_, _ = s.Stdout.Write([]byte("no " + cmd[0]))
			return 1, nil
		}
		probe := func(cmd string, period, failures int32) *corev1.Probe {
			return &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{cmd}}},
				PeriodSeconds: period, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: failures,
			}
		}
		r.create(newPod("web", func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = probe("started", 1, 30), probe("ready", 2, 1), probe("live", 5, 3)
		}))
		r.sleep(5 * time.Second)
		if c := r.pod("web").Status.ContainerStatuses[0]; c.Started == nil || *c.Started || c.Ready {
			t.Fatalf("before the startup probe succeeds: %+v", c)
		}
		r.hasEvent("web", "Unhealthy: Startup probe failed: no started")
		started.Store(true)
		r.sleep(2 * time.Second)
		if c := r.pod("web").Status.ContainerStatuses[0]; !*c.Started || c.Ready {
			t.Fatalf("started, but not ready: %+v", c)
		}
		ready.Store(true)
		r.sleep(2 * time.Second)
		if condition(r.pod("web"), corev1.PodReady) != corev1.ConditionTrue {
			t.Error("the pod is not ready")
		}
		live.Store(false)
		r.sleep(11 * time.Second)
		if c := r.container("main"); c.Attempt != 0 {
			t.Error("the container was restarted before the threshold")
		}
		live.Store(true)
		r.sleep(6 * time.Second)
		live.Store(false)
		r.sleep(15 * time.Second)
		if c := r.container("main"); c.Attempt != 1 {
			t.Errorf("after three failures the container is attempt %d", c.Attempt)
		}
		r.hasEvent("web", "Killing: Container main failed liveness probe, will be restarted")
	})
}

func TestReadinessSurvivesTheAgent(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.OnExec = func(context.Context, container.Status, []string, container.Streams) (int, error) { return 0, nil }
		r.create(newPod("web", func(p *corev1.Pod) {
			p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}},
				PeriodSeconds: 10, FailureThreshold: 3, SuccessThreshold: 1, TimeoutSeconds: 1,
			}
		}))
		r.sleep(time.Second)
		changed := atomic.Bool{}
		r.runtime.OnExec = func(ctx context.Context, _ container.Status, _ []string, _ container.Streams) (int, error) {
			<-ctx.Done() // the new agent's first probe hangs
			return 1, ctx.Err()
		}
		r.restart()
		if condition(r.pod("web"), corev1.PodReady) != corev1.ConditionTrue || changed.Load() {
			t.Error("a restart of the agent made a ready pod unready")
		}
	})
}

func TestHooksAndGrace(t *testing.T) {
	bubble(t, func(r *rig) {
		var ran []string
		r.runtime.OnExec = func(_ context.Context, _ container.Status, cmd []string, _ container.Streams) (int, error) {
			ran = append(ran, cmd[0])
			return 0, nil
		}
		r.runtime.Behave = func(container.Config) agenttest.Behavior { return agenttest.Behavior{IgnoreStop: true} }
		r.create(newPod("web", func(p *corev1.Pod) {
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{
				PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"post"}}},
				PreStop:   &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 4}},
			}
		}))
		if !slices.Equal(ran, []string{"post"}) {
			t.Errorf("hooks that ran: %v", ran)
		}
		ten := int64(10)
		if err := r.api.Delete(t.Context(), r.pod("web"), &client.DeleteOptions{GracePeriodSeconds: &ten}); err != nil {
			t.Fatal(err)
		}
		r.sleep(9500 * time.Millisecond)
		if !r.exists("web") {
			t.Fatal("the hook was not counted into the grace period: the pod is gone too early")
		}
		r.sleep(time.Second)
		if r.exists("web") {
			t.Error("the pod outlived its grace period")
		}
	})
}

func TestShorterGraceWins(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.Behave = func(container.Config) agenttest.Behavior { return agenttest.Behavior{IgnoreStop: true} }
		r.create(newPod("web"))
		if err := r.api.Delete(t.Context(), r.pod("web")); err != nil {
			t.Fatal(err)
		}
		r.sleep(5 * time.Second)
		three := int64(3)
		if err := r.api.Delete(t.Context(), r.pod("web"), &client.DeleteOptions{GracePeriodSeconds: &three}); err != nil {
			t.Fatal(err)
		}
		r.sleep(4 * time.Second)
		if r.exists("web") {
			t.Error("the shorter grace period was not used")
		}
	})
}

func TestFailedPostStart(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.OnExec = func(context.Context, container.Status, []string, container.Streams) (int, error) { return 7, nil }
		r.create(newPod("web", func(p *corev1.Pod) {
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"post"}}}}
		}))
		r.sleep(time.Second)
		r.hasEvent("web", "FailedPostStartHook: PostStartHook failed")
		r.hasEvent("web", "Killing: FailedPostStartHook")
		if c := r.container("main"); c.Attempt > 1 {
			t.Errorf("%d restarts within a second", c.Attempt)
		}
	})
}

func TestActiveDeadline(t *testing.T) {
	bubble(t, func(r *rig) {
		limit := int64(20)
		r.create(newPod("job", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = &limit }))
		r.sleep(19 * time.Second)
		if phase := r.pod("job").Status.Phase; phase != corev1.PodRunning {
			t.Fatalf("phase is %s before the deadline", phase)
		}
		r.sleep(3 * time.Second)
		s := r.pod("job").Status
		if s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" || s.Message != "Pod was active on the node longer than the specified deadline" {
			t.Errorf("status is %s, %s, %s", s.Phase, s.Reason, s.Message)
		}
	})
}

func TestImages(t *testing.T) {
	bubble(t, func(r *rig) {
		r.images.Missing = true
		fails := atomic.Bool{}
		fails.Store(true)
		r.images.OnPull = func(string, []container.Credentials) error {
			if fails.Load() {
				return errors.New("no such manifest")
			}
			return nil
		}
		r.create(newPod("pull"))
		r.create(newPod("never", func(p *corev1.Pod) { p.Spec.Containers[0].ImagePullPolicy = corev1.PullNever }))
		r.create(newPod("bad", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "Not An Image" }))
		waits := func(name, reason string) {
			t.Helper()
			if w := r.pod(name).Status.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != reason {
				t.Errorf("pod %s waits for %+v, want %s", name, w, reason)
			}
		}
		waits("pull", "ErrImagePull")
		waits("never", "ErrImageNeverPull")
		waits("bad", "InvalidImageName")
		r.sleep(3 * time.Second)
		waits("pull", "ImagePullBackOff")
		r.hasEvent("pull", `Failed: Failed to pull image "busybox": no such manifest`)
		r.hasEvent("pull", `BackOff: Back-off pulling image "busybox"`)
		r.hasEvent("pull", "Failed: Error: ErrImagePull")
		fails.Store(false)
		r.sleep(30 * time.Second)
		if phase := r.pod("pull").Status.Phase; phase != corev1.PodRunning {
			t.Errorf("phase is %s after the image came", phase)
		}
		if pulls := r.images.Pulls(); !slices.Contains(pulls, "docker.io/library/busybox:latest") {
			t.Errorf("pulled %v", pulls)
		}
	})
}

func TestMissingConfigMap(t *testing.T) {
	bubble(t, func(r *rig) {
		r.create(newPod("web", func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{
				ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}, Key: "a"},
			}}}
		}))
		w := r.pod("web").Status.ContainerStatuses[0].State.Waiting
		if w == nil || w.Reason != "CreateContainerConfigError" {
			t.Fatalf("the container waits for %+v", w)
		}
		conf := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "conf"}, Data: map[string]string{"b": "2"}}
		if err := r.api.Create(t.Context(), conf); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w = r.pod("web").Status.ContainerStatuses[0].State.Waiting
		if w == nil || w.Message != "couldn't find key a in ConfigMap default/conf" {
			t.Fatalf("the container waits for %+v", w)
		}
		conf.Data["a"] = "1"
		if err := r.api.Update(t.Context(), conf); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if pod := r.pod("web"); pod.Status.Phase != corev1.PodRunning {
			t.Fatalf("phase is %s at once after the key came", pod.Status.Phase)
		}
		config, _ := r.runtime.Config(r.container("main").ID)
		if !slices.Contains(config.Env, "A=1") || !slices.Contains(config.Env, "HOSTNAME=web") {
			t.Errorf("environment is %v", config.Env)
		}
	})
}

func TestLostShim(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.Behave = func(c container.Config) agenttest.Behavior {
			if c.Name == "init" {
				return agenttest.Behavior{RunFor: time.Second}
			}
			return agenttest.Behavior{}
		}
		r.create(newPod("web", func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{newContainer("init")} }))
		r.sleep(2 * time.Second)
		r.runtime.LoseShim("uid-web")
		r.sleep(5 * time.Second)
		s := r.pod("web").Status
		c := s.ContainerStatuses[0]
		if s.Phase != corev1.PodRunning || c.State.Running == nil || c.RestartCount != 1 {
			t.Errorf("status is %s, %d restarts, %+v", s.Phase, c.RestartCount, c.State)
		}
		if last := c.LastTerminationState.Terminated; last == nil || last.Reason != "ContainerStatusUnknown" || last.ExitCode != 137 {
			t.Errorf("last state is %+v", last)
		}
		if got := r.runtime.Starts(); !slices.Equal(got, []string{"init", "main", "init", "main"}) {
			t.Errorf("started %v", got)
		}
		r.hasEvent("web", "SandboxChanged: ")
	})
}

func TestStartErrors(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.Fail("EnsureSandbox", errors.New("no cgroup"))
		r.create(newPod("web"))
		r.hasEvent("web", "FailedCreatePodSandBox: Failed to create pod sandbox: no cgroup")
		if w := r.pod("web").Status.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "ContainerCreating" {
			t.Errorf("the container waits for %+v", w)
		}
		r.runtime.Fail("EnsureSandbox", nil)
		r.runtime.Fail("CreateContainer", errors.New("no snapshot"))
		r.sleep(11 * time.Second)
		if w := r.pod("web").Status.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "CreateContainerError" || w.Message != "no snapshot" {
			t.Errorf("the container waits for %+v", w)
		}
		r.runtime.Fail("CreateContainer", nil)
		r.sleep(11 * time.Second)
		if phase := r.pod("web").Status.Phase; phase != corev1.PodRunning {
			t.Errorf("phase is %s", phase)
		}
	})
}

func TestAdmission(t *testing.T) {
	bubble(t, func(r *rig) {
		asks := func(cpu string) func(*corev1.Pod) {
			return func(p *corev1.Pod) {
				p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
			}
		}
		r.create(newPod("fits", asks("3")))
		r.create(newPod("large", asks("2")))
		r.create(newPod("small", asks("1")))
		s := r.pod("large").Status
		if want := "Pod was rejected: Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000"; s.Phase != corev1.PodFailed || s.Reason != "OutOfcpu" || s.Message != want {
			t.Errorf("status is %s, %s, %q", s.Phase, s.Reason, s.Message)
		}
		if phase := r.pod("small").Status.Phase; phase != corev1.PodRunning {
			t.Errorf("a pod that fits is %s", phase)
		}
	})
}

func TestNode(t *testing.T) {
	bubble(t, func(r *rig) {
		r.sleep(11 * time.Second)
		var node corev1.Node
		if err := r.api.Get(t.Context(), client.ObjectKey{Name: "node-1"}, &node); err != nil {
			t.Fatal(err)
		}
		ready := slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue && c.Reason == "KubeletReady"
		})
		if !ready || len(node.Status.Conditions) != 4 {
			t.Errorf("conditions are %+v", node.Status.Conditions)
		}
		if node.Labels[corev1.LabelHostname] != "node-1" || node.Status.Capacity.Pods().Value() != 110 || node.Status.DaemonEndpoints.KubeletEndpoint.Port != 10250 {
			t.Errorf("node is %v, %v", node.Labels, node.Status.Capacity)
		}
		leases := r.api.Writes("update Lease")
		writes := r.api.Writes("patch status Node")
		r.sleep(10 * time.Minute)
		if got := r.api.Writes("update Lease") - leases; got < 59 || got > 61 {
			t.Errorf("the lease was renewed %d times in 10 minutes", got)
		}
		if got := r.api.Writes("patch status Node") - writes; got < 1 || got > 3 {
			t.Errorf("an unchanged node status was written %d times in 10 minutes", got)
		}
	})
}
