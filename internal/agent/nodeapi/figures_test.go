package nodeapi_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/nodeapi"
	"gantry.dev/gantry/internal/agent/stats"
)

// statsOf measures webPod in a machine made of files.
func statsOf(t *testing.T, dir string) *stats.Reader {
	t.Helper()
	files := map[string]string{
		"proc/stat": "cpu 100 0 0\nbtime 1700000000\n", "proc/meminfo": "MemTotal: 1000 kB\nMemFree: 400 kB\n", "proc/loadavg": "0 0 0 1/50 9\n",
		"proc/77/net/dev": "head\nhead\n eth0: 10 1 0 0 0 0 0 0 20 2 0 0 0 0 0 0\n", "cg/cgroup.controllers": "",
	}
	for _, cgroup := range []string{"cg/kubepods/besteffort/poduid-1/", "cg/kubepods/besteffort/poduid-1/c2/"} {
		files[cgroup+"cpu.stat"] = "usage_usec 5000000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 7\n"
		files[cgroup+"memory.current"] = "42\n"
		files[cgroup+"memory.stat"] = "anon 30\n"
		files[cgroup+"cgroup.procs"] = "77\n"
		files[cgroup+"cpu.weight"] = "100\n"
		files[cgroup+"cpu.max"] = "50000 100000\n"
		files[cgroup+"pids.current"] = "3\n"
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := stats.New(stats.Options{
		NodeName: "node-1", Pods: func() []*corev1.Pod { return []*corev1.Pod{webPod()} }, PodsDir: dir, LogDir: dir,
		CgroupMount: filepath.Join(dir, "cg"), Proc: filepath.Join(dir, "proc"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func probeCounts() []nodeapi.ProbeCount {
	return []nodeapi.ProbeCount{{
		Namespace: "default", Pod: "web", PodUID: "uid-1", Container: "main", Type: "Readiness", Results: [3]uint64{3, 1, 0}, Seconds: 0.5,
		Buckets: make([]uint64, len(nodeapi.ProbeBuckets())),
	}}
}

func TestFigures(t *testing.T) {
	server, _ := serve(t)
	for path, want := range map[string][]string{
		"/healthz": {"ok"},
		"/pods":    {`"kind":"PodList"`},
		"/metrics": {"kubelet_running_pods 1\n", `kubelet_running_containers{container_state="running"} 1`},
		"/metrics/resource": {
			`container_memory_working_set_bytes{container="main",namespace="default",pod="web"} 42 `,
			`container_cpu_usage_seconds_total{container="main",namespace="default",pod="web"} 5 `,
			`pod_cpu_usage_seconds_total{namespace="default",pod="web"} 5 `, "node_cpu_usage_seconds_total 1 ", "resource_scrape_error 0",
		},
		"/metrics/cadvisor": {
			`container_cpu_usage_seconds_total{cpu="total",container="main",id="/kubepods/besteffort/poduid-1/c2",image="",name="c2",namespace="default",pod="web"} 5 `,
			`container_cpu_cfs_throttled_periods_total{container="main"`, `container_spec_cpu_quota{container="main"`,
			`container_network_receive_bytes_total{interface="eth0",container="",id="/kubepods/besteffort/poduid-1",image="",name="",namespace="default",pod="web"} 10 `,
			`container_memory_working_set_bytes{container="",id="/",`, "machine_cpu_cores 2\n", "machine_memory_bytes 1.024e+06",
		},
		"/metrics/probes": {
			`prober_probe_total{container="main",namespace="default",pod="web",pod_uid="uid-1",probe_type="Readiness",result="successful"} 3`,
			`prober_probe_duration_seconds_count{container="main",namespace="default",pod="web",probe_type="Readiness"} 3`,
		},
		"/stats/summary": {`"usageCoreNanoSeconds":5000000000`, `"process_count":3`, `"rxBytes":10`, `"ephemeral-storage"`},
		"/stats/summary?only_cpu_and_memory=true": {`"workingSetBytes":42`},
	} {
		code, body := get(t, server, path)
		for _, part := range want {
			if code != 200 || !strings.Contains(body+"\n", part) {
				t.Errorf("%s answers %d, want %q in\n%s", path, code, part, body)
			}
		}
	}
	if _, body := get(t, server, "/stats/summary?only_cpu_and_memory=true"); strings.Contains(body, "ephemeral-storage") {
		t.Error("the brief summary has disk space")
	}
	if code, _ := get(t, server, "/exec/default/none/main?command=x&output=1"); code != 404 {
		t.Errorf("exec in a pod that is not there answers %d", code)
	}
}
