package doctor

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func files(pairs ...string) fstest.MapFS {
	out := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return out
}

func TestReadCgroups(t *testing.T) {
	for name, tc := range map[string]struct {
		root fstest.MapFS
		want Cgroups
	}{
		"version 2": {
			files("proc/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime 0 0\n", "sys/fs/cgroup/cgroup.controllers", "cpuset cpu memory pids\n"),
			Cgroups{Version: 2, Controllers: []string{"cpuset", "cpu", "memory", "pids"}},
		},
		"hybrid": {
			files("proc/mounts", "tmpfs /sys/fs/cgroup tmpfs ro 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"+
				"cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"),
			Cgroups{Version: 1, Hybrid: true, Controllers: []string{"cpu", "cpuacct", "memory"}},
		},
		"version 1": {
			files("proc/mounts", "cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n"),
			Cgroups{Version: 1, Controllers: []string{"pids"}},
		},
		"read-only": {
			files("proc/mounts", "cgroup2 /sys/fs/cgroup cgroup2 ro 0 0\n", "sys/fs/cgroup/cgroup.controllers", "cpu"),
			Cgroups{Version: 2, Controllers: []string{"cpu"}, ReadOnly: true},
		},
		"none": {files("proc/mounts", "/dev/vda / ext4 rw 0 0\n"), Cgroups{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := readCgroups(tc.root); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("readCgroups = %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestReadProc(t *testing.T) {
	root := files(
		"proc/meminfo", "MemTotal:        4024432 kB\nMemFree:          100000 kB\nMemAvailable:    2000000 kB\n",
		"proc/1/comm", "systemd\n", "proc/612/comm", "systemd-timesyn\n",
		"proc/sys/kernel/seccomp/actions_avail", "kill_process kill_thread trap errno user_notif trace log allow\n",
		"proc/self/ns/mnt", "", "proc/self/ns/net", "",
	)
	if got, want := readMemory(root), (Memory{4024432 << 10, 2000000 << 10}); got != want {
		t.Errorf("readMemory = %+v, want %+v", got, want)
	}
	if got := clockKeeper(root); got != "systemd-timesyncd" {
		t.Errorf("clockKeeper = %q", got)
	}
	if got := readSeccomp(root); got.Err != nil {
		t.Errorf("readSeccomp: %v", got.Err)
	}
	if got := readSeccomp(files()); got.Err == nil {
		t.Error("a kernel without filters passes")
	}
	if got := readNamespaces(root); got.Err == nil || !strings.Contains(got.Err.Error(), "cgroup, ipc, pid, uts") {
		t.Errorf("readNamespaces: %v", got.Err)
	}
}

func TestReadPort(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(listener.Addr().String())
	if got := readPort(Port{At: at}); got.Err == nil || got.PID != os.Getpid() || got.Own {
		t.Errorf("a port that this test holds: %+v", got)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if got := readPort(Port{At: at}); got.Err != nil {
		t.Errorf("a free port: %+v", got)
	}
}

func TestReadSkew(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/livez" {
			w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		}
		w.WriteHeader(http.StatusUnauthorized) // who asks has no right to anything, and needs none
	}))
	addr := server.Listener.Addr().String()
	got := readSkew(t.Context(), addr)
	if off := got.Ahead - time.Hour; got.Err != nil || off.Abs() > 30*time.Second {
		t.Errorf("readSkew = %+v, want an hour", got)
	}
	server.Close()
	if got := readSkew(t.Context(), addr); got.Err == nil || !strings.Contains(got.Err.Error(), "does not answer") {
		t.Errorf("a server that is gone: %+v", got)
	}
}

// TestThisMachine reads the machine that the test runs on. It must have an answer to everything, and leave nothing behind.
func TestThisMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	dir := t.TempDir()
	facts := Read(t.Context(), Options{DataDir: filepath.Join(dir, "not", "there")})
	if facts.Kernel == "" || facts.Cgroups.Version == 0 || facts.Memory.TotalBytes == 0 || facts.Memory.AvailableBytes == 0 ||
		facts.Disk.Err != nil || len(facts.Disk.Syncs) == 0 || facts.Clock.Err != nil {
		t.Errorf("Read = %+v", facts)
	}
	if facts.Disk.Path != dir {
		t.Errorf("the disk of %s was looked at, want %s", facts.Disk.Path, dir)
	}
	for _, f := range facts.Features {
		if f.Err != nil {
			t.Errorf("%s: %v", f.Name, f.Err) // these tests start containers elsewhere, so all of it works
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	names := map[string]bool{}
	for _, c := range Judge(facts) {
		if names[c.Name] {
			t.Errorf("two findings are called %s", c.Name)
		}
		names[c.Name] = true
		t.Logf("%-7s  %-12s  %s  %s", c.Level, c.Name, c.Says, c.Cure)
	}
}
