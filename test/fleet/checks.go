//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"gantry.dev/gantry/internal/lifecycle"
)

// checks holds what runs in the machines' memories against what was asked for.
type checks struct {
	machines []*machine
	bound    time.Duration
	want     map[string]int // pods by Deployment; constant once checks run

	mu       sync.Mutex // guards the fields below
	lost     map[string][]time.Time
	restored []time.Duration
	late     int
	moved    int // pods that were missing though no machine was killed
}

func newChecks(machines []*machine, bound time.Duration) *checks {
	return &checks{machines: machines, bound: bound, want: map[string]int{}, lost: map[string][]time.Time{}}
}

// running counts the pods that run, by Deployment.
func (c *checks) running() map[string]int {
	have := map[string]int{}
	for _, m := range c.machines {
		names, _, _ := m.pods()
		for _, name := range names {
			have[deploymentOf(name)]++
		}
	}
	return have
}

// missing is how many pods do not run.
func (c *checks) missing() int {
	have, missing := c.running(), 0
	for name, want := range c.want {
		missing += max(0, want-have[name])
	}
	return missing
}

// kill kills a machine and notes which pods were lost by that. It reports false when the machine was off.
func (c *checks) kill(m *machine) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, _, on := m.pods(); !on {
		return false
	}
	now := time.Now()
	for _, name := range m.kill() {
		of := deploymentOf(name)
		c.lost[of] = append(c.lost[of], now)
	}
	return true
}

// run looks several times a second until ctx ends.
func (c *checks) run(ctx context.Context) {
	every := 100*time.Millisecond + time.Duration(len(c.machines))*300*time.Microsecond
	for lifecycle.Pause(ctx, every) {
		c.look(time.Now())
	}
}

// look compares: when fewer pods are missing than were lost, those that were lost first run again.
func (c *checks) look(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.running()
	for name, want := range c.want {
		missing, lost := max(0, want-have[name]), c.lost[name]
		for len(lost) > missing {
			c.noteLocked(now.Sub(lost[0]))
			lost = lost[1:]
		}
		for len(lost) < missing {
			lost = append(lost, now)
			c.moved++
		}
		c.lost[name] = lost
	}
}

func (c *checks) noteLocked(took time.Duration) {
	c.restored = append(c.restored, took)
	if took > c.bound {
		c.late++
	}
}

// podsSummary is what became of lost pods.
type podsSummary struct {
	Lost       int     `json:"lost"`
	Late       int     `json:"late"`  // after the bound
	Moved      int     `json:"moved"` // missing for a moment though no machine was killed
	P50        float64 `json:"p50Seconds"`
	P99        float64 `json:"p99Seconds"`
	Max        float64 `json:"maxSeconds"`
	StillGone  int     `json:"stillGone"`
	BoundTaken float64 `json:"boundSeconds"`
}

func (c *checks) summary() podsSummary {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.Sort(c.restored)
	s := podsSummary{Lost: len(c.restored), Late: c.late, Moved: c.moved, BoundTaken: c.bound.Seconds()}
	for _, lost := range c.lost {
		s.StillGone += len(lost)
	}
	if n := len(c.restored); n > 0 {
		s.P50, s.P99, s.Max = c.restored[n/2].Seconds(), c.restored[min(n-1, n*99/100)].Seconds(), c.restored[n-1].Seconds()
	}
	return s
}

// counter adds to a number in a ConfigMap at all servers at once and reads it at others.
type counter struct {
	clients []*kubernetes.Clientset
	acked   atomic.Int64 // additions that were answered with success
	unknown atomic.Int64 // those whose fate was not told
	highest atomic.Int64 // value that was acknowledged to somebody
	reads   atomic.Int64
	mu      sync.Mutex
	wrong   []string
}

const counterName = "counter"

func (c *counter) prepare(ctx context.Context) error {
	_, err := c.clients[0].CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: counterName}, Data: map[string]string{"value": "0"},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make the counter: %w", err)
	}
	return nil
}

