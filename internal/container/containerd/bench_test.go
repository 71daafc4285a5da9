//go:build linux

package containerd

import (
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"gantry.dev/gantry/internal/container"
)

// BenchmarkStart measures from the wish for a pod to its running process: sandbox, create
// and start. The target is a median of 100 ms.
func BenchmarkStart(b *testing.B) {
	dirs := needNode(b)
	r, _ := startRuntime(b, dirs)
	image := loadBusybox(b, r)
	for name, seccomp := range map[string]string{"seccomp=unconfined": "unconfined", "seccomp=runtime": "runtime"} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				sb := newSandbox(b, r, dirs, fmt.Sprintf("bench-%d", began.UnixNano()), nil)
				ensured := time.Now()
				id := runContainer(b, r, sb, image, "main", "exec sleep 1000", func(c *container.Config) { c.Security.Seccomp = seccomp })
				took = append(took, time.Since(began))
				if len(took) == 1 {
					b.Logf("sandbox took %v of %v", ensured.Sub(began), time.Since(began))
				}
				b.StopTimer()
				if err := r.Stop(b.Context(), id, 0); err != nil {
					b.Fatal(err)
				}
				if err := r.RemoveSandbox(b.Context(), sb.ID); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// BenchmarkMemory reports what ten idle pods' shims take, in MB.
func BenchmarkMemory(b *testing.B) {
	dirs := needNode(b)
	r, _ := startRuntime(b, dirs)
	image := loadBusybox(b, r)
	for range 10 {
		sb := newSandbox(b, r, dirs, fmt.Sprintf("mem-%d", time.Now().UnixNano()), nil)
		runContainer(b, r, sb, image, "main", "exec sleep 1000", nil)
	}
	for b.Loop() {
	}
	debug.FreeOSMemory() // what the import of the image took is not what stays
	var rss, pss uint64
	r.mu.Lock()
	for _, sb := range r.sandboxes {
		dir := fmt.Sprintf("/proc/%d/smaps_rollup", sb.shim.proc.PID)
		data, err := os.ReadFile(dir)
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			var kb uint64
			if _, err := fmt.Sscanf(line, "Rss: %d kB", &kb); err == nil {
				rss += kb
			}
			if _, err := fmt.Sscanf(line, "Pss: %d kB", &kb); err == nil {
				pss += kb
			}
		}
	}
	r.mu.Unlock()
	b.ReportMetric(float64(rss)/1024/10, "RSS-MB/shim")
	b.ReportMetric(float64(pss)/1024/10, "PSS-MB/shim")
	own, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(own)) {
		var kb uint64
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &kb); err == nil {
			b.ReportMetric(float64(kb)/1024, "own-PSS-MB")
		}
		if _, err := fmt.Sscanf(line, "Anonymous: %d kB", &kb); err == nil {
			b.ReportMetric(float64(kb)/1024, "own-anonymous-MB")
		}
	}
}

// BenchmarkReady measures how long a new process takes to take over ten running pods.
func BenchmarkReady(b *testing.B) {
	dirs := needNode(b)
	r, stop := startRuntime(b, dirs)
	image := loadBusybox(b, r)
	for range 10 {
		sb := newSandbox(b, r, dirs, fmt.Sprintf("pod-%d", time.Now().UnixNano()), nil)
		runContainer(b, r, sb, image, "main", "exec sleep 1000", nil)
	}
	for b.Loop() {
		stop()
		_, stop = startRuntime(b, dirs)
	}
}
