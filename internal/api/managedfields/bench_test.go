package managedfields

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// templatePod is a pod as a ReplicaSet's controller makes it, with its defaults.
func templatePod() *corev1.Pod {
	controller, grace := true, int64(30)
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "web-7d4b9c-", Namespace: "default",
			Labels: map[string]string{"app": "web", "pod-template-hash": "7d4b9c"},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-7d4b9c", UID: "e1", Controller: &controller, BlockOwnerDeletion: &controller,
			}},
		},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "web", Image: "registry.example/web:1", ImagePullPolicy: corev1.PullIfNotPresent,
				Ports: []corev1.ContainerPort{{ContainerPort: 8080, Protocol: corev1.ProtocolTCP, Name: "http"}},
				Env:   []corev1.EnvVar{{Name: "MODE", Value: "x"}, {Name: "LEVEL", Value: "y"}},
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("64Mi")},
					Limits:   corev1.ResourceList{"memory": resource.MustParse("64Mi")},
				},
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:   corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080), Scheme: "HTTP"}},
					TimeoutSeconds: 1, PeriodSeconds: 10, SuccessThreshold: 1, FailureThreshold: 3,
				},
				TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
			}},
			RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst, SchedulerName: "default-scheduler",
			TerminationGracePeriodSeconds: &grace, SecurityContext: &corev1.PodSecurityContext{},
		},
	}
}

// runningStatus is what the node's agent reports of it.
func runningStatus(ip string, at int64) corev1.PodStatus {
	started := true
	time := metav1.Unix(at, 0)
	status := corev1.PodStatus{
		Phase: corev1.PodRunning, HostIP: "10.0.0.1", HostIPs: []corev1.HostIP{{IP: "10.0.0.1"}},
		PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, StartTime: &time, QOSClass: corev1.PodQOSBurstable,
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "web", Image: "registry.example/web:1", Ready: true, Started: &started,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: time}},
		}},
	}
	for _, kind := range []corev1.PodConditionType{"Initialized", "Ready", "ContainersReady", "PodScheduled", "PodReadyToStartContainers"} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: kind, Status: "True", LastTransitionTime: time})
	}
	return status
}

// pendingPod is a pod of which its creator owns all.
func pendingPod(v views) *corev1.Pod {
	pod := templatePod()
	pod.Status.Phase = corev1.PodPending
	pod = v.upstream[""].UpdateNoErrors(testKinds()[0].empty(), pod, "controller").(*corev1.Pod)
	pod.UID, pod.ResourceVersion, pod.CreationTimestamp = "p1", "7", metav1.Unix(1e9, 0)
	return pod
}

// runningPod is a pod whose creator and agent both own fields of it.
func runningPod(v views) *corev1.Pod {
	pod := pendingPod(v)
	next := pod.DeepCopy()
	next.Status = runningStatus("10.1.0.1", 1e9)
	return v.upstream["status"].UpdateNoErrors(pod, next, "agent").(*corev1.Pod)
}

// compare runs one write with both managers. change makes the new object ready again.
func compare(b *testing.B, v views, sub string, live Object, next Object, change func(i int)) {
	b.Helper()
	b.Run("gantry", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			change(i)
			if !v.fast[sub].Update(live, next, "agent") {
				b.Fatal("refused")
			}
		}
	})
	b.Run("upstream", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			change(i)
			v.upstream[sub].UpdateNoErrors(live, next, "agent")
		}
	})
}

func BenchmarkCreate(b *testing.B) {
	v := newViews(b, newTracker(b), testKinds()[0])
	pod := templatePod()
	compare(b, v, "", testKinds()[0].empty(), pod, func(int) { pod.ManagedFields = nil })
}

// BenchmarkCreateUnlike makes pods that share nothing.
func BenchmarkCreateUnlike(b *testing.B) {
	v := newViews(b, newTracker(b), testKinds()[0])
	pod := templatePod()
	compare(b, v, "", testKinds()[0].empty(), pod, func(i int) {
		pod.ManagedFields = nil
		pod.Labels = map[string]string{fmt.Sprint("label-", i): "x"}
	})
}

// BenchmarkStatus changes the values of a running pod's status.
func BenchmarkStatus(b *testing.B) {
	v := newViews(b, newTracker(b), testKinds()[0])
	live := runningPod(v)
	next := live.DeepCopy()
	next.Status = runningStatus("10.1.0.1", 2e9)
	compare(b, v, "status", live, next, func(int) { next.ManagedFields = live.ManagedFields })
}

// BenchmarkStatusUnlike gives each pod its first status with an address of its own.
func BenchmarkStatusUnlike(b *testing.B) {
	v := newViews(b, newTracker(b), testKinds()[0])
	live := pendingPod(v)
	next := live.DeepCopy()
	compare(b, v, "status", live, next, func(i int) {
		next.Status = runningStatus(fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255), 2e9)
	})
}

// BenchmarkStatusOfMany is BenchmarkStatus for each of 2,000 pods in turn. Their addresses
// are their own, so their entries are too.
func BenchmarkStatusOfMany(b *testing.B) {
	v := newViews(b, newTracker(b), testKinds()[0])
	pods := make([]*corev1.Pod, 2000)
	first := pendingPod(v)
	for i := range pods {
		next := first.DeepCopy()
		next.Status = runningStatus(fmt.Sprintf("10.1.%d.%d", i>>8, i&255), 1e9)
		v.fast["status"].Update(first, next, "agent")
		pods[i] = next
	}
	next := pods[0].DeepCopy()
	run := func(b *testing.B, update func(live *corev1.Pod)) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			live := pods[i%len(pods)]
			next.Status = runningStatus(live.Status.PodIP, 2e9)
			update(live)
		}
	}
	b.Run("gantry", func(b *testing.B) {
		run(b, func(live *corev1.Pod) { v.fast["status"].Update(live, next, "agent") })
	})
	b.Run("upstream", func(b *testing.B) {
		run(b, func(live *corev1.Pod) { v.upstream["status"].UpdateNoErrors(live, next, "agent") })
	})
}

// BenchmarkUpdate changes a label of a running pod.
func BenchmarkUpdate(b *testing.B) {
	v := newViews(b, newTracker(b), testKinds()[0])
	live := runningPod(v)
	next := live.DeepCopy()
	next.Labels["app"] = "other"
	compare(b, v, "", live, next, func(int) { next.ManagedFields = live.ManagedFields })
}

// BenchmarkNothing writes a pod as it is.
func BenchmarkNothing(b *testing.B) {
	v := newViews(b, newTracker(b), testKinds()[0])
	live := runningPod(v)
	next := live.DeepCopy()
	compare(b, v, "", live, next, func(int) { next.ManagedFields = live.ManagedFields })
}
