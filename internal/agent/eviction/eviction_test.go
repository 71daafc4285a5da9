package eviction

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		hard, soft, grace, reclaim map[string]string
		want                       []Threshold
		err                        string
	}{
		"hard gives allocatable too": {
			hard: map[string]string{"memory.available": "100Mi"},
			want: []Threshold{
				{Signal: MemoryAvailable, Value: Value{Amount: 100 << 20, Format: resource.BinarySI}},
				{Signal: AllocatableMemoryAvailable, Value: Value{Amount: 100 << 20, Format: resource.BinarySI}},
			},
		},
		"soft with grace and reclaim": {
			soft: map[string]string{"nodefs.available": "10%"}, grace: map[string]string{"nodefs.available": "90s"},
			reclaim: map[string]string{"nodefs.available": "1Gi"},
			want: []Threshold{{Signal: NodeFSAvailable, Value: Value{Share: 0.1}, Grace: 90 * time.Second,
				MinReclaim: Value{Amount: 1 << 30, Format: resource.BinarySI}}},
		},
		"switched off":         {hard: map[string]string{"imagefs.available": "0%", "nodefs.available": "100%", "containerfs.available": "5%"}},
		"no grace":             {soft: map[string]string{"memory.available": "1Gi"}, err: "has no grace period"},
		"unknown signal":       {hard: map[string]string{"memory.free": "1Gi"}, err: `no eviction signal "memory.free"`},
		"not an amount":        {hard: map[string]string{"memory.available": "lots"}, err: "neither an amount"},
		"more than everything": {hard: map[string]string{"nodefs.available": "120%"}, err: "not a share"},
		"zero amount":          {hard: map[string]string{"memory.available": "0"}, err: "more than 0"},
		"bad grace":            {grace: map[string]string{"memory.available": "soon"}, err: "not a duration"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(tc.hard, tc.soft, tc.grace, tc.reclaim)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("Parse: %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("Parse = %v, %v\nwant %v", got, err, tc.want)
			}
		})
	}
	if list, err := Parse(DefaultHard(), nil, nil, nil); err != nil || len(list) != 6 {
		t.Errorf("the defaults are %d thresholds, %v", len(list), err)
	}
}

func TestReserved(t *testing.T) {
	list, err := Parse(DefaultHard(), nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := Reserved(list, corev1.ResourceList{
		corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourceEphemeralStorage: resource.MustParse("1000"), corev1.ResourceCPU: resource.MustParse("2"),
	})
	if len(got) != 2 || got.Memory().String() != "100Mi" || got.StorageEphemeral().Value() != 100 {
		t.Errorf("Reserved = %v", got)
	}
}

// TestManager walks through one episode of memory pressure second by second.
func TestManager(t *testing.T) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	thresholds := []Threshold{
		{Signal: NodeFSAvailable, Value: Value{Share: 0.1}},
		{Signal: MemoryAvailable, Value: Value{Amount: 100}, MinReclaim: Value{Amount: 50}},
		{Signal: MemoryAvailable, Value: Value{Amount: 200}, Grace: 10 * time.Second},
	}
	m := NewManager(thresholds, time.Minute)
	memory := func(n int64, at int) Observations {
		return Observations{MemoryAvailable: {Available: n, Capacity: 1000, At: start.Add(time.Duration(at) * time.Second)}}
	}
	disk := memory(300, 1)
	disk[NodeFSAvailable] = Observation{Available: 500, Capacity: 1000, At: start}
	for i, step := range []struct {
		at         int // seconds
		observed   Observations
		conditions string
		starved    string
	}{
		{1, disk, "", ""},
		{2, memory(150, 2), "MemoryPressure", ""},                       // soft, not long enough
		{11, memory(150, 11), "MemoryPressure", ""},                     // 9 s
		{12, memory(150, 12), "MemoryPressure", "memory.available/10s"}, // grace has passed
		{13, memory(150, 12), "MemoryPressure", ""},                     // the same measurement
		{14, memory(90, 14), "MemoryPressure", "memory.available/0s memory.available/10s"},
		{15, memory(120, 15), "MemoryPressure", "memory.available/10s memory.available/0s"}, // above, but min reclaim is not
		{16, memory(500, 16), "MemoryPressure", ""},
		{74, memory(500, 74), "MemoryPressure", ""},
		{75, memory(500, 75), "", ""}, // 60 s after it was last met
		{80, Observations{
			MemoryAvailable: {Available: 10, Capacity: 1000, At: start.Add(80 * time.Second)},
			NodeFSAvailable: {Available: 10, Capacity: 1000, At: start.Add(80 * time.Second)},
		}, "DiskPressure MemoryPressure", "memory.available/0s nodefs.available/0s"},
	} {
		d := m.Observe(start.Add(time.Duration(step.at)*time.Second), step.observed)
		var conditions, starved []string
		for _, c := range d.Conditions {
			conditions = append(conditions, string(c))
		}
		for _, s := range d.Starved {
			starved = append(starved, string(s.Signal)+"/"+s.Grace.String())
		}
		if got := strings.Join(conditions, " "); got != step.conditions {
			t.Errorf("step %d: conditions %q, want %q", i, got, step.conditions)
		}
		if got := strings.Join(starved, " "); got != step.starved {
			t.Errorf("step %d: starved %q, want %q", i, got, step.starved)
		}
	}
	if !m.Near(memory(150, 81)) || m.Near(memory(1000, 81)) {
		t.Error("Near does not tell what is near")
	}
}

