package server

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"gantry.dev/gantry/internal/agent/stats"
	"gantry.dev/gantry/internal/lifecycle"
)

// nodeCosts is what a node spends, and on what.
type nodeCosts struct {
	Node     string        `json:"node"`
	Gantry   usage         `json:"gantry"`             // its own processes, together
	Programs []programCost `json:"programs,omitempty"` // each of them, by name
	Apps     usage         `json:"apps"`               // all pods
	Pods     int           `json:"pods"`
	Disk     diskCost      `json:"disk"` // of the data dir
}

// usage is memory now and the part of a CPU that was used in the last moments.
type usage struct {
	MemoryBytes uint64  `json:"memoryBytes"`
	CPUs        float64 `json:"cpus"`
}

type programCost struct {
	Name      string `json:"name"` // "gantry", "gantry-edge", ...
	Processes int    `json:"processes"`
	usage
}

type diskCost struct {
	UsedBytes      uint64 `json:"usedBytes"`
	AvailableBytes uint64 `json:"availableBytes"`
	CapacityBytes  uint64 `json:"capacityBytes"`
}

// costMoment is for how long CPU time is measured.
const costMoment = 250 * time.Millisecond

// costs measures a node when it is asked; nothing is kept up meanwhile.
type costs struct {
	node  string
	bin   string // the folder of the unpacked programs
	proc  string
	stats func() *stats.Reader
}

// measure looks twice, a moment apart.
func (c *costs) measure(ctx context.Context) (*nodeCosts, error) {
	reader := c.stats()
	before, began := c.cpuTimes(), time.Now()
	podsBefore, err := podsCPU(ctx, reader)
	if err != nil {
		return nil, err
	}
	if !lifecycle.Pause(ctx, costMoment) {
		return nil, ctx.Err()
	}
	after, took := c.cpuTimes(), time.Since(began)
	summary, err := reader.Summary(ctx, true)
	if err != nil {
		return nil, err
	}
	out := &nodeCosts{Node: c.node, Pods: len(summary.Pods)}
	programs := map[string]*programCost{}
	for pid, p := range after {
		cpus := float64(p.nanos-min(before[pid].nanos, p.nanos)) / float64(took)
		if _, known := before[pid]; !known {
			cpus = 0
		}
		one := programs[p.name]
		if one == nil {
			one = &programCost{Name: p.name}
			programs[p.name] = one
		}
		memory := c.memory(pid)
		one.Processes++
		one.MemoryBytes += memory
		one.CPUs += cpus
		out.Gantry.MemoryBytes += memory
		out.Gantry.CPUs += cpus
	}
	for _, p := range programs {
		out.Programs = append(out.Programs, *p)
	}
	slices.SortFunc(out.Programs, func(a, b programCost) int { return strings.Compare(a.Name, b.Name) })
	if pods := podsOf(summary); pods != nil {
		if pods.Memory != nil && pods.Memory.WorkingSetBytes != nil {
			out.Apps.MemoryBytes = *pods.Memory.WorkingSetBytes
		}
		out.Apps.CPUs = float64(cpuNanos(pods)-min(podsBefore, cpuNanos(pods))) / float64(took)
	}
	if fs, _, err := reader.NodeFS(); err == nil {
		out.Disk = diskCost{UsedBytes: fs.UsedBytes, AvailableBytes: fs.AvailableBytes, CapacityBytes: fs.CapacityBytes}
	}
	return out, nil
}

func podsCPU(ctx context.Context, reader *stats.Reader) (uint64, error) {
	summary, err := reader.Summary(ctx, true)
	if err != nil {
		return 0, err
	}
	return cpuNanos(podsOf(summary)), nil
}

// podsOf is the sum of all pods, nil if there is none.
func podsOf(summary *statsapi.Summary) *statsapi.ContainerStats {
	for i := range summary.Node.SystemContainers {
		if one := &summary.Node.SystemContainers[i]; one.Name == statsapi.SystemContainerPods {
			return one
		}
	}
	return nil
}

func cpuNanos(c *statsapi.ContainerStats) uint64 {
	if c == nil || c.CPU == nil || c.CPU.UsageCoreNanoSeconds == nil {
		return 0
	}
	return *c.CPU.UsageCoreNanoSeconds
}

// cpuTime is what a process has used.
type cpuTime struct {
	name  string
	nanos uint64
}

// cpuTimes are this process's and those of the programs that it unpacked.
func (c *costs) cpuTimes() map[int]cpuTime {
	out := map[int]cpuTime{}
	entries, err := os.ReadDir(c.proc)
	if err != nil {
		return out
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		name := "gantry"
		if pid != os.Getpid() {
			exe, err := os.Readlink(filepath.Join(c.proc, e.Name(), "exe"))
			exe = strings.TrimSuffix(exe, " (deleted)")
			if err != nil || !strings.HasPrefix(exe, c.bin+"/") {
				continue
			}
			name = filepath.Base(exe)
		}
		out[pid] = cpuTime{name, c.nanos(pid)}
	}
	return out
}

// nanos sums the CPU time of a process's threads.
func (c *costs) nanos(pid int) (total uint64) {
	dir := filepath.Join(c.proc, strconv.Itoa(pid), "task")
	threads, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, thread := range threads {
		text, err := os.ReadFile(filepath.Join(dir, thread.Name(), "schedstat"))
		if err != nil {
			continue
		}
		first, _, _ := strings.Cut(string(text), " ")
		n, _ := strconv.ParseUint(first, 10, 64)
		total += n
	}
	return total
}

// memory is the process's part of the memory: what it shares with others counts in parts.
func (c *costs) memory(pid int) uint64 {
	text, err := os.ReadFile(filepath.Join(c.proc, strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// serveCosts tells what the node spends.
func (l *nodeLogs) serveCosts(w http.ResponseWriter, r *http.Request) {
	measured, err := l.costs.measure(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(measured)
}

// mayReadStats tells whether a user may know what all nodes use.
func (cp *ControlPlane) mayReadStats(ctx context.Context, who user.Info) bool {
	decision, _, err := cp.authorizer.Authorize(ctx, &authorizer.AttributesRecord{
		User: who, Verb: "get", APIVersion: "v1", Resource: "nodes", Subresource: "stats", ResourceRequest: true,
	})
	return err == nil && decision == authorizer.DecisionAllow
}

// serveNodeCosts gives a JSON list of what each node spends.
func (cp *ControlPlane) serveNodeCosts(w http.ResponseWriter, r *http.Request, who user.Info) {
	if !cp.mayReadStats(r.Context(), who) {
		http.Error(w, "user "+strconv.Quote(who.GetName())+" may not get nodes/stats", http.StatusForbidden)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), askTimeout)
	defer cancel()
	bodies, err := cp.askNodes(ctx, "/gantry/costs")
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	var mu sync.Mutex
	all := []nodeCosts{}
	var group sync.WaitGroup
	for _, body := range bodies {
		group.Go(func() {
			defer func() { _ = body.Close() }()
			var one nodeCosts
			if json.NewDecoder(body).Decode(&one) == nil {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, one)
			}
		})
	}
	group.Wait()
	slices.SortFunc(all, func(a, b nodeCosts) int { return strings.Compare(a.Node, b.Node) })
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(all)
}
