package robustness

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// settings are those of one run.
type settings struct {
	seed     uint64
	duration time.Duration // 0: the schedule of CI
	workers  int
	only     []Kind
	pace     time.Duration
}

func readSettings(t *testing.T) settings {
	t.Helper()
	s := settings{pace: 30 * time.Millisecond}
	var random [8]byte
	_, _ = rand.Read(random[:])
	s.seed = binary.LittleEndian.Uint64(random[:]) % 1_000_000
	var err error
	if text := os.Getenv("SEED"); text != "" {
		if s.seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SEED: %v", err)
		}
	}
	if text := os.Getenv("DURATION"); text != "" {
		if s.duration, err = time.ParseDuration(text); err != nil {
			t.Fatalf("DURATION: %v", err)
		}
		s.workers = 1
	}
	for kind := range strings.SplitSeq(os.Getenv("FAULTS"), ",") {
		if kind = strings.TrimSpace(kind); kind != "" {
			s.only = append(s.only, Kind(kind))
		}
	}
	return s
}

// TestRobustness has clients at work while machines fail by a schedule, and checks what they were told.
func TestRobustness(t *testing.T) {
	s := readSettings(t)
	c := newCluster(t, 3, s.workers)
	t.Logf("the schedule's seed is %d: SEED=%d repeats it", s.seed, s.seed)
	begun := time.Now()
	if err := c.up(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("three servers and %d workers after %.1fs", s.workers, time.Since(begun).Seconds())
	r, err := newRun(t, c, s)
	if err != nil {
		t.Fatal(err)
	}
	r.work()
	r.judge()
}

// run is one run of the suite.
type run struct {
	t        *testing.T
	c        *cluster
	s        settings
	h        *History
	chaos    *chaos
	load     *load
	watchers []*watcher
	app      *application // nil without one
	faults   []Happened
	ended    int64 // when the load ended
}

// newRun makes the namespace and the clients; nothing is asked yet.
func newRun(t *testing.T, c *cluster, s settings) (*run, error) {
	t.Helper()
	const namespace = "robustness"
	r := &run{t: t, c: c, s: s, h: NewHistory()}
	servers, err := c.apis(namespace)
	if err != nil {
		return nil, err
	}
	first := servers[0]
	made := object{Kind: "Namespace", Version: "v1", Metadata: metadata{Name: namespace}}
	if _, outcome, message := first.request(t.Context(), "POST", "/api/v1/namespaces", made, true); outcome != Done {
		return nil, fmt.Errorf("make a namespace: %s", message)
	}
	if _, outcome, message := first.request(t.Context(), "POST", first.maps(), configMap(counterKey, "0", 0), true); outcome != Done {
		return nil, fmt.Errorf("make the counter: %s", message)
	}
	r.chaos = &chaos{cluster: c, h: r.h, servers: servers, limit: time.Minute, say: t.Logf}
	r.load = &load{h: r.h, pace: s.pace}
	for i := range servers {
		own, err := c.apis(namespace)
		if err != nil {
			return nil, err
		}
		r.watchers = append(r.watchers, &watcher{name: fmt.Sprintf("the watcher of server %d", i), at: own[i : i+1], h: r.h})
	}
	random := mathrand.New(mathrand.NewPCG(s.seed, 3)) //nolint:gosec // how slow a reader is is no secret
	for _, name := range []string{"the watcher that goes round", "the slow watcher that goes round"} {
		own, err := c.apis(namespace)
		if err != nil {
			return nil, err
		}
		w := &watcher{name: name, at: own, h: r.h}
		if strings.Contains(name, "slow") {
			w.pause = func() time.Duration { return time.Duration(random.Int64N(int64(s.pace))) }
		}
		r.watchers = append(r.watchers, w)
	}
	return r, nil
}

// work runs the load, the watchers and the schedule until that is over.
func (r *run) work() {
	r.t.Helper()
	if r.s.duration > 0 && len(r.s.only) == 0 {
		r.app = startApplication(r.t, r.c, r.h)
	}
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	watching, stopWatching := context.WithCancel(r.t.Context())
	defer stopWatching()
	var clients, watchers sync.WaitGroup
	for _, w := range r.watchers {
		watchers.Go(func() { w.run(watching) })
	}
	servers, err := r.c.apis(r.chaos.servers[0].namespace)
	if err != nil {
		r.t.Fatal(err)
	}
	clients.Go(func() { r.load.run(ctx, r.s.seed, servers) })
	if r.app != nil {
		clients.Go(func() { r.app.run(ctx) })
	}
	r.schedule(ctx)
	pauseFor(ctx, time.Second)
	cancel()
	clients.Wait()
	r.ended = r.h.Now()
	r.catchUp(r.t.Context())
	stopWatching()
	watchers.Wait()
}

// schedule makes the faults, until one is not recovered from.
func (r *run) schedule(ctx context.Context) {
	r.t.Helper()
	pauseFor(ctx, time.Second) // the first writes
	hurt := func(f Fault) bool {
		done, err := r.chaos.hurt(ctx, f)
		r.faults = append(r.faults, done)
		if err != nil {
			r.t.Errorf("%v: %v", f, err)
			return false
		}
		pauseFor(ctx, f.Calm)
		return true
	}
	if r.s.duration == 0 {
		for _, f := range Short(r.s.seed, r.c.servers) {
			if !hurt(f) {
				return
			}
		}
		return
	}
	next := Plan(r.s.seed, r.c.servers, r.s.workers, r.s.only...)
	for end := time.Now().Add(r.s.duration); time.Now().Before(end); {
		if !hurt(next()) {
			return
		}
	}
}

// catchUp waits until all watchers have heard what a list tells now.
func (r *run) catchUp(ctx context.Context) {
	r.t.Helper()
	l, outcome, message := r.chaos.servers[0].list(ctx, r.h)
	if outcome != Done {
		r.t.Errorf("the list at the end: %s", message)
		return
	}
	r.h.AddList(l)
	last := int64(0)
	for _, item := range l.Items {
		last = max(last, item.RV)
	}
	for _, w := range r.watchers {
		err := await(ctx, 30*time.Second, func() error {
			if got := w.reached(); got < last {
				return fmt.Errorf("%s has heard all up to %d of %d", w.name, got, last)
			}
			return nil
		})
		if err != nil {
			r.t.Error(err)
		}
	}
}

// judge checks everything and prints the tables.
func (r *run) judge() {
	r.t.Helper()
	ops, lists := r.h.Taken()
	var stretches []Stretch
	connected, expired := 0, 0
	for _, w := range r.watchers {
		s, problems, connections, gone := w.taken()
		stretches = append(stretches, s...)
		connected, expired = connected+connections, expired+gone
		for _, problem := range problems {
			r.t.Error(problem)
		}
	}
	streams := CheckStreams(stretches, ops, lists)
	for _, broken := range streams.Broken {
		r.t.Error(broken)
	}
	begun := time.Now()
	linear := CheckLinear(ops, streams.Seen, 30*time.Second)
	for _, broken := range linear.Broken {
		r.t.Errorf("not linearizable: %s", broken)
	}
	if len(linear.Unknown) > 0 {
		r.t.Errorf("the check of %v took too long", linear.Unknown)
	}
	counter := r.counter()
	text := Table(Budget(r.faults, ops))
	text += fmt.Sprintf("\nseed %d; %.0fs under load, %d faults\n", r.s.seed, seconds(r.ended), len(r.faults))
	text += fmt.Sprintf("%d requests on %d keys: linearizable %v (checked in %.1fs)\n", len(ops), linear.Keys, len(linear.Broken) == 0, time.Since(begun).Seconds())
	text += fmt.Sprintf("%d events heard by %d watchers over %d connections (%d times the past was gone), %d lists: in order, complete and true %v\n",
		streams.Events, len(r.watchers), connected, expired, streams.Lists, len(streams.Broken) == 0)
	text += counter
	if r.app != nil {
		text += r.app.judge(r.t)
	}
	text += failures(ops)
	r.t.Log("\n" + text)
	if streams.Events == 0 || linear.Ops < 100 {
		r.t.Errorf("too little was done to say anything")
	}
}

// counter holds the counter's end against its steps.
func (r *run) counter() string {
	r.t.Helper()
	a := r.chaos.servers[0]
	got, outcome, message := a.request(r.t.Context(), "GET", a.maps()+"/"+counterKey, nil, false)
	n, err := strconv.Atoi(got.Data[valueKey])
	if outcome != Done || err != nil {
		r.t.Errorf("read the counter: %s %v", message, err)
	}
	acknowledged, unknown := int(r.load.stepped.Load()), int(r.load.unsure.Load())
	if err := CheckCounter(acknowledged, unknown, n); err != nil {
		r.t.Error(err)
	}
	return fmt.Sprintf("the counter is %d after %d acknowledged steps and %d of unknown outcome\n", n, acknowledged, unknown)
}

// failures are the commonest messages of failed requests.
func failures(ops []Op) string {
	count := map[string]int{}
	for _, op := range ops {
		if op.Outcome == Refused || op.Outcome == Unknown {
			message := op.Message
			if i := strings.LastIndex(message, ": "); i > 0 && strings.Contains(message, "https://") {
				message = message[i+2:]
			}
			count[fmt.Sprintf("%s: %.100s", op.Outcome, message)]++
		}
	}
	var lines []string
	for message, n := range count {
		lines = append(lines, fmt.Sprintf("%6d %s", n, message))
	}
	slices.Sort(lines)
	slices.Reverse(lines)
	return "failed requests:\n" + strings.Join(lines[:min(len(lines), 12)], "\n") + "\n"
}
