package agent

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/agenttest"
	"gantry.dev/gantry/internal/container"
)

func TestJobWithSidecarEnds(t *testing.T) {
	bubble(t, func(r *rig) {
		r.runtime.Behave = func(c container.Config) agenttest.Behavior {
			if c.Name == "main" {
				return agenttest.Behavior{RunFor: 5 * time.Second}
			}
			return agenttest.Behavior{StopTakes: time.Second}
		}
		r.create(newPod("job", func(p *corev1.Pod) {
			side := newContainer("side")
			side.RestartPolicy = always()
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			p.Spec.InitContainers = []corev1.Container{side}
		}))
		r.sleep(4 * time.Second)
		if phase := r.pod("job").Status.Phase; phase != corev1.PodRunning {
			t.Fatalf("phase is %s while the job runs", phase)
		}
		r.sleep(4 * time.Second)
		pod := r.pod("job")
		if pod.Status.Phase != corev1.PodSucceeded || pod.Status.InitContainerStatuses[0].State.Terminated == nil {
			t.Errorf("status is %s, sidecar %+v", pod.Status.Phase, pod.Status.InitContainerStatuses)
		}
		writes := r.api.Writes("patch status Pod")
		r.restart()
		r.sleep(time.Minute)
		if after := r.api.Writes("patch status Pod"); after != writes {
			t.Errorf("a new agent wrote an ended pod's status %d times", after-writes)
		}
		if now := r.pod("job"); now.Status.PodIP != pod.Status.PodIP || now.Status.PodIP == "" {
			t.Errorf("the ended pod's address was %q and is %q", pod.Status.PodIP, now.Status.PodIP)
		}
	})
}

func TestNoRangeNoPods(t *testing.T) {
	bubble(t, func(r *rig) {
		r.stop()
		r.agent = nil
		r.api = agenttest.NewAPI() // a new cluster: the node has no pod range yet
		r.start()
		r.create(newPod("web"))
		r.create(newPod("host", func(p *corev1.Pod) { p.Spec.HostNetwork = true }))
		r.sleep(time.Minute)
		if phase := r.pod("web").Status.Phase; phase != corev1.PodPending {
			t.Errorf("a pod without an address is %s", phase)
		}
		if s := r.pod("host").Status; s.Phase != corev1.PodRunning || s.PodIP != "192.0.2.1" {
			t.Errorf("a pod on the node's network is %s at %q", s.Phase, s.PodIP)
		}
		r.giveRange()
		if phase := r.pod("web").Status.Phase; phase != corev1.PodRunning {
			t.Errorf("the pod is %s at once after the range came", phase)
		}
	})
}
