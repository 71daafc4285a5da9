package nodeapi

import (
	"net/http"
	"runtime"
	"time"

	corev1 "k8s.io/api/core/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// The kinds of a family.
const (
	gauge     = "gauge"
	counter   = "counter"
	histogram = "histogram"
)

// metrics serves figures of the agent itself, by the kubelet's names.
func (h *Handler) metrics(w http.ResponseWriter, _ *http.Request) {
	phases := map[corev1.PodPhase]int{}
	states := map[string]int{"created": 0, "exited": 0, "running": 0, "unknown": 0}
	pods := h.pods.Pods()
	for _, pod := range pods {
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
	page := newExposition()
	page.add("kubelet_node_name", gauge, "[ALPHA] The node's name. The count is always 1.", 1, time.Time{}, "node", h.opts.NodeName)
	page.add("kubelet_running_pods", gauge, "[BETA] Number of pods that have a running pod sandbox", float64(phases[corev1.PodRunning]), time.Time{})
	page.add("kubelet_desired_pods", gauge, "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.",
		float64(len(pods)), time.Time{}, "static", "")
	for _, state := range []string{"created", "exited", "running", "unknown"} {
		page.add("kubelet_running_containers", gauge, "[BETA] Number of containers currently running", float64(states[state]), time.Time{}, "container_state", state)
	}
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	page.add("go_goroutines", gauge, "Number of goroutines that currently exist.", float64(runtime.NumGoroutine()), time.Time{})
	page.add("go_memstats_heap_alloc_bytes", gauge, "Number of heap bytes allocated and currently in use.", float64(memory.HeapAlloc), time.Time{})
	h.volumeMetrics(page)
	page.write(w)
}

// volumeMetrics are kubelet_volume_stats_*, of volumes that have claims.
func (h *Handler) volumeMetrics(page *exposition) {
	if h.opts.Stats == nil {
		return
	}
	for _, v := range h.opts.Stats.ClaimVolumes() {
		labels := []string{"namespace", v.Namespace, "persistentvolumeclaim", v.Claim}
		one := func(name, help string, value uint64) {
			page.add("kubelet_volume_stats_"+name, gauge, help, float64(value), time.Time{}, labels...)
		}
		one("available_bytes", "[ALPHA] Number of available bytes in the volume", v.AvailableBytes)
		one("capacity_bytes", "[ALPHA] Capacity in bytes of the volume", v.CapacityBytes)
		one("used_bytes", "[ALPHA] Number of used bytes in the volume", v.UsedBytes)
		one("inodes", "[ALPHA] Maximum number of inodes in the volume", v.Inodes)
		one("inodes_free", "[ALPHA] Number of free inodes in the volume", v.InodesFree)
		one("inodes_used", "[ALPHA] Number of used inodes in the volume", v.InodesUsed)
	}
}

// summary serves what the node and its pods use.
func (h *Handler) summary(w http.ResponseWriter, r *http.Request) {
	if h.opts.Stats == nil {
		writeJSON(w, statsapi.Summary{Node: statsapi.NodeStats{NodeName: h.opts.NodeName}, Pods: []statsapi.PodStats{}})
		return
	}
	only := r.URL.Query()["only_cpu_and_memory"]
	summary, err := h.opts.Stats.Summary(r.Context(), len(only) == 1 && only[0] == "true")
	if err != nil {
		http.Error(w, "Internal Error: "+err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, summary)
}

// resourceMetrics serves what metrics-server reads.
func (h *Handler) resourceMetrics(w http.ResponseWriter, r *http.Request) {
	page, failed := newExposition(), 0.0
	if h.opts.Stats != nil {
		summary, err := h.opts.Stats.Summary(r.Context(), true)
		if err != nil {
			failed = 1
			h.opts.Logger.Warn("cannot measure the node", "error", err)
		} else {
			addResources(page, summary)
		}
	}
	page.add("resource_scrape_error", gauge, "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise", failed, time.Time{})
	page.add("scrape_error", gauge, "[ALPHA] (Deprecated since 1.29.0) 1 if there was an error while getting container metrics, 0 otherwise", failed, time.Time{})
	page.write(w)
}

func addResources(page *exposition, summary *statsapi.Summary) {
	add := func(of, stability string, cpu *statsapi.CPUStats, memory *statsapi.MemoryStats, swap *statsapi.SwapStats, labels ...string) {
		if cpu != nil && cpu.UsageCoreNanoSeconds != nil {
			page.add(of+"_cpu_usage_seconds_total", counter, stability+" Cumulative cpu time consumed by the "+of+" in core-seconds",
				float64(*cpu.UsageCoreNanoSeconds)/1e9, cpu.Time.Time, labels...)
		}
		if memory != nil && memory.WorkingSetBytes != nil {
			page.add(of+"_memory_working_set_bytes", gauge, stability+" Current working set of the "+of+" in bytes",
				float64(*memory.WorkingSetBytes), memory.Time.Time, labels...)
		}
		if swap == nil || swap.SwapUsageBytes == nil {
			return
		}
		page.add(of+"_swap_usage_bytes", gauge, "[ALPHA] Current swap usage of the "+of+" in bytes. Reported only on non-windows systems",
			float64(*swap.SwapUsageBytes), swap.Time.Time, labels...)
		if of == "container" && swap.SwapAvailableBytes != nil {
			page.add("container_swap_limit_bytes", gauge, "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems",
				float64(*swap.SwapAvailableBytes+*swap.SwapUsageBytes), swap.Time.Time, labels...)
		}
	}
	add("node", "[STABLE]", summary.Node.CPU, summary.Node.Memory, summary.Node.Swap)
	for i := range summary.Pods {
		p := &summary.Pods[i]
		for j := range p.Containers {
			c := &p.Containers[j]
			labels := []string{"container", c.Name, "namespace", p.PodRef.Namespace, "pod", p.PodRef.Name}
			if began := c.StartTime.Time; began.Unix() > 0 {
				page.add("container_start_time_seconds", gauge, "[STABLE] Start time of the container since unix epoch in seconds",
					float64(began.UnixNano())/1e9, time.Time{}, labels...)
			}
			add("container", "[STABLE]", c.CPU, c.Memory, c.Swap, labels...)
		}
		add("pod", "[STABLE]", p.CPU, p.Memory, p.Swap, "namespace", p.PodRef.Namespace, "pod", p.PodRef.Name)
	}
}

// ProbeCount is how often a probe of a container had each result, and how long it took.
type ProbeCount struct {
	Namespace, Pod, PodUID, Container string
	Type                              string    // "Liveness", "Readiness" or "Startup"
	Results                           [3]uint64 // successful, failed, unknown
	Seconds                           float64   // of all that did not fail, together
	Buckets                           []uint64  // of those, how many took at most each of ProbeBuckets
}

// ProbeBuckets are the bounds of ProbeCount.Buckets in seconds.
func ProbeBuckets() []float64 { return []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10} }

// probeMetrics serves how the probes went.
func (h *Handler) probeMetrics(w http.ResponseWriter, _ *http.Request) {
	page := newExposition()
	var counts []ProbeCount
	if h.opts.Probes != nil {
		counts = h.opts.Probes()
	}
	bounds := ProbeBuckets()
	for i := range counts {
		c := &counts[i]
		for j, result := range []string{"successful", "failed", "unknown"} {
			if c.Results[j] > 0 {
				page.add("prober_probe_total", counter, "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
					float64(c.Results[j]), time.Time{}, "container", c.Container, "namespace", c.Namespace, "pod", c.Pod, "pod_uid", c.PodUID,
					"probe_type", c.Type, "result", result)
			}
		}
		total := c.Results[0] + c.Results[2]
		if total == 0 {
			continue
		}
		const name = "prober_probe_duration_seconds"
		out := page.family(name, histogram, "[ALPHA] Duration in seconds for a probe response.")
		labels := []string{"container", c.Container, "namespace", c.Namespace, "pod", c.Pod, "probe_type", c.Type}
		for j, bound := range bounds {
			page.sample(out, name+"_bucket", float64(c.Buckets[j]), time.Time{}, append(labels, "le", number(bound))...)
		}
		page.sample(out, name+"_bucket", float64(total), time.Time{}, append(labels, "le", "+Inf")...)
		page.sample(out, name+"_sum", c.Seconds, time.Time{}, labels...)
		page.sample(out, name+"_count", float64(total), time.Time{}, labels...)
	}
	page.add("process_start_time_seconds", gauge, "[ALPHA] Start time of the process since unix epoch in seconds.", float64(h.started.UnixNano())/1e9, time.Time{})
	page.write(w)
}
