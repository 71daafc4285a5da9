package stats_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/agent/stats"
)

// write makes files below a folder of the test, by relative path.
func write(t *testing.T, root string, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCgroups(t *testing.T) {
	want := stats.Usage{
		CPUNanos: 5_000_000_000, UserNanos: 3_000_000_000, SystemNanos: 2_000_000_000, Periods: 10, ThrottledPeriods: 4, ThrottledNanos: 7000,
		MemoryBytes: 1000, WorkingSetBytes: 700, RSSBytes: 400, CacheBytes: 600, MappedBytes: 50, SwapBytes: 8,
		PageFaults: 90, MajorPageFaults: 3, MemoryPeakBytes: 1500, MemoryFailures: 2, OOMKills: 1,
		MemoryLimitBytes: 2000, SwapLimitBytes: 500, Pids: 6, PidsLimit: 100,
	}
	for name, files := range map[string]map[string]string{
		"v2": {
			"cgroup.controllers":    "cpu memory pids\n",
			"a/cpu.stat":            "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 7\n",
			"a/memory.current":      "1000\n",
			"a/memory.stat":         "anon 400\nfile 600\nfile_mapped 50\ninactive_file 300\npgfault 90\npgmajfault 3\n",
			"a/memory.swap.current": "8\n", "a/memory.max": "2000\n", "a/memory.swap.max": "500\n", "a/memory.peak": "1500\n",
			"a/memory.events": "low 0\nhigh 0\nmax 2\noom 1\noom_kill 1\n", "a/pids.current": "6\n", "a/pids.max": "100\n",
		},
		"v1": {
			"cpuacct/a/cpuacct.usage": "5000000000\n", "cpuacct/a/cpuacct.usage_user": "3000000000\n", "cpuacct/a/cpuacct.usage_sys": "2000000000\n",
			"cpu/a/cpu.stat":                 "nr_periods 10\nnr_throttled 4\nthrottled_time 7000\n",
			"memory/a/memory.usage_in_bytes": "1000\n",
			"memory/a/memory.stat":           "rss 1\ncache 1\ntotal_rss 400\ntotal_cache 600\ntotal_mapped_file 50\ntotal_inactive_file 300\ntotal_swap 8\ntotal_pgfault 90\ntotal_pgmajfault 3\n",
			"memory/a/memory.limit_in_bytes": "2000\n", "memory/a/memory.memsw.limit_in_bytes": "2500\n",
			"memory/a/memory.max_usage_in_bytes": "1500\n", "memory/a/memory.failcnt": "2\n", "memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
			"pids/a/pids.current": "6\n", "pids/a/pids.max": "100\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got stats.Usage
			if err := stats.NewCgroups(write(t, t.TempDir(), files)).Read("/a", &got); err != nil {
				t.Fatal(err)
			}
			got.At = time.Time{}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Read (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("no limits", func(t *testing.T) {
		root := write(t, t.TempDir(), map[string]string{
			"cgroup.controllers": "", "a/cpu.stat": "usage_usec 1\n", "a/memory.current": "10\n", "a/memory.stat": "inactive_file 50\n",
			"a/memory.max": "max\n", "a/pids.max": "max\n",
		})
		var got stats.Usage
		if err := stats.NewCgroups(root).Read("/a", &got); err != nil {
			t.Fatal(err)
		}
		if got.MemoryLimitBytes != 0 || got.PidsLimit != 0 || got.WorkingSetBytes != 0 {
			t.Errorf("Read = %+v, want no limits and an empty working set", got)
		}
	})
	t.Run("gone", func(t *testing.T) {
		if err := stats.NewCgroups(t.TempDir()).Read("/a", new(stats.Usage)); err == nil {
			t.Error("reading a cgroup that is gone gave no error")
		}
	})
}

func TestMachine(t *testing.T) {
	root := write(t, t.TempDir(), map[string]string{
		"stat":    "cpu  100 20 30 9999 77 1 2 3 50 0\ncpu0 1 1 1 1\nintr 5\nbtime 1700000000\n",
		"meminfo": "MemTotal: 1000 kB\nMemFree: 400 kB\nMemAvailable: 1 kB\nInactive(file): 100 kB\nAnonPages: 200 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\n",
		"vmstat":  "pgfault 7\npgmajfault 2\n", "loadavg": "0.1 0.2 0.3 2/181 31761\n",
		"sys/kernel/pid_max": "32768\n", "sys/kernel/threads-max": "9000\n",
	})
	var got stats.Node
	if err := stats.NewMachine(root).Read(&got); err != nil {
		t.Fatal(err)
	}
	got.At = time.Time{}
	want := stats.Node{
		CPUNanos: 1_560_000_000, UserNanos: 1_200_000_000, SystemNanos: 360_000_000,
		CapacityBytes: 1000 << 10, MemoryBytes: 600 << 10, WorkingSetBytes: 500 << 10, AvailableBytes: 500 << 10, RSSBytes: 200 << 10,
		PageFaults: 7, MajorPageFaults: 2, SwapBytes: 30 << 10, SwapCapacity: 50 << 10, Pids: 181, MaxPids: 9000,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Read (-want +got):\n%s", diff)
	}
}

// runningPod has one container, "app" with the ID 1.
func runningPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u1"},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "app"}},
			Volumes: []corev1.Volume{
				{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{Name: "fast", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
			},
		},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
			Name: "app", ContainerID: "containerd://1", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
		}}},
	}
}

