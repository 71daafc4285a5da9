package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"gantry.dev/gantry/internal/agent/resize"
	"gantry.dev/gantry/internal/container"
)

// guaranteed gives every container requests and limits.
func guaranteed(cpu, memory string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		for i := range pod.Spec.Containers {
			list := corev1.ResourceList{}
			if cpu != "" {
				list[corev1.ResourceCPU] = resource.MustParse(cpu)
			}
			if memory != "" {
				list[corev1.ResourceMemory] = resource.MustParse(memory)
			}
			pod.Spec.Containers[i].Resources = corev1.ResourceRequirements{Requests: list, Limits: list.DeepCopy()}
		}
	}
}

// resizePod changes a pod's resources as the resize subresource does.
func (r *rig) resizePod(name string, change func(*corev1.Pod)) {
	r.t.Helper()
	pod := r.pod(name)
	change(pod)
	if err := r.api.Update(r.t.Context(), pod); err != nil {
		r.t.Fatal(err)
	}
	r.sleep(100 * time.Millisecond)
}

func podCondition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

func (r *rig) resourcesOf(name, container string) (status, allocated corev1.ResourceList) {
	r.t.Helper()
	for _, s := range r.pod(name).Status.ContainerStatuses {
		if s.Name == container && s.Resources != nil {
			return s.Resources.Limits, s.AllocatedResources
		}
	}
	r.t.Fatalf("container %s of %s has no resources in its status", container, name)
	return nil, nil
}

func TestResizeInPlace(t *testing.T) {
	bubble(t, func(r *rig) {
		r.agent.pressure.figures = &fakeFigures{used: 5 << 20}
		r.create(newPod("web", guaranteed("1", "100Mi")))
		first := r.container("main")
		before := len(r.runtime.LimitWrites())
		r.resizePod("web", guaranteed("2", "50Mi"))
		if now := r.container("main"); now.ID != first.ID {
			t.Error("the container was restarted")
		}
		const pod = "/kubepods/poduid-web"
		want := []string{
			pod + "/main shares=0 quota=0 memory=52428800", // memory shrinks: the container before its pod
			pod + " shares=0 quota=0 memory=52428800",
			pod + " shares=0 quota=200000 memory=0", // CPU grows: the pod before its container
			pod + " shares=2048 quota=0 memory=0",
			pod + "/main shares=2048 quota=200000 memory=0",
		}
		// What is written after these, with the record of the grant, changes nothing.
		if got := r.runtime.LimitWrites()[before:]; len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			t.Errorf("limits were written as\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		status, allocated := r.resourcesOf("web", "main")
		if status.Cpu().String() != "2" || status.Memory().String() != "50Mi" || allocated.Cpu().String() != "2" {
			t.Errorf("status has %v, allocated %v", status, allocated)
		}
		p := r.pod("web")
		if podCondition(p, corev1.PodResizeInProgress) != nil || podCondition(p, corev1.PodResizePending) != nil {
			t.Errorf("conditions %+v", p.Status.Conditions)
		}
		if p.Status.ObservedGeneration != p.Generation || p.Status.AllocatedResources.Cpu().String() != "2" {
			t.Errorf("observed generation %d of %d, allocated %v", p.Status.ObservedGeneration, p.Generation, p.Status.AllocatedResources)
		}
		r.hasEvent("web", `ResizeStarted: Pod resize started: {"containers":[{"name":"main","resources":{"limits":{"cpu":"2","memory":"50Mi"}`)
		r.hasEvent("web", "ResizeCompleted: Pod resize completed: ")
		r.restart()
		if status, _ := r.resourcesOf("web", "main"); status.Cpu().String() != "2" {
			t.Errorf("after a restart of the agent the status has %v", status)
		}
		if now := r.container("main"); now.ID != first.ID || now.State != container.StateRunning {
			t.Error("the agent's restart touched the container")
		}
	})
}

func TestResizeByRestart(t *testing.T) {
	bubble(t, func(r *rig) {
		r.create(newPod("web", guaranteed("1", "100Mi"), func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, newContainer("side"))
			guaranteed("1", "100Mi")(p)
			p.Spec.Containers[0].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.RestartContainer}}
		}))
		main, side := r.container("main"), r.container("side")
		r.resizePod("web", func(p *corev1.Pod) {
			list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m"), corev1.ResourceMemory: resource.MustParse("100Mi")}
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: list, Limits: list}
		})
		now := r.container("main")
		if now.ID == main.ID || now.Attempt != 1 || now.State != container.StateRunning || r.container("side").ID != side.ID {
			t.Errorf("main is %s, attempt %d; side %v", now.State, now.Attempt, r.container("side").ID == side.ID)
		}
		r.hasEvent("web", "Killing: Container main resize requires restart")
		p := r.pod("web")
		if status, _ := r.resourcesOf("web", "main"); status.Cpu().String() != "1500m" || podCondition(p, corev1.PodResizeInProgress) != nil {
			t.Errorf("status has %v, conditions %+v", status, p.Status.Conditions)
		}
	})
}

