package nodeapi

import (
	"net/http"
	"strconv"
	"time"

	"gantry.dev/gantry/internal/agent/stats"
)

// cadvisorMetrics serves the series that dashboards know from cAdvisor, with its names and
// labels: a sample for each container, pod and class of pods, and for the machine with the id "/".
func (h *Handler) cadvisorMetrics(w http.ResponseWriter, r *http.Request) {
	page := newExposition()
	if h.opts.Stats != nil {
		measured, err := h.opts.Stats.Groups(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		for i := range measured {
			addGroup(page, &measured[i])
		}
		h.machineMetrics(page)
	}
	page.write(w)
}

func (h *Handler) machineMetrics(page *exposition) {
	page.add("machine_cpu_cores", gauge, "Number of logical CPU cores.", float64(h.opts.Cores), time.Time{})
	var n stats.Node
	if h.opts.Stats.Node(&n) == nil {
		page.add("machine_memory_bytes", gauge, "Amount of memory installed on the machine.", float64(n.CapacityBytes), time.Time{})
		page.add("machine_swap_bytes", gauge, "Amount of swap memory available on the machine.", float64(n.SwapCapacity), time.Time{})
	}
}

// addGroup adds the samples of one cgroup.
func addGroup(page *exposition, g *stats.Group) {
	labels := []string{"container", g.Container, "id", g.Cgroup, "image", g.Image, "name", g.ID, "namespace", g.Namespace, "pod", g.Pod}
	u := &g.Usage
	add := func(name, kind, help string, value float64, more ...string) {
		page.add(name, kind, help, value, u.At, append(more, labels...)...)
	}
	seconds := func(nanos uint64) float64 { return float64(nanos) / 1e9 }
	add("container_cpu_usage_seconds_total", counter, "Cumulative cpu time consumed in seconds.", seconds(u.CPUNanos), "cpu", "total")
	add("container_cpu_user_seconds_total", counter, "Cumulative user cpu time consumed in seconds.", seconds(u.UserNanos))
	add("container_cpu_system_seconds_total", counter, "Cumulative system cpu time consumed in seconds.", seconds(u.SystemNanos))
	if u.Periods > 0 {
		add("container_cpu_cfs_periods_total", counter, "Number of elapsed enforcement period intervals.", float64(u.Periods))
		add("container_cpu_cfs_throttled_periods_total", counter, "Number of throttled period intervals.", float64(u.ThrottledPeriods))
		add("container_cpu_cfs_throttled_seconds_total", counter, "Total time duration the container has been throttled.", seconds(u.ThrottledNanos))
	}
	add("container_memory_usage_bytes", gauge, "Current memory usage in bytes, including all memory regardless of when it was accessed", float64(u.MemoryBytes))
	add("container_memory_working_set_bytes", gauge, "Current working set in bytes.", float64(u.WorkingSetBytes))
	add("container_memory_rss", gauge, "Size of RSS in bytes.", float64(u.RSSBytes))
	add("container_memory_cache", gauge, "Number of bytes of page cache memory.", float64(u.CacheBytes))
	add("container_memory_mapped_file", gauge, "Size of memory mapped files in bytes.", float64(u.MappedBytes))
	add("container_memory_swap", gauge, "Container swap usage in bytes.", float64(u.SwapBytes))
	add("container_memory_max_usage_bytes", gauge, "Maximum memory usage recorded in bytes", float64(u.MemoryPeakBytes))
	add("container_memory_failcnt", counter, "Number of memory usage hits limits", float64(u.MemoryFailures))
	for kind, count := range map[string]uint64{"pgfault": u.PageFaults - min(u.PageFaults, u.MajorPageFaults), "pgmajfault": u.MajorPageFaults} {
		add("container_memory_failures_total", counter, "Cumulative count of memory allocation failures.", float64(count), "failure_type", kind, "scope", "hierarchy")
	}
	add("container_oom_events_total", counter, "Count of out of memory events observed for the container", float64(u.OOMKills))
	add("container_processes", gauge, "Number of processes running inside the container.", float64(u.Pids))
	add("container_threads", gauge, "Number of threads running inside the container", float64(u.Pids))
	add("container_threads_max", gauge, "Maximum number of threads allowed inside the container, infinity if value is zero", float64(u.PidsLimit))
	add("container_last_seen", gauge, "Last time a container was seen by the exporter", float64(u.At.Unix()))
	addSpec(page, g, labels)
	if g.FS != nil {
		add("container_fs_usage_bytes", gauge, "Number of bytes that are consumed by the container on this filesystem.", float64(g.FS.UsedBytes), "device", g.Device)
		add("container_fs_limit_bytes", gauge, "Number of bytes that can be consumed by the container on this filesystem.", float64(g.FS.CapacityBytes), "device", g.Device)
		add("container_fs_inodes_total", gauge, "Number of Inodes", float64(g.FS.Inodes), "device", g.Device)
		add("container_fs_inodes_free", gauge, "Number of available Inodes", float64(g.FS.InodesFree), "device", g.Device)
	}
	for i := range g.Interfaces {
		addInterface(add, &g.Interfaces[i])
	}
}

// addSpec adds what does not change: when a cgroup was made, and its limits.
func addSpec(page *exposition, g *stats.Group, labels []string) {
	add := func(name, help string, value float64) { page.add(name, gauge, help, value, time.Time{}, labels...) }
	if !g.Started.IsZero() {
		add("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", float64(g.Started.UnixNano())/1e9)
	}
	add("container_spec_memory_limit_bytes", "Memory limit for the container.", float64(g.Usage.MemoryLimitBytes))
	add("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", float64(g.Usage.SwapLimitBytes))
	if g.Shares > 0 {
		add("container_spec_cpu_shares", "CPU share of the container.", float64(g.Shares))
	}
	if g.QuotaMicros > 0 {
		add("container_spec_cpu_quota", "CPU quota of the container.", float64(g.QuotaMicros))
	}
	if g.PeriodMicros > 0 {
		add("container_spec_cpu_period", "CPU period of the container.", float64(g.PeriodMicros))
	}
}

func addInterface(add func(name, kind, help string, value float64, more ...string), i *stats.Interface) {
	for _, s := range []struct {
		name, help string
		value      uint64
	}{
		{"receive_bytes", "Cumulative count of bytes received", i.RxBytes},
		{"receive_packets", "Cumulative count of packets received", i.RxPackets},
		{"receive_packets_dropped", "Cumulative count of packets dropped while receiving", i.RxDropped},
		{"receive_errors", "Cumulative count of errors encountered while receiving", i.RxErrors},
		{"transmit_bytes", "Cumulative count of bytes transmitted", i.TxBytes},
		{"transmit_packets", "Cumulative count of packets transmitted", i.TxPackets},
		{"transmit_packets_dropped", "Cumulative count of packets dropped while transmitting", i.TxDropped},
		{"transmit_errors", "Cumulative count of errors encountered while transmitting", i.TxErrors},
	} {
		add("container_network_"+s.name+"_total", counter, s.help, float64(s.value), "interface", i.Name)
	}
}

func number(value float64) string { return strconv.FormatFloat(value, 'g', -1, 64) }