func pod(name string, priority int32, memory string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
	p.Spec.Priority = &priority
	p.Spec.Containers = []corev1.Container{{Name: "main"}}
	if memory != "" {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}
	}
	return p
}

func TestRank(t *testing.T) {
	names := func(pods []*corev1.Pod) string {
		var list []string
		for _, p := range pods {
			list = append(list, p.Name)
		}
		return strings.Join(list, " ")
	}
	volume := pod("volume", 0, "")
	volume.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	for name, tc := range map[string]struct {
		signal Signal
		split  bool
		pods   []*corev1.Pod
		usages Usages
		want   string
	}{
		"memory: over its request, then priority, then most above": {
			signal: MemoryAvailable,
			pods:   []*corev1.Pod{pod("within", 0, "500"), pod("vip", 100, ""), pod("some", 0, "10"), pod("most", 0, ""), pod("blind", 50, "")},
			usages: Usages{"within": {MemoryBytes: 400}, "vip": {MemoryBytes: 900}, "some": {MemoryBytes: 30}, "most": {MemoryBytes: 40}},
			want:   "blind most some vip within",
		},
		"pids: priority, then most": {
			signal: PIDAvailable,
			pods:   []*corev1.Pod{pod("vip", 1, ""), pod("few", 0, ""), pod("many", 0, "")},
			usages: Usages{"vip": {Processes: 900}, "few": {Processes: 3}, "many": {Processes: 30}},
			want:   "many few vip",
		},
		"one disk: everything counts": {
			signal: NodeFSAvailable,
			pods:   []*corev1.Pod{pod("log", 0, ""), volume, pod("root", 0, "")},
			usages: Usages{
				"log":    {Containers: []ContainerUsage{{Name: "main", Logs: Disk{Bytes: 10}}}},
				"volume": {Volumes: map[string]Disk{"data": {Bytes: 20}}},
				"root":   {Containers: []ContainerUsage{{Name: "main", RootFS: Disk{Bytes: 30}}}},
			},
			want: "root volume log",
		},
		"images apart: the node's disk has logs and volumes": {
			signal: NodeFSInodesFree, split: true,
			pods: []*corev1.Pod{pod("root", 0, ""), pod("log", 0, ""), volume},
			usages: Usages{
				"log":    {Containers: []ContainerUsage{{Name: "main", Logs: Disk{Inodes: 10}}}},
				"volume": {Volumes: map[string]Disk{"data": {Inodes: 20}}},
				"root":   {Containers: []ContainerUsage{{Name: "main", RootFS: Disk{Inodes: 30}}}},
			},
			want: "volume log root",
		},
		"images apart: the images' disk has what containers write": {
			signal: ImageFSAvailable, split: true,
			pods: []*corev1.Pod{volume, pod("root", 0, "")},
			usages: Usages{
				"volume": {Volumes: map[string]Disk{"data": {Bytes: 20}}},
				"root":   {Containers: []ContainerUsage{{Name: "main", RootFS: Disk{Bytes: 30}}}},
			},
			want: "root volume",
		},
	} {
		t.Run(name, func(t *testing.T) {
			Rank(tc.signal, tc.split, tc.pods, tc.usages)
			if got := names(tc.pods); got != tc.want {
				t.Errorf("Rank = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	p := pod("web", 0, "10Mi")
	starved := []Threshold{{Signal: MemoryAvailable, Value: Value{Amount: 100 << 20, Format: resource.BinarySI}}}
	observed := Observations{MemoryAvailable: {Available: 50 << 20, Capacity: 1 << 30}}
	usages := Usages{"web": {Containers: []ContainerUsage{{Name: "main", MemoryBytes: 64 << 20}}}}
	got, annotations := Message(starved, observed, p, usages)
	want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container main was using 64Mi, request is 10Mi, has larger consumption of memory. "
	if got != want {
		t.Errorf("Message = %q\nwant %q", got, want)
	}
	if annotations["offending_containers"] != "main" || annotations["offending_containers_usage"] != "64Mi" || annotations["starved_resource"] != "memory" {
		t.Errorf("annotations %v", annotations)
	}
	starved = []Threshold{{Signal: NodeFSInodesFree, Value: Value{Share: 0.05}}}
	got, _ = Message(starved, Observations{NodeFSInodesFree: {Available: 20, Capacity: 1000}}, p, nil)
	if want := "The node was low on resource: inodes. Threshold quantity: 50, available: 20. "; got != want {
		t.Errorf("Message = %q\nwant %q", got, want)
	}
}

func TestOverLimit(t *testing.T) {
	size := resource.MustParse("1Mi")
	p := pod("web", 0, "")
	p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("2Mi")}
	p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "side", Resources: corev1.ResourceRequirements{
		Limits: corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("2Mi")}}})
	p.Spec.Volumes = []corev1.Volume{
		{Name: "small", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}}},
		{Name: "any", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	main := func(bytes int64) []ContainerUsage {
		return []ContainerUsage{{Name: "main", RootFS: Disk{Bytes: bytes / 2}, Logs: Disk{Bytes: bytes / 2}}}
	}
	for name, tc := range map[string]struct {
		usage Usage
		split bool
		want  string
	}{
		"within":       {usage: Usage{Containers: main(1 << 20), Volumes: map[string]Disk{"small": {Bytes: 1 << 20}}}},
		"volume":       {usage: Usage{Volumes: map[string]Disk{"small": {Bytes: 1<<20 + 1}}}, want: `Usage of EmptyDir volume "small" exceeds the limit "1Mi". `},
		"pod":          {usage: Usage{Volumes: map[string]Disk{"any": {Bytes: 5 << 20}}}, want: "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "},
		"container":    {usage: Usage{Containers: main(3 << 20)}, want: `Container main exceeded its local ephemeral storage limit "2Mi". `},
		"images apart": {usage: Usage{Containers: main(3 << 20)}, split: true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := OverLimit(p, tc.usage, tc.split); got != tc.want {
				t.Errorf("OverLimit = %q, want %q", got, tc.want)
			}
		})
	}
	if !Limited(p) || Limited(pod("free", 0, "1Mi")) {
		t.Error("Limited does not tell which pods have limits")
	}
}

