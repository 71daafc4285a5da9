package containerd

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gantry.dev/gantry/internal/container"
)

func TestMergeCommand(t *testing.T) {
	img := ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"arg"}}
	for name, tc := range map[string]struct {
		command, args []string
		image         ocispec.ImageConfig
		want          []string
	}{
		"image alone":      {nil, nil, img, []string{"/entry", "arg"}},
		"arguments":        {nil, []string{"a"}, img, []string{"/entry", "a"}},
		"command":          {[]string{"/c"}, nil, img, []string{"/c"}},
		"both":             {[]string{"/c"}, []string{"a"}, img, []string{"/c", "a"}},
		"nothing":          {nil, nil, ocispec.ImageConfig{}, nil},
		"image's cmd only": {nil, nil, ocispec.ImageConfig{Cmd: []string{"/cmd"}}, []string{"/cmd"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := mergeCommand(container.Config{Command: tc.command, Args: tc.args}, tc.image)
			if !slices.Equal(got, tc.want) || (err != nil) != (tc.want == nil) {
				t.Errorf("mergeCommand = %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func TestMergeEnv(t *testing.T) {
	got := mergeEnv(specInput{
		sandbox: container.Sandbox{Hostname: "web-0"},
		image:   ocispec.Image{Config: ocispec.ImageConfig{Env: []string{"PATH=/img", "A=image", "B=image"}}},
		config:  container.Config{Env: []string{"A=pod", "C=1", "C=2", "D=x=y"}},
	})
	want := []string{"PATH=/img", "HOSTNAME=web-0", "A=pod", "B=image", "C=2", "D=x=y"}
	if !slices.Equal(got, want) {
		t.Errorf("mergeEnv = %q, want %q", got, want)
	}
}

func TestMergeCapabilities(t *testing.T) {
	for name, tc := range map[string]struct {
		sec     container.Security
		want    []string
		wantErr bool
	}{
		"default":     {container.Security{}, defaultCapabilities(), false},
		"none":        {container.Security{DropCapabilities: []string{"ALL"}}, []string{}, false},
		"only one":    {container.Security{DropCapabilities: []string{"all"}, AddCapabilities: []string{"net_admin"}}, []string{"CAP_NET_ADMIN"}, false},
		"with prefix": {container.Security{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"CAP_KILL"}}, []string{"CAP_KILL"}, false},
		"unknown":     {container.Security{AddCapabilities: []string{"FLY"}}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := mergeCapabilities(tc.sec)
			if !slices.Equal(got, tc.want) || (err != nil) != tc.wantErr {
				t.Errorf("mergeCapabilities = %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func TestResolveUser(t *testing.T) {
	acc := accounts{
		passwd: []byte("root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/:/bin/sh\n"),
		group:  []byte("root:x:0:\nstaff:x:50:web\n"),
	}
	number := func(n int64) *int64 { return &n }
	for name, tc := range map[string]struct {
		sec     container.Security
		image   string
		uid     uint32
		gid     uint32
		groups  []uint32
		wantErr bool
	}{
		"root":             {container.Security{}, "", 0, 0, []uint32{0}, false},
		"image's name":     {container.Security{}, "web", 1000, 1001, []uint32{1001}, false},
		"image's numbers":  {container.Security{}, "7:8", 7, 8, []uint32{8}, false},
		"pod over image":   {container.Security{User: number(1000)}, "7:8", 1000, 1001, []uint32{1001}, false},
		"unknown number":   {container.Security{User: number(4711)}, "", 4711, 0, []uint32{0}, false},
		"pod's group":      {container.Security{User: number(1000), Group: number(3)}, "", 1000, 3, []uint32{3}, false},
		"group alone":      {container.Security{Group: number(3)}, "web", 1000, 3, []uint32{3}, false},
		"merge":            {container.Security{MergeImageGroups: true, SupplementalGroups: []int64{9}}, "web", 1000, 1001, []uint32{1001, 50, 9}, false},
		"merge with group": {container.Security{User: number(1000), Group: number(3), MergeImageGroups: true}, "", 1000, 3, []uint32{3, 50}, false},
		"unknown name":     {container.Security{UserName: "ghost"}, "", 0, 0, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolveUser(tc.sec, tc.image, acc)
			if (err != nil) != tc.wantErr {
				t.Fatalf("resolveUser: %v, want error %v", err, tc.wantErr)
			}
			if got.UID != tc.uid || got.GID != tc.gid || !slices.Equal(got.AdditionalGids, tc.groups) {
				t.Errorf("resolveUser = %+v; want %d, %d, %v", got, tc.uid, tc.gid, tc.groups)
			}
		})
	}
}

func TestCgroupValues(t *testing.T) {
	res := container.Resources{CPUShares: 1024, CPUQuotaMicros: 50000, MemoryLimitBytes: 1 << 20, PidsLimit: 7, Unified: map[string]string{"memory.high": "1"}}
	v1 := []cgroupValue{
		{"cpu", "cpu.shares", "1024"}, {"cpu", "cpu.cfs_period_us", "100000"}, {"cpu", "cpu.cfs_quota_us", "50000"},
		{"memory", "memory.limit_in_bytes", "1048576"}, {"pids", "pids.max", "7"},
	}
	v2 := []cgroupValue{
		{"", "cpu.weight", "39"}, {"", "cpu.max", "50000 100000"}, {"", "memory.max", "1048576"}, {"", "pids.max", "7"}, {"", "memory.high", "1"},
	}
	allow := cmp.AllowUnexported(cgroupValue{})
	if diff := cmp.Diff(v1, cgroupValues(false, res), allow); diff != "" {
		t.Errorf("cgroup v1 (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(v2, cgroupValues(true, res), allow); diff != "" {
		t.Errorf("cgroup v2 (-want +got):\n%s", diff)
	}
	unlimited := container.Resources{CPUQuotaMicros: -1, PidsLimit: -1, MemoryLimitBytes: -1}
	want := []cgroupValue{{"", "cpu.max", "max 100000"}, {"", "memory.max", "max"}, {"", "pids.max", "max"}}
	if diff := cmp.Diff(want, cgroupValues(true, unlimited), allow); diff != "" {
		t.Errorf("no limits (-want +got):\n%s", diff)
	}
}

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]int{"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN+3": 37, "SIGNOTHING": 0, "0": 0, "99": 0, "": 0} {
		got, err := parseSignal(name)
		if int(got) != want || (err != nil) != (want == 0) {
			t.Errorf("parseSignal(%q) = %d, %v; want %d", name, got, err, want)
		}
	}
}

func TestEventQueueMergesWhatNobodyReads(t *testing.T) {
	q := newEventQueue()
	a := container.Event{ContainerID: "a", Type: container.EventExited}
	b := container.Event{ContainerID: "b", Type: container.EventExited}
	for range 100 {
		q.add(a)
		q.add(b)
	}
	first, _ := q.next()
	second, _ := q.next()
	if _, more := q.next(); first != a || second != b || more {
		t.Errorf("queue = %v, %v, more %v", first, second, more)
	}
}
