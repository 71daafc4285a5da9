package main

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// simulated labels the nodes that the benchmark only pretends to run.
const simulated = "bench.gantry.dev/simulated"

func namespaceObject(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// configMap is a ConfigMap of about 700 bytes, as applications have them.
func configMap(name string, revision int) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "bench", "tier": "config"}},
		Data: map[string]string{
			"revision": fmt.Sprint(revision),
			"app.yaml": strings.Repeat("key: value\n", 30),
		},
	}
}

// podSpec is what a usual pod has: one container with ports, environment, resources and probes.
func podSpec() corev1.PodSpec {
	quantities := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi"),
	}
	return corev1.PodSpec{
		NodeSelector: map[string]string{simulated: "true"},
		Containers: []corev1.Container{{
			Name: "web", Image: "registry.example/bench/web:1.0",
			Ports:     []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			Env:       []corev1.EnvVar{{Name: "MODE", Value: "production"}, {Name: "LISTEN", Value: ":8080"}},
			Resources: corev1.ResourceRequirements{Requests: quantities, Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{
				HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromString("http")},
			}},
		}},
	}
}

// simulatedNode is a Ready node in one of the zones. It takes 250 pods: 100 nodes hold the 10,000 that are listed and
// those of the Deployments.
func simulatedNode(i int) *corev1.Node {
	name := nodeName(i)
	capacity := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourceMemory: resource.MustParse("64Gi"),
		corev1.ResourcePods: resource.MustParse("250"), corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"),
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			simulated: "true", corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
			corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%zones),
		}},
		Status: corev1.NodeStatus{Capacity: capacity, Allocatable: capacity},
	}
}

// nodeConditions say that all is well since now.
func nodeConditions(now metav1.Time) []corev1.NodeCondition {
	var conditions []corev1.NodeCondition
	for kind, status := range map[corev1.NodeConditionType]corev1.ConditionStatus{
		corev1.NodeReady: corev1.ConditionTrue, corev1.NodeMemoryPressure: corev1.ConditionFalse,
		corev1.NodeDiskPressure: corev1.ConditionFalse, corev1.NodePIDPressure: corev1.ConditionFalse,
	} {
		conditions = append(conditions, corev1.NodeCondition{
			Type: kind, Status: status, Reason: "Bench", Message: "simulated",
			LastHeartbeatTime: now, LastTransitionTime: now,
		})
	}
	return conditions
}

// runningStatus is what an agent reports of a running pod; revision changes it a little.
func runningStatus(now metav1.Time, revision int) corev1.PodStatus {
	status := corev1.PodStatus{
		Phase: corev1.PodRunning, HostIP: "10.77.0.2", PodIP: "10.244.0.9", StartTime: &now,
		HostIPs: []corev1.HostIP{{IP: "10.77.0.2"}}, PodIPs: []corev1.PodIP{{IP: "10.244.0.9"}},
		QOSClass: corev1.PodQOSBurstable,
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "web", Image: "registry.example/bench/web:1.0", Ready: true, RestartCount: int32(revision),
			ImageID:     "registry.example/bench/web@sha256:" + strings.Repeat("0a", 32),
			ContainerID: "containerd://" + strings.Repeat("1b", 32), Started: new(bool),
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		}},
	}
	for _, kind := range []corev1.PodConditionType{
		corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled,
	} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{
			Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now,
		})
	}
	return status
}

// deployment makes replicas pods of podSpec.
func deployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: podSpec()},
		},
	}
}
