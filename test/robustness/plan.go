package robustness

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Kind is what goes wrong.
type Kind string

// The faults. All but KillAll leave most servers alone.
const (
	KillServer  Kind = "kill -9 of a server"
	KillLeader  Kind = "kill -9 of the leader"
	PowerCut    Kind = "power cut of a machine"
	KillAll     Kind = "power cut of all servers"
	PauseServer Kind = "server paused"
	PauseLeader Kind = "leader paused"
	CutServer   Kind = "server cut off"
	CutLeader   Kind = "leader cut off"
	CutOneWay   Kind = "link cut one way"
	DeafLeader  Kind = "leader hears nobody" // it still sends
	DiskStalled Kind = "disk stalls"
	DiskSlow    Kind = "disk slow"
	DiskTight   Kind = "disk nearly full"
	DiskFull    Kind = "disk full to the last byte"
	MemberLost  Kind = "server and its data lost"
	Ballast     Kind = "much written and removed" // what compaction and defragmentation follow
	KillAgent   Kind = "kill -9 of a worker"
	PauseAgent  Kind = "worker paused"
)

// Fault is one step of a schedule. What it begins is over after For; the next waits until the cluster is well again and
// Calm has passed.
type Fault struct {
	Kind    Kind
	Machine int // of the servers, or of the workers; when the kind says leader, it is whoever leads then
	Other   int // at the far end of a link
	For     time.Duration
	Calm    time.Duration
}

func (f Fault) String() string {
	return fmt.Sprintf("%s (machine %d, other %d) for %v, then calm for %v", f.Kind, f.Machine, f.Other, f.For, f.Calm)
}

// weighed are the kinds of long schedules with how often each is drawn.
var weighed = []struct { //nolint:gochecknoglobals // a table
	kind    Kind
	weight  int
	longest time.Duration
}{
	{KillServer, 3, 3 * time.Second}, {KillLeader, 3, 3 * time.Second}, {PowerCut, 2, 3 * time.Second}, {KillAll, 2, 2 * time.Second},
	{PauseServer, 3, 8 * time.Second}, {PauseLeader, 5, 8 * time.Second}, {CutServer, 3, 8 * time.Second}, {CutLeader, 4, 8 * time.Second},
	{CutOneWay, 4, 8 * time.Second}, {DeafLeader, 3, 8 * time.Second}, {DiskStalled, 3, 5 * time.Second}, {DiskSlow, 2, 6 * time.Second},
	{DiskTight, 2, 5 * time.Second}, {DiskFull, 2, 4 * time.Second}, {MemberLost, 1, 2 * time.Second}, {Ballast, 1, 0},
	{KillAgent, 1, 3 * time.Second}, {PauseAgent, 1, 8 * time.Second},
}

// Short is the schedule of CI: each of the dearest faults once, in an order of the seed.
func Short(seed uint64, servers int) []Fault {
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a schedule is no secret
	kinds := []Kind{PauseLeader, CutLeader, DeafLeader, DiskStalled, KillLeader, KillAll}
	random.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	var out []Fault
	for _, kind := range kinds {
		f := draw(random, kind, servers, 1, 2500*time.Millisecond)
		f.Calm = 500 * time.Millisecond
		out = append(out, f)
	}
	return out
}

// Plan is a schedule without an end: each call of the function gives the next fault. The same seed gives the same.
func Plan(seed uint64, servers, workers int, only ...Kind) func() Fault {
	random := rand.New(rand.NewPCG(seed, 2)) //nolint:gosec // a schedule is no secret
	wanted := func(kind Kind) bool {
		if workers == 0 && (kind == KillAgent || kind == PauseAgent) {
			return false
		}
		for _, k := range only {
			if k == kind {
				return true
			}
		}
		return len(only) == 0
	}
	sum := 0
	for _, w := range weighed {
		if wanted(w.kind) {
			sum += w.weight
		}
	}
	return func() Fault {
		n := random.IntN(sum)
		for _, w := range weighed {
			if !wanted(w.kind) {
				continue
			}
			if n -= w.weight; n < 0 {
				return draw(random, w.kind, servers, workers, w.longest)
			}
		}
		panic("robustness: the weights do not add up")
	}
}

func draw(random *rand.Rand, kind Kind, servers, workers int, longest time.Duration) Fault {
	f := Fault{Kind: kind, Machine: random.IntN(servers), Calm: time.Second + time.Duration(random.Int64N(int64(2*time.Second)))}
	f.Other = (f.Machine + 1 + random.IntN(servers-1)) % servers
	if kind == KillAgent || kind == PauseAgent {
		f.Machine = random.IntN(workers)
	}
	if longest > 0 {
		f.For = (500*time.Millisecond + time.Duration(random.Int64N(int64(longest)))).Round(time.Millisecond)
	}
	return f
}