func TestResizeWaitsForRoom(t *testing.T) {
	bubble(t, func(r *rig) {
		r.create(newPod("other", guaranteed("2", "1Gi"), func(p *corev1.Pod) { p.Spec.Containers[0].Name = "other" }))
		r.create(newPod("web", guaranteed("1", "1Gi")))
		r.resizePod("web", guaranteed("3", "1Gi"))
		pending := podCondition(r.pod("web"), corev1.PodResizePending)
		want := "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000"
		if pending == nil || pending.Reason != corev1.PodReasonDeferred || pending.Message != want || pending.ObservedGeneration != 2 {
			t.Fatalf("pending is %+v", pending)
		}
		status, allocated := r.resourcesOf("web", "main")
		if status.Cpu().String() != "1" || allocated.Cpu().String() != "1" {
			t.Errorf("status has %v, allocated %v before there is room", status, allocated)
		}
		r.hasEvent("web", "ResizeDeferred: Pod resize Deferred: ")
		// What was granted counts, not what is asked for: this one fits.
		r.create(newPod("third", guaranteed("1", ""), func(p *corev1.Pod) { p.Spec.Containers[0].Name = "third" }))
		if r.pod("third").Status.Phase != corev1.PodRunning {
			t.Fatalf("third is %+v", r.pod("third").Status)
		}
		r.restart() // a new agent waits on
		if podCondition(r.pod("web"), corev1.PodResizePending) == nil {
			t.Error("the restart lost that the resize waits")
		}
		if err := r.api.Delete(t.Context(), r.pod("third")); err != nil {
			t.Fatal(err)
		}
		r.resizePod("other", guaranteed("1", "1Gi"))
		r.sleep(time.Second)
		p := r.pod("web")
		if status, _ := r.resourcesOf("web", "main"); status.Cpu().String() != "3" || podCondition(p, corev1.PodResizePending) != nil {
			t.Errorf("status has %v, conditions %+v", status, p.Status.Conditions)
		}
	})
}

func TestResizeIsTakenBack(t *testing.T) {
	bubble(t, func(r *rig) {
		r.create(newPod("web", guaranteed("1", "1Gi")))
		r.resizePod("web", guaranteed("9", "1Gi"))
		if podCondition(r.pod("web"), corev1.PodResizePending) == nil {
			t.Fatal("the resize does not wait")
		}
		r.resizePod("web", guaranteed("1", "1Gi"))
		if p := podCondition(r.pod("web"), corev1.PodResizePending); p != nil {
			t.Errorf("a resize that was taken back is still %+v", p)
		}
	})
}

// TestResizeOrder frees room for one of two: the higher priority gets it, though it asked later.
func TestResizeOrder(t *testing.T) {
	bubble(t, func(r *rig) {
		priority := func(n int32) func(*corev1.Pod) {
			return func(p *corev1.Pod) { p.Spec.Priority = &n; p.Spec.Containers[0].Name = p.Name }
		}
		for name, n := range map[string]int32{"low": 1, "high": 100, "filler": 50} {
			r.create(newPod(name, guaranteed("1", ""), priority(n)))
		}
		r.create(newPod("rest", guaranteed("1", ""), priority(0)))
		r.resizePod("low", guaranteed("1500m", ""))
		r.resizePod("high", guaranteed("1500m", ""))
		r.resizePod("filler", guaranteed("500m", ""))
		r.sleep(time.Second)
		high, _ := r.resourcesOf("high", "high")
		low, _ := r.resourcesOf("low", "low")
		if high.Cpu().String() != "1500m" || low.Cpu().String() != "1" {
			t.Errorf("high has %s, low %s", high.Cpu(), low.Cpu())
		}
	})
}

func TestMemoryDoesNotShrinkBelowItsUse(t *testing.T) {
	bubble(t, func(r *rig) {
		use := &fakeFigures{used: 80 << 20}
		r.agent.pressure.figures = use
		r.create(newPod("web", guaranteed("1", "100Mi")))
		r.resizePod("web", guaranteed("1", "10Mi"))
		progress := podCondition(r.pod("web"), corev1.PodResizeInProgress)
		if progress == nil || progress.Reason != corev1.PodReasonError || !strings.Contains(progress.Message, `container "main" memory limit (10485760) below current usage (83886080)`) {
			t.Fatalf("in progress is %+v", progress)
		}
		status, allocated := r.resourcesOf("web", "main")
		if status.Memory().String() != "100Mi" || allocated.Memory().String() != "10Mi" {
			t.Errorf("status has %v, allocated %v", status, allocated)
		}
		r.hasEvent("web", "ResizeError: Pod resize error: ")
		use.set(func() { use.used = 1 << 20 })
		r.sleep(retryAfter + time.Second)
		if status, _ := r.resourcesOf("web", "main"); status.Memory().String() != "10Mi" || podCondition(r.pod("web"), corev1.PodResizeInProgress) != nil {
			t.Errorf("after it uses less the status has %v, %+v", status, podCondition(r.pod("web"), corev1.PodResizeInProgress))
		}
	})
}

// TestResizeSurvivesTheAgent ends the agent between the grant and its effect.
func TestResizeSurvivesTheAgent(t *testing.T) {
	bubble(t, func(r *rig) {
		r.create(newPod("web", guaranteed("1", "100Mi")))
		r.runtime.Fail("UpdateContainer", errSome)
		r.resizePod("web", guaranteed("2", "100Mi"))
		if p := podCondition(r.pod("web"), corev1.PodResizeInProgress); p == nil || p.Reason != corev1.PodReasonError {
			t.Fatalf("in progress is %+v", p)
		}
		r.stop()
		list, _ := r.runtime.List(t.Context())
		record, err := resize.Parse(list[0].Sandbox.Annotations[resize.Annotation])
		granted := record.Granted.Containers["main"].Limits
		if err != nil || !record.InProgress() || granted.Cpu().String() != "2" {
			t.Fatalf("the sandbox keeps %+v, %v", record, err)
		}
		r.runtime.Fail("UpdateContainer", nil)
		r.start()
		r.sleep(time.Second)
		if status, _ := r.resourcesOf("web", "main"); status.Cpu().String() != "2" {
			t.Errorf("the new agent left the container with %v", status)
		}
		if p := podCondition(r.pod("web"), corev1.PodResizeInProgress); p != nil {
			t.Errorf("in progress is %+v", p)
		}
	})
}
