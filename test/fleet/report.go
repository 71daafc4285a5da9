//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/test/hosts"
)

// serverUsage is what one server's main process used.
type serverUsage struct {
	Name   string  `json:"name"`
	CPU    float64 `json:"cpuPercent"` // of one CPU, over the whole time
	MaxRSS float64 `json:"maxRssMB"`
}

// usage reads what the servers use.
type usage struct {
	hosts   []*hosts.Gantry
	mu      sync.Mutex
	max     []float64
	cpu     []time.Duration // at the first look, then at the last
	first   []time.Duration
	begun   time.Time
	elapsed time.Duration
}

// run looks every second until ctx ends.
func (u *usage) run(ctx context.Context) {
	for ok := true; ok; ok = lifecycle.Pause(ctx, time.Second) {
		u.look()
	}
}

func (u *usage) look() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.begun.IsZero() {
		u.begun, u.max, u.cpu, u.first = time.Now(), make([]float64, len(u.hosts)), make([]time.Duration, len(u.hosts)), make([]time.Duration, len(u.hosts))
	}
	for i, m := range u.hosts {
		text, err := os.ReadFile(filepath.Join(m.Data, "run", "gantry.pid"))
		if err != nil {
			continue
		}
		rss, cpu, err := processUsage(strings.TrimSpace(string(text)))
		if err != nil {
			continue // it is being started
		}
		if u.first[i] == 0 {
			u.first[i] = cpu
		}
		u.max[i], u.cpu[i] = max(u.max[i], rss), cpu
	}
	u.elapsed = time.Since(u.begun)
}

// processUsage reads a process's resident memory in MB and the CPU time that it has used.
func processUsage(pid string) (rss float64, cpu time.Duration, err error) {
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("read the CPU time of process %s: %w", pid, err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest) // from field 3 of proc_pid_stat(5) on
	if len(fields) < 22 {
		return 0, 0, fmt.Errorf("the state of process %s is %q", pid, text)
	}
	const tick, page = 10 * time.Millisecond, 4096
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	pages, err3 := strconv.ParseFloat(fields[21], 64)
	return pages * page / 1e6, time.Duration(user+system) * tick, errors.Join(err1, err2, err3)
}

func (u *usage) summary() []serverUsage {
	u.look()
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []serverUsage
	for i, m := range u.hosts {
		out = append(out, serverUsage{Name: m.Name, CPU: 100 * (u.cpu[i] - u.first[i]).Seconds() / u.elapsed.Seconds(), MaxRSS: u.max[i]})
	}
	return out
}

// load asks all servers for as much as they give: ConfigMaps made, changed, read, listed and deleted; and one Deployment
// grows and shrinks. It returns how many requests there were, and how many of them failed.
func (f *fleet) load(ctx context.Context) (requests, failed int64) {
	var group sync.WaitGroup
	var done, bad atomic.Int64
	for worker := range f.opts.workers {
		group.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := f.request(ctx, worker, i); err != nil && ctx.Err() == nil {
					bad.Add(1)
					f.log.Warn("a request failed", "error", err)
				}
				done.Add(1)
			}
		})
	}
	group.Go(func() {
		for i := 0; lifecycle.Pause(ctx, 5*time.Second); i++ {
			body := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, f.opts.nodes*(1+i%2))
			if i == 0 {
				_, _ = f.cluster.clients[0].AppsV1().Deployments(namespace).Create(ctx, deployment("churn", 1), metav1.CreateOptions{})
			}
			_, _ = f.cluster.clients[0].AppsV1().Deployments(namespace).Patch(ctx, "churn", types.MergePatchType, body, metav1.PatchOptions{})
		}
	})
	group.Wait()
	return done.Load(), bad.Load()
}

// request is one of a worker's requests: each object lives for four of them.
func (f *fleet) request(ctx context.Context, worker, i int) error {
	maps := f.cluster.clients[rand.IntN(len(f.cluster.clients))].CoreV1().ConfigMaps(namespace)
	name := fmt.Sprintf("load-%d-%d", worker, i/4)
	var err error
	switch i % 4 {
	case 0:
		_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"text": strings.Repeat("load ", 100)}}, metav1.CreateOptions{})
	case 1:
		_, err = maps.Patch(ctx, name, types.MergePatchType, []byte(`{"data":{"more":"text"}}`), metav1.PatchOptions{})
	case 2:
		if _, err = maps.Get(ctx, name, metav1.GetOptions{}); err == nil && worker == 0 {
			_, err = f.cluster.clients[i/4%len(f.cluster.clients)].CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{Limit: 500})
		}
	default:
		err = maps.Delete(ctx, name, metav1.DeleteOptions{})
	}
	return err
}

// result is what a run found.
type result struct {
	fleet      *fleet
	began      time.Time
	kills      int
	requests   int64
	failed     int64
	pods       podsSummary
	usage      []serverUsage
	unready    []string // living machines that were taken for dead
	flaps      int      // dead ones
	counter    string
	counterErr error
	settled    error
}

func (r *result) print(out io.Writer, opts options) error {
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }
	say("%d servers, %d machines with %d pods each, %s", opts.servers, opts.nodes, opts.pods, opts.duration)
	if opts.load {
		say("load: %d requests, %.0f a second, %d failed", r.requests, float64(r.requests)/opts.duration.Seconds(), r.failed)
	} else {
		say("kills: %d; dead nodes noticed: %d", r.kills, r.flaps)
		say("pods lost: %d; running again after p50 %.2f s, p99 %.2f s, at most %.2f s; %d after the bound of %s; %d moved without a kill",
			r.pods.Lost, r.pods.P50, r.pods.P99, r.pods.Max, r.pods.Late, opts.bound, r.pods.Moved)
	}
	say("living nodes taken for dead: %d", len(r.unready))
	for _, text := range r.unready[:min(20, len(r.unready))] {
		say("  %s", text)
	}
	say("counter: %s", r.counter)
	for _, u := range r.usage {
		say("server %s: %.0f %% of a CPU, at most %.0f MB", u.Name, u.CPU, u.MaxRSS)
	}
	rss, cpu, err := processUsage(strconv.Itoa(os.Getpid()))
	if err == nil {
		say("all machines together: %.0f s of CPU, %.0f MB", cpu.Seconds(), rss)
	}
	if opts.json == "" {
		return nil
	}
	text, err := json.MarshalIndent(map[string]any{
		"nodes": opts.nodes, "pods": opts.pods, "servers": opts.servers, "duration": opts.duration.String(), "kills": r.kills, "requests": r.requests, "failed": r.failed,
		"lost": r.pods, "usage": r.usage, "falselyNotReady": r.unready, "deadNoticed": r.flaps, "counter": r.counter,
	}, "", "  ")
	if err == nil {
		err = os.WriteFile(opts.json, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}

// verdict is what must not be.
func (r *result) verdict() error {
	failed := errors.Join(r.settled, r.counterErr)
	if n := len(r.unready); n > 0 {
		failed = errors.Join(failed, fmt.Errorf("%d times a living node was taken for dead", n))
	}
	if r.pods.Late > 0 && !r.fleet.opts.load {
		failed = errors.Join(failed, fmt.Errorf("%d of %d lost pods did not run again within %s", r.pods.Late, r.pods.Lost, r.fleet.opts.bound))
	}
	return failed
}
