package nodeapi

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// metrics serves a few figures of the node in the format of Prometheus, by the kubelet's names.
func (h *Handler) metrics(w http.ResponseWriter, _ *http.Request) {
	phases := map[corev1.PodPhase]int{}
	states := map[string]int{}
	for _, pod := range h.pods.Pods() {
		phases[pod.Status.Phase]++
		for _, s := range pod.Status.ContainerStatuses {
			switch {
			case s.State.Running != nil:
				states["running"]++
			case s.State.Terminated != nil:
				states["exited"]++
			default:
				states["created"]++
			}
		}
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	fmt.Fprintf(w, "# HELP kubelet_node_name The node's name. The count is always 1.\n# TYPE kubelet_node_name gauge\nkubelet_node_name{node=%q} 1\n", h.opts.NodeName)
	fmt.Fprintf(w, "# HELP kubelet_running_pods Number of pods that run.\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods %d\n", phases[corev1.PodRunning])
	fmt.Fprint(w, "# HELP kubelet_running_containers Number of containers by state.\n# TYPE kubelet_running_containers gauge\n")
	for _, state := range []string{"created", "exited", "running"} {
		fmt.Fprintf(w, "kubelet_running_containers{container_state=%q} %d\n", state, states[state])
	}
}

// resourceMetrics serves what metrics-server reads.
func (h *Handler) resourceMetrics(w http.ResponseWriter, r *http.Request) {
	var cpu, memory strings.Builder
	for _, pod := range h.pods.Pods() {
		for i := range pod.Status.ContainerStatuses {
			s := &pod.Status.ContainerStatuses[i]
			u, ok := h.usage(r.Context(), s)
			if !ok {
				continue
			}
			labels := fmt.Sprintf("{container=%q,namespace=%q,pod=%q}", s.Name, pod.Namespace, pod.Name)
			fmt.Fprintf(&cpu, "container_cpu_usage_seconds_total%s %g %d\n", labels, float64(u.CPUNanos)/1e9, u.At.UnixMilli())
			fmt.Fprintf(&memory, "container_memory_working_set_bytes%s %d %d\n", labels, u.WorkingSetBytes, u.At.UnixMilli())
		}
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	fmt.Fprintf(w, "# HELP container_cpu_usage_seconds_total CPU time of a container.\n# TYPE container_cpu_usage_seconds_total counter\n%s", cpu.String())
	fmt.Fprintf(w, "# HELP container_memory_working_set_bytes Working set of a container.\n# TYPE container_memory_working_set_bytes gauge\n%s", memory.String())
	if h.opts.NodeUsage == nil {
		return
	}
	if u, err := h.opts.NodeUsage(); err == nil {
		fmt.Fprintf(w, "# HELP node_cpu_usage_seconds_total CPU time of the node.\n# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total %g %d\n", float64(u.CPUNanos)/1e9, u.At.UnixMilli())
		fmt.Fprintf(w, "# HELP node_memory_working_set_bytes Working set of the node.\n# TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes %d %d\n", u.WorkingSetBytes, u.At.UnixMilli())
	}
}

func (h *Handler) usage(ctx context.Context, s *corev1.ContainerStatus) (Usage, bool) {
	id, ok := runningID(s)
	if !ok || h.opts.Usage == nil {
		return Usage{}, false
	}
	u, err := h.opts.Usage(ctx, id)
	return u, err == nil
}

// summary serves CPU and memory of the node and its pods.
func (h *Handler) summary(w http.ResponseWriter, r *http.Request) {
	out := statsapi.Summary{Node: statsapi.NodeStats{NodeName: h.opts.NodeName}, Pods: []statsapi.PodStats{}}
	if h.opts.NodeUsage != nil {
		if u, err := h.opts.NodeUsage(); err == nil {
			out.Node.CPU, out.Node.Memory = figures(u)
		}
	}
	for _, pod := range h.pods.Pods() {
		p := statsapi.PodStats{PodRef: statsapi.PodReference{Name: pod.Name, Namespace: pod.Namespace, UID: string(pod.UID)}}
		if pod.Status.StartTime != nil {
			p.StartTime = *pod.Status.StartTime
		}
		var total Usage
		for i := range pod.Status.ContainerStatuses {
			s := &pod.Status.ContainerStatuses[i]
			u, ok := h.usage(r.Context(), s)
			if !ok {
				continue
			}
			c := statsapi.ContainerStats{Name: s.Name, StartTime: s.State.Running.StartedAt}
			c.CPU, c.Memory = figures(u)
			p.Containers = append(p.Containers, c)
			total.At = u.At
			total.CPUNanos += u.CPUNanos
			total.NanoCores += u.NanoCores
			total.MemoryBytes += u.MemoryBytes
			total.WorkingSetBytes += u.WorkingSetBytes
		}
		if len(p.Containers) > 0 {
			p.CPU, p.Memory = figures(total)
		}
		out.Pods = append(out.Pods, p)
	}
	writeJSON(w, out)
}

func figures(u Usage) (*statsapi.CPUStats, *statsapi.MemoryStats) {
	at := metav1.NewTime(u.At.Truncate(time.Second))
	cpu := &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &u.CPUNanos}
	if u.NanoCores > 0 {
		cpu.UsageNanoCores = &u.NanoCores
	}
	return cpu, &statsapi.MemoryStats{Time: at, UsageBytes: &u.MemoryBytes, WorkingSetBytes: &u.WorkingSetBytes}
}
