package gantrytest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// busy says that every pod uses twice what its autoscaler aims at.
type busy struct {
	client atomic.Pointer[ctrlclient.Client]
}

// Nodes implements registry.Metrics.
func (*busy) Nodes(context.Context, string) ([]*metricsv1beta1.NodeMetrics, error) { return nil, nil }

// Pods implements registry.Metrics.
func (b *busy) Pods(ctx context.Context, namespace, _ string) ([]*metricsv1beta1.PodMetrics, error) {
	c := b.client.Load()
	if c == nil {
		return nil, nil
	}
	var pods corev1.PodList
	if err := (*c).List(ctx, &pods, ctrlclient.InNamespace(namespace)); err != nil {
		return nil, err
	}
	var list []*metricsv1beta1.PodMetrics
	for i := range pods.Items {
		if pod := &pods.Items[i]; pod.Status.Phase == corev1.PodRunning {
			list = append(list, &metricsv1beta1.PodMetrics{
				TypeMeta:   metav1.TypeMeta{APIVersion: "metrics.k8s.io/v1beta1", Kind: "PodMetrics"},
				ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, Labels: pod.Labels},
				Timestamp:  metav1.Now(), Window: metav1.Duration{Duration: 15 * time.Second},
				Containers: []metricsv1beta1.ContainerMetrics{{Name: "c", Usage: usage("100m", "1Mi")}},
			})
		}
	}
	return list, nil
}

// beginOthers makes what the story has beside workloads in the narrow sense: daemon sets with and without
// surge, a service, and an autoscaler with what it scales.
func (s *story) beginOthers() {
	one, none := intstr.FromInt32(1), intstr.FromInt32(0)
	for name, rolling := range map[string]*appsv1.RollingUpdateDaemonSet{
		"agent": {MaxUnavailable: &one, MaxSurge: &none}, "probe": {MaxUnavailable: &none, MaxSurge: &one},
	} {
		set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		set.Spec.Selector, set.Spec.Template = selects(name), podTemplate(name, "example.test/app:1")
		set.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: rolling}
		mustCreate(s.t, s.Cluster, set)
	}
	web := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
	web.Spec.Selector, web.Spec.Ports = map[string]string{"app": "web"}, []corev1.ServicePort{{Port: 80}}
	auto := deployment("auto", 1)
	auto.Spec.Template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}
	target := int32(50)
	scaler := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "auto"}}
	scaler.Spec.ScaleTargetRef = autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "auto"}
	scaler.Spec.MaxReplicas = autoMost
	scaler.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &target},
	}}}
	mustCreate(s.t, s.Cluster, web, auto, scaler)
}

// evict asks for the eviction of a pod, as kubectl drain does; a budget may refuse it.
func (s *story) evict(app string) {
	for _, pod := range podsIn(s.t.Context(), s.Cluster) {
		if pod.Labels["app"] == app && pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodRunning {
			_ = s.Client.SubResource("eviction").Create(s.t.Context(), pod.DeepCopy(), &policyv1.Eviction{})
			return
		}
	}
}

// endOthers describes what beginOthers has led to, and the claims.
func (s *story) endOthers(b *strings.Builder) {
	ctx := s.t.Context()
	var sets appsv1.DaemonSetList
	var slices discoveryv1.EndpointSliceList
	var claims corev1.PersistentVolumeClaimList
	var volumes corev1.PersistentVolumeList
	var scalers autoscalingv2.HorizontalPodAutoscalerList
	err := errors.Join(s.Client.List(ctx, &sets), s.Client.List(ctx, &slices, ctrlclient.MatchingLabels{discoveryv1.LabelServiceName: "web"}),
		s.Client.List(ctx, &claims), s.Client.List(ctx, &volumes), s.Client.List(ctx, &scalers))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, set := range sets.Items {
		fmt.Fprintf(b, "%s: %d ready, %d updated of %d\n", set.Name, set.Status.NumberReady, set.Status.UpdatedNumberScheduled, set.Status.DesiredNumberScheduled)
	}
	addresses := map[string]bool{}
	for _, slice := range slices.Items {
		for _, endpoint := range slice.Endpoints {
			if endpoint.Conditions.Ready != nil && *endpoint.Conditions.Ready {
				addresses[endpoint.Addresses[0]] = true
			}
		}
	}
	for _, pod := range podsIn(ctx, s.Cluster) {
		if pod.Labels["app"] == "web" && !addresses[pod.Status.PodIP] {
			fmt.Fprintf(b, "pod %s is no endpoint\n", pod.Name)
		}
	}
	fmt.Fprintf(b, "web has %d endpoints\n", len(addresses))
	for _, claim := range claims.Items {
		fmt.Fprintf(b, "claim %s %s\n", claim.Name, claim.Status.Phase)
	}
	phases := map[corev1.PersistentVolumePhase]int{}
	for _, volume := range volumes.Items {
		phases[volume.Status.Phase]++
	}
	fmt.Fprintf(b, "volumes %v\n", phases)
	for _, scaler := range scalers.Items {
		fmt.Fprintf(b, "%s: %d replicas wanted, %d there\n", scaler.Name, scaler.Status.DesiredReplicas, scaler.Status.CurrentReplicas)
	}
}
