package metrics

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Nodes returns what each node uses, or the one of that name; those that do not answer are missing.
func (s *Source) Nodes(ctx context.Context, name string) ([]*metricsv1beta1.NodeMetrics, error) {
	nodes, measured, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	var list []*metricsv1beta1.NodeMetrics
	for i := range nodes {
		node := &nodes[i]
		summary := measured[node.Name]
		if summary == nil || name != "" && node.Name != name {
			continue
		}
		usage, at, ok := usageOf(summary.Node.CPU, summary.Node.Memory)
		if !ok {
			continue
		}
		list = append(list, &metricsv1beta1.NodeMetrics{
			TypeMeta:   metav1.TypeMeta{APIVersion: metricsv1beta1.SchemeGroupVersion.String(), Kind: "NodeMetrics"},
			ObjectMeta: metav1.ObjectMeta{Name: node.Name, CreationTimestamp: metav1.Now(), Labels: node.Labels},
			Timestamp:  at, Window: metav1.Duration{Duration: nominalWindow}, Usage: usage,
		})
	}
	return list, nil
}

// Pods returns what each pod of a namespace, "" is all, and of a name, "" is all, uses. A pod of
// which not all running containers have been measured twice is missing.
func (s *Source) Pods(ctx context.Context, namespace, name string) ([]*metricsv1beta1.PodMetrics, error) {
	_, measured, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	var list []*metricsv1beta1.PodMetrics
	for _, summary := range measured {
		for i := range summary.Pods {
			p := &summary.Pods[i]
			if namespace != "" && p.PodRef.Namespace != namespace || name != "" && p.PodRef.Name != name {
				continue
			}
			pod := new(corev1.Pod)
			err := s.opts.Reader.Get(ctx, client.ObjectKey{Namespace: p.PodRef.Namespace, Name: p.PodRef.Name}, pod)
			if client.IgnoreNotFound(err) != nil {
				return nil, fmt.Errorf("reading pod %s/%s: %w", p.PodRef.Namespace, p.PodRef.Name, err)
			}
			if err != nil || string(pod.UID) != p.PodRef.UID {
				continue // another pod by now
			}
			if m, ok := podMetrics(pod, p); ok {
				list = append(list, m)
			}
		}
	}
	return list, nil
}

// read lists the nodes and what they use.
func (s *Source) read(ctx context.Context) ([]corev1.Node, map[string]*statsapi.Summary, error) {
	var nodes corev1.NodeList
	if err := s.opts.Reader.List(ctx, &nodes); err != nil {
		return nil, nil, fmt.Errorf("listing nodes: %w", err)
	}
	measured, err := s.summaries(ctx, nodes.Items)
	return nodes.Items, measured, err
}

// podMetrics is what a pod uses; false while that is not known of all its containers.
func podMetrics(pod *corev1.Pod, p *statsapi.PodStats) (*metricsv1beta1.PodMetrics, bool) {
	out := &metricsv1beta1.PodMetrics{
		TypeMeta:   metav1.TypeMeta{APIVersion: metricsv1beta1.SchemeGroupVersion.String(), Kind: "PodMetrics"},
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, CreationTimestamp: metav1.Now(), Labels: pod.Labels},
		Window:     metav1.Duration{Duration: nominalWindow}, Containers: []metricsv1beta1.ContainerMetrics{},
	}
	for i := range p.Containers {
		usage, at, ok := usageOf(p.Containers[i].CPU, p.Containers[i].Memory)
		if !ok {
			return nil, false
		}
		if out.Timestamp.IsZero() || at.Before(&out.Timestamp) {
			out.Timestamp = at
		}
		out.Containers = append(out.Containers, metricsv1beta1.ContainerMetrics{Name: p.Containers[i].Name, Usage: usage})
	}
	return out, len(out.Containers) > 0
}

// usageOf is CPU and memory in the units of metrics-server: nanocores, and bytes.
func usageOf(cpu *statsapi.CPUStats, memory *statsapi.MemoryStats) (corev1.ResourceList, metav1.Time, bool) {
	if cpu == nil || cpu.UsageNanoCores == nil || memory == nil || memory.WorkingSetBytes == nil {
		return nil, metav1.Time{}, false
	}
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(int64(*cpu.UsageNanoCores), resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(int64(*memory.WorkingSetBytes), resource.BinarySI),
	}, cpu.Time, true
}
