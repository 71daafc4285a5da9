package scheduler

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// driver does what Scheduler.Run does, in an order that a seed decides: it hands over events late and those of
// different kinds in any order, and does the writes of different pods in any order, so that events and writes
// are under way while other pods are placed.
type driver struct {
	s       *simulation
	rand    *rand.Rand
	queues  []*eventQueue
	pending []*job
	cancel  context.CancelFunc
	ctx     context.Context //nolint:containedctx // of the scheduler that is driven
}

// eventQueue is the events of a kind that the scheduler has not heard of.
type eventQueue struct{ events []func() }

// pendingLimit is how many jobs may be under way.
const pendingLimit = 64

// launch makes a scheduler and tells it what there is.
func (d *driver) launch() {
	s := d.s
	d.queues, d.pending = nil, nil
	var err error
	s.scheduler, err = New(s.world, fed{s.world, d}, s.events, Options{BindWorkers: 1})
	s.must(err)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	stop, err := s.scheduler.subscribe(d.ctx)
	s.must(err)
	s.stop = func() error {
		d.cancel()
		stop()
		synctest.Wait()
		return nil
	}
	synctest.Wait()
	for _, q := range d.queues {
		d.deliver(q, len(q.events))
	}
}

// wait lets time pass, in which the scheduler does all that it can do.
func (d *driver) wait(limit time.Duration) {
	end := time.Now().Add(limit)
	for {
		next := d.settle()
		if next.IsZero() || !next.Before(end) {
			time.Sleep(time.Until(end))
			d.settle()
			return
		}
		time.Sleep(max(time.Until(next), time.Millisecond))
	}
}

// settle goes on until there is nothing to do before next.
func (d *driver) settle() (next time.Time) {
	for {
		synctest.Wait() // events of what was written are queued
		waiting := slices.DeleteFunc(slices.Clone(d.queues), func(q *eventQueue) bool { return len(q.events) == 0 })
		turn := d.rand.IntN(3)
		switch {
		case turn == 0 && len(waiting) > 0:
			q := waiting[d.rand.IntN(len(waiting))]
			d.deliver(q, 1+d.rand.IntN(min(16, len(q.events))))
		case turn == 1 && len(d.pending) > 0, len(d.pending) >= pendingLimit:
			d.work()
		case turn == 2 || len(waiting)+len(d.pending) == 0:
			var j *job
			if j, next = d.s.scheduler.placeNext(time.Now()); j != nil {
				d.decided(j)
			} else if len(waiting)+len(d.pending) == 0 {
				return next
			}
		}
	}
}

func (d *driver) deliver(q *eventQueue, count int) {
	for _, event := range q.events[:count] {
		event()
	}
	q.events = q.events[count:]
}

// decided takes a job in.
func (d *driver) decided(j *job) {
	names := make([]string, len(j.victims))
	for i, victim := range j.victims {
		names[i] = victim.Name
	}
	fmt.Fprintln(d.s.sum, j.pod.Name, j.node, j.message, names)
	if j.evictor != nil {
		d.s.judge(j)
	}
	d.pending = append(d.pending, j)
}

// work does the first job of any pod.
func (d *driver) work() {
	any := d.pending[d.rand.IntN(len(d.pending))]
	at := slices.IndexFunc(d.pending, func(j *job) bool { return j.pod.UID == any.pod.UID })
	j := d.pending[at]
	d.pending = slices.Delete(d.pending, at, at+1)
	d.s.scheduler.write(d.ctx, j)
}