func TestRefusal(t *testing.T) {
	memory := []corev1.NodeConditionType{corev1.NodeMemoryPressure}
	disk := []corev1.NodeConditionType{corev1.NodeDiskPressure}
	tolerant := pod("tolerant", 0, "")
	tolerant.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists}}
	static := pod("static", 0, "")
	static.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
	for name, tc := range map[string]struct {
		conditions []corev1.NodeConditionType
		pod        *corev1.Pod
		want       string
	}{
		"no pressure":                    {nil, pod("a", 0, ""), ""},
		"best effort, memory":            {memory, pod("a", 0, ""), "The node had condition: [MemoryPressure]. "},
		"burstable, memory":              {memory, pod("a", 0, "1Mi"), ""},
		"tolerant, memory":               {memory, tolerant, ""},
		"tolerant of memory only, disk":  {disk, tolerant, "The node had condition: [DiskPressure]. "},
		"burstable, disk":                {disk, pod("a", 0, "1Mi"), "The node had condition: [DiskPressure]. "},
		"needed by the system, disk":     {disk, pod("a", 2000000000, ""), ""},
		"static, disk":                   {disk, static, ""},
		"best effort, memory and a disk": {append(slices.Clone(disk), memory...), pod("a", 0, ""), "The node had condition: [DiskPressure MemoryPressure]. "},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Refusal(tc.conditions, tc.pod); got != tc.want {
				t.Errorf("Refusal = %q, want %q", got, tc.want)
			}
		})
	}
}