// run adds at each server, and reads at each, until ctx ends.
func (c *counter) run(ctx context.Context) {
	var group sync.WaitGroup
	for _, client := range c.clients {
		group.Go(func() {
			for lifecycle.Pause(ctx, 20*time.Millisecond+rand.N(20*time.Millisecond)) {
				c.add(ctx, client)
			}
		})
	}
	group.Wait()
}

// add reads, which must not be older than what was acknowledged before, and adds one if nobody else has meanwhile.
func (c *counter) add(ctx context.Context, client *kubernetes.Clientset) {
	before := c.highest.Load()
	cm, err := client.CoreV1().ConfigMaps(namespace).Get(ctx, counterName, metav1.GetOptions{})
	if err != nil {
		return
	}
	value, err := strconv.ParseInt(cm.Data["value"], 10, 64)
	if err != nil || value < before {
		c.complain("a read at version %s says %q, %d was acknowledged before it began", cm.ResourceVersion, cm.Data["value"], before)
		return
	}
	c.reads.Add(1)
	cm.Data["value"] = strconv.FormatInt(value+1, 10)
	switch _, err := client.CoreV1().ConfigMaps(namespace).Update(ctx, cm, metav1.UpdateOptions{}); {
	case err == nil:
		c.acked.Add(1)
		for {
			old := c.highest.Load()
			if old >= value+1 || c.highest.CompareAndSwap(old, value+1) {
				return
			}
		}
	case !apierrors.IsConflict(err):
		c.unknown.Add(1)
	}
}

func (c *counter) complain(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
}

// verdict says how many additions there were, and what was wrong with them.
func (c *counter) verdict(ctx context.Context) (string, error) {
	var failed error
	for _, text := range c.wrong {
		failed = errors.Join(failed, errors.New(text))
	}
	acked, unknown := c.acked.Load(), c.unknown.Load()
	for i, client := range c.clients {
		cm, err := client.CoreV1().ConfigMaps(namespace).Get(ctx, counterName, metav1.GetOptions{})
		if err != nil {
			return "", errors.Join(failed, fmt.Errorf("read the counter: %w", err))
		}
		if value, err := strconv.ParseInt(cm.Data["value"], 10, 64); err != nil || value < acked || value > acked+unknown {
			failed = errors.Join(failed, fmt.Errorf("at server %d the counter is %q after %d acknowledged additions and %d of unknown fate", i, cm.Data["value"], acked, unknown))
		}
	}
	return fmt.Sprintf("%d acknowledged additions, %d of unknown fate, %d reads", acked, unknown, c.reads.Load()), failed
}

// aliveFor is how long a machine must have been on before its node may not be taken for dead.
const aliveFor = 5 * time.Second

// nodeWatcher notes nodes that are taken for dead.
type nodeWatcher struct {
	client   *kubernetes.Clientset
	machines []*machine
	mu       sync.Mutex
	wrong    []string // living ones
	right    int      // dead ones
}

// start follows the nodes until ctx ends; the function it returns says how many dead machines were noticed.
func (w *nodeWatcher) start(ctx context.Context, group *sync.WaitGroup) (func() int, error) {
	known := map[string]*machine{}
	for _, m := range w.machines {
		known[m.name] = m
	}
	factory := informers.NewSharedInformerFactory(w.client, 0)
	informer := factory.Core().V1().Nodes().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: func(old, current any) {
		before, ok := old.(*corev1.Node)
		after, ok2 := current.(*corev1.Node)
		if ok && ok2 && isReady(before) && !isReady(after) {
			w.note(after, known[after.Name])
		}
	}})
	if err != nil {
		return nil, fmt.Errorf("follow the nodes: %w", err)
	}
	group.Go(func() { informer.Run(ctx.Done()) })
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil, errors.New("follow the nodes: they are not listed")
	}
	return func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.right
	}, nil
}

func (w *nodeWatcher) note(node *corev1.Node, m *machine) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m != nil {
		_, since, on := m.pods()
		if !on || time.Since(since) < aliveFor {
			w.right++
			return
		}
	}
	reason := ""
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			reason = string(c.Status) + ", " + c.Reason + ", " + c.Message
		}
	}
	w.wrong = append(w.wrong, fmt.Sprintf("%s %s: %s", time.Now().UTC().Format(time.TimeOnly), node.Name, reason))
}