// judge checks an eviction by hand: nobody of the pod's priority or a higher one goes, and nobody against a
// budget if there is a node where nobody would have to.
func (s *simulation) judge(j *job) {
	s.t.Helper()
	s.scheduler.mu.Lock()
	defer s.scheduler.mu.Unlock()
	state := s.scheduler.state
	for _, victim := range j.victims {
		if priorityOf(victim) >= priorityOf(j.pod) {
			s.t.Errorf("%s of priority %d goes for %s of priority %d", victim.Name, priorityOf(victim), j.pod.Name, priorityOf(j.pod))
		}
	}
	_, against := s.split(j.pod, state.slots[*j.nominate])
	if !slices.ContainsFunc(j.victims, func(v *corev1.Pod) bool { return slices.Contains(against, v) }) {
		return
	}
	s.forced++
	loads := map[string]*load{}
	for name, slot := range state.slots {
		l := newLoad(state.nodes[slot].node)
		for _, p := range state.podsOn(slot) {
			l.add(p.pod, 1)
		}
		loads[name] = l
	}
	for name, l := range loads {
		free, _ := s.split(j.pod, state.slots[name])
		if len(free) > 0 && s.cleanly(j.pod, l, free, state.nodes[state.slots[name]].nominees, loads) {
			s.t.Errorf("%s goes to %s against a budget, and could go to %s with none", j.pod.Name, *j.nominate, name)
		}
	}
}

// split parts the pods on a node that may be evicted for another one: those that no budget forbids, and the rest.
func (s *simulation) split(pod *corev1.Pod, slot int32) (free, against []*corev1.Pod) {
	now := time.Now()
	var lower []*corev1.Pod
	for _, p := range s.scheduler.state.podsOn(slot) {
		if priorityOf(p.pod) < priorityOf(pod) {
			lower = append(lower, p.pod)
		}
	}
	slices.SortFunc(lower, func(a, b *corev1.Pod) int { return byImportance(a, b, now) })
	left := map[string]int32{}
	for _, b := range s.scheduler.budgets {
		left[b.selector.String()] = b.allowed
	}
	for _, p := range lower {
		forbidden := false
		for _, b := range s.scheduler.budgets {
			if b.covers(p) {
				left[b.selector.String()]--
				forbidden = forbidden || left[b.selector.String()] < 0
			}
		}
		if forbidden {
			against = append(against, p)
		} else {
			free = append(free, p)
		}
	}
	return free, against
}

// cleanly says whether a pod fits on a node without those that may go freely, beside those nominated to it.
func (s *simulation) cleanly(pod *corev1.Pod, l *load, free []*corev1.Pod, nominees []*nominee, all map[string]*load) bool {
	if !l.allows(pod) {
		return false
	}
	for _, p := range free {
		l.add(p, -1)
		defer l.add(p, 1)
	}
	l.add(pod, 1)
	defer l.add(pod, -1)
	fits := l.over() == "" && l.evenWith(pod, all)
	for _, n := range nominees {
		if n.pod.UID != pod.UID && n.priority >= priorityOf(pod) {
			l.add(n.pod, 1)
			defer l.add(n.pod, -1)
		}
	}
	return fits && l.over() == "" && l.evenWith(pod, all)
}

// fed is informers whose events wait for the driver.
type fed struct {
	Informers
	d *driver
}

// GetInformer implements Informers.
func (f fed) GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error) {
	inner, err := f.Informers.GetInformer(ctx, obj, opts...)
	q := &eventQueue{}
	f.d.queues = append(f.d.queues, q)
	return fedInformer{inner, q}, err
}

type fedInformer struct {
	cache.Informer
	q *eventQueue
}

// AddEventHandler implements cache.Informer. The driver reads the queue only while no handler runs.
func (i fedInformer) AddEventHandler(h toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	push := func(event func()) { i.q.events = append(i.q.events, event) }
	return i.Informer.AddEventHandler(toolscache.ResourceEventHandlerDetailedFuncs{
		AddFunc:    func(obj any, first bool) { push(func() { h.OnAdd(obj, first) }) },
		UpdateFunc: func(old, obj any) { push(func() { h.OnUpdate(old, obj) }) },
		DeleteFunc: func(obj any) { push(func() { h.OnDelete(obj) }) },
	})
}