func newReader(t *testing.T, root string, pods ...*corev1.Pod) *stats.Reader {
	t.Helper()
	r, err := stats.New(stats.Options{
		NodeName: "n", Pods: func() []*corev1.Pod { return pods }, PodsDir: filepath.Join(root, "pods"), LogDir: filepath.Join(root, "logs"),
		CgroupMount: filepath.Join(root, "cg"), Proc: filepath.Join(root, "proc"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func cgroupFiles(micros string) map[string]string {
	files := map[string]string{"cg/cgroup.controllers": "", "proc/stat": "cpu 1 0 0\n", "proc/meminfo": "MemTotal: 1 kB\n"}
	for _, dir := range []string{"cg/kubepods/besteffort/podu1/", "cg/kubepods/besteffort/podu1/1/"} {
		files[dir+"cpu.stat"] = "usage_usec " + micros + "\n"
		files[dir+"memory.current"] = "100\n"
		files[dir+"memory.stat"] = "anon 1\n"
	}
	return files
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := write(t, t.TempDir(), cgroupFiles("1000000"))
		pod := runningPod()
		r := newReader(t, root, pod)
		container := func() (rate uint64, known bool) {
			t.Helper()
			s, err := r.Summary(t.Context(), true)
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Pods) != 1 || len(s.Pods[0].Containers) != 1 {
				t.Fatalf("the summary has %+v, want one pod with one container", s.Pods)
			}
			cpu := s.Pods[0].Containers[0].CPU
			if cpu.UsageNanoCores == nil {
				return 0, false
			}
			return *cpu.UsageNanoCores, true
		}
		time.Sleep(2 * time.Second) // virtual
		if rate, known := container(); known {
			t.Errorf("after 2 s the rate is %d, want none yet", rate)
		}
		time.Sleep(18 * time.Second)
		write(t, root, cgroupFiles("6000000")) // 5 s of CPU in 18 s
		if rate, known := container(); !known || rate != 277777777 {
			t.Errorf("rate %d, %t; want 277777777: 5 s in 18 s", rate, known)
		}
		write(t, root, cgroupFiles("9000000"))
		time.Sleep(time.Second)
		if rate, _ := container(); rate != 277777777 {
			t.Errorf("a second later the rate is %d; want the same window", rate)
		}
	})
}

func TestStorage(t *testing.T) {
	root := t.TempDir()
	pod := runningPod()
	volumes := "pods/u1/volumes/kubernetes.io~empty-dir/"
	write(t, root, map[string]string{
		volumes + "data/a": strings.Repeat("x", 100_000), volumes + "data/deep/er/b": strings.Repeat("x", 50_000),
		volumes + "fast/c":                  strings.Repeat("x", 70_000),
		"logs/default_web_u1/app/0.log":     strings.Repeat("x", 30_000),
		"logs/default_web_u1/sidecar/0.log": strings.Repeat("x", 30_000),
	})
	if err := os.Link(filepath.Join(root, volumes, "data/a"), filepath.Join(root, volumes, "data/again")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(root, volumes, "data/host")); err != nil {
		t.Fatal(err)
	}
	r := newReader(t, root, pod)
	s, err := r.Storage(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	// Folders take blocks of their own on some file systems.
	if data := s.Volumes["data"]; data.UsedBytes < 150_000 || data.UsedBytes > 200_000 || data.InodesUsed != 6 || !data.Ephemeral {
		t.Errorf("volume data uses %d bytes in %d inodes, ephemeral %t; want about 150000 in 6, true", data.UsedBytes, data.InodesUsed, data.Ephemeral)
	}
	if s.Volumes["fast"].Ephemeral {
		t.Error("a volume in memory counts against the node's disk")
	}
	if logs := s.Containers["app"].LogBytes; logs < 30_000 || logs > 45_000 {
		t.Errorf("the logs of app have %d bytes, want about 30000", logs)
	}
	if s.UsedBytes != s.Volumes["data"].UsedBytes+s.Containers["app"].LogBytes {
		t.Errorf("the pod uses %d bytes, want the sum of its volume and its log", s.UsedBytes)
	}
	write(t, root, map[string]string{volumes + "data/later": strings.Repeat("x", 100_000)})
	if again, _ := r.Storage(t.Context(), pod); again.UsedBytes != s.UsedBytes {
		t.Error("the folders were walked again at once")
	}
}

func BenchmarkNode(b *testing.B) {
	r, err := stats.New(stats.Options{Pods: func() []*corev1.Pod { return nil }, PodsDir: "/", LogDir: "/"})
	if err != nil {
		b.Fatal(err)
	}
	var n stats.Node
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Node(&n); err != nil {
			b.Fatal(err)
		}
	}
}

func TestClaimVolumes(t *testing.T) {
	root := t.TempDir()
	pod := runningPod()
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "db"}}},
		{Name: "again", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "db"}}},
		{Name: "own", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
		{Name: "pending", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "later"}}},
	}
	r, err := stats.New(stats.Options{
		Pods: func() []*corev1.Pod { return []*corev1.Pod{pod} }, PodsDir: root, LogDir: root,
		VolumeDir: func(_ *corev1.Pod, volume string) (string, bool) { return root, volume != "pending" },
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range r.ClaimVolumes() {
		got = append(got, v.Namespace+"/"+v.Claim)
		if v.CapacityBytes == 0 {
			t.Errorf("claim %s has no capacity", v.Claim)
		}
	}
	if diff := cmp.Diff([]string{"default/db", "default/web-own"}, got); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
}

// BenchmarkSample is what happens every 15 s on a node with ten pods.
func BenchmarkSample(b *testing.B) {
	root := b.TempDir()
	var pods []*corev1.Pod
	for i := range 10 {
		pod := runningPod()
		pod.UID = types.UID(fmt.Sprint("u", i))
		pods = append(pods, pod)
		for _, dir := range []string{"", "/1"} {
			path := filepath.Join(root, "cg/kubepods/besteffort/pod"+string(pod.UID)+dir)
			if err := os.MkdirAll(path, 0o755); err != nil {
				b.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(path, "cpu.stat"), []byte("usage_usec 5\nuser_usec 3\nsystem_usec 2\n"), 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(root, "cg/cgroup.controllers"), nil, 0o600); err != nil {
		b.Fatal(err)
	}
	r, err := stats.New(stats.Options{Pods: func() []*corev1.Pod { return pods }, PodsDir: root, LogDir: root, CgroupMount: filepath.Join(root, "cg")})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Sample()
	}
}
