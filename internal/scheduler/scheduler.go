package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
)

// Informers gives events of a kind. controller-runtime's cache.Cache satisfies it.
type Informers interface {
	GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
}

// Recorder writes Events. internal/events implements it; EventActions belongs to its source.
type Recorder interface {
	Event(obj runtime.Object, eventtype, reason, note string)
}

// EventActions maps the reasons of the scheduler's events to their actions, which the
// newer shape of events has: give it to the recorder's source.
func EventActions() map[string]string {
	return map[string]string{"Scheduled": "Binding", "FailedScheduling": "Scheduling", "Preempted": "Preempting"}
}

// Options tunes a Scheduler. The zero value suits production.
type Options struct {
	// Config is what is configured about placing pods; default DefaultConfig.
	Config      *Config
	BindWorkers int           // bindings and status writes at once; default 64
	BindTimeout time.Duration // limit for one write; default 10s
	// Recorders write the events about pods of other profiles than the first, by schedulerName, since
	// kube-scheduler has a source a profile; default: the Recorder given to New.
	Recorders map[string]Recorder
	Metrics   *Metrics     // counts what happens; default none
	Log       *slog.Logger // default: discard
}

// Scheduler places the pods that name one of its profiles. It is safe for concurrent use.
type Scheduler struct {
	client    client.Client
	informers Informers
	recorder  Recorder
	opts      Options
	profiles  map[string]*Profile
	wake      chan struct{} // capacity 1: the queue may have something to place
	jobs      chan *job

	mu      sync.Mutex // guards the fields below
	state   *State
	queue   *queue
	stats   Stats
	budgets map[types.UID]budget
	turn    int // where preemption begins to look
	// assumed are pods that were placed here and not yet seen on their node.
	assumed map[types.UID]*assumption
	// doomed are pods whose deletion was asked for and is not to be seen yet.
	doomed map[types.UID]struct{}
	// writing are pods with a write under way, and the jobs that come after it.
	writing map[types.UID][]*job
	// owed counts the jobs that will write a pod's nominated node.
	owed    map[types.UID]int
	volumes *volumes
	// binder does what else a binding needs; nil for nothing.
	binder binder
}

// assumption is a placement on its way to the API.
type assumption struct {
	node     string
	reserved bool                    // the binder holds something for it
	cancel   context.CancelCauseFunc // of what is waited for before the binding; nil if nothing is
}

// Stats counts what a Scheduler has done since its start.
type Stats struct {
	Placed     int64 // nodes chosen
	Bound      int64 // bindings the API took
	BindErrors int64 // bindings the API refused
	Misfits    int64 // times that no node could take a pod
	Preempted  int64 // pods whose deletion was asked for to make room
	Searches   int64 // Placed and Misfits
	Waiting    int   // pods without a node now
}

// New checks opts and returns a Scheduler that has started nothing; call Run.
func New(c client.Client, informers Informers, recorder Recorder, opts Options) (*Scheduler, error) {
	opts.BindWorkers = cmp.Or(opts.BindWorkers, 64)
	opts.BindTimeout = cmp.Or(opts.BindTimeout, 10*time.Second)
	if opts.Config == nil {
		opts.Config = DefaultConfig()
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c == nil || informers == nil || recorder == nil:
		return nil, errors.New("scheduler: a client, informers and a recorder are needed")
	case opts.BindWorkers < 1 || opts.BindWorkers > 1024:
		return nil, fmt.Errorf("scheduler: BindWorkers is %d, want 1 to 1024", opts.BindWorkers)
	case len(opts.Config.Profiles) == 0:
		return nil, errors.New("scheduler: Config has no profile")
	}
	s := &Scheduler{
		client: c, informers: informers, recorder: recorder, opts: opts, profiles: map[string]*Profile{},
		wake: make(chan struct{}, 1), jobs: make(chan *job, 4*opts.BindWorkers),
	}
	for _, p := range opts.Config.Profiles {
		if err := p.prepare(); err != nil {
			return nil, fmt.Errorf("scheduler: %w", err)
		}
		s.profiles[p.Name] = p
	}
	s.reset()
	return s, nil
}

// Stats returns the counts so far.
func (s *Scheduler) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.Searches = stats.Placed + stats.Misfits
	stats.Waiting = len(s.queue.pods)
	return stats
}

// Why tells how each node does for a pod as things are now.
func (s *Scheduler) Why(pod *corev1.Pod) Diagnosis {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Diagnose(pod)
}

// event records an event about a pod that a scheduler of that name places.
func (s *Scheduler) event(scheduler string, pod *corev1.Pod, kind, reason, note string) {
	if recorder := s.opts.Recorders[scheduler]; recorder != nil {
		recorder.Event(pod, kind, reason, note)
		return
	}
	s.recorder.Event(pod, kind, reason, note)
}

// now is the time; back-offs and preemption count with it.
func (s *Scheduler) now() time.Time { return time.Now() }

// Run places pods until ctx ends and every write has returned.
func (s *Scheduler) Run(ctx context.Context) error {
	// Nodes and what is on them come first, or early pods would be placed on guesses.
	s.reset()
	stop, err := s.subscribe(ctx)
	if err != nil && ctx.Err() != nil {
		return nil // asked to stop before all was there
	}
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	defer stop()
	defer s.opts.Metrics.watch(s)()
	var writers sync.WaitGroup
	for range s.opts.BindWorkers {
		writers.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case j := <-s.jobs:
					if j.wait {
						writers.Go(func() { s.write(ctx, j) }) // it may take minutes
						continue
					}
					s.write(ctx, j)
				}
			}
		})
	}
	s.placeAll(ctx)
	writers.Wait()
	return nil
}

// reset forgets an earlier Run.
func (s *Scheduler) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.queue = NewState(), newQueue(s.opts.Config.InitialBackoff, s.opts.Config.MaxBackoff)
	_ = s.state.SetProfiles(s.opts.Config.Profiles...) // New has found no error in them
	s.volumes = newVolumes(s.client, s.state, &s.mu)
	s.state.outside, s.binder = []outsideFilter{s.volumes}, s.volumes
	s.assumed, s.doomed = map[types.UID]*assumption{}, map[types.UID]struct{}{}
	s.writing, s.owed, s.budgets = map[types.UID][]*job{}, map[types.UID]int{}, map[types.UID]budget{}
	for len(s.jobs) > 0 {
		<-s.jobs
	}
}

func (s *Scheduler) subscribe(ctx context.Context) (stop func(), err error) {
	subs := append(s.selectorSubscriptions(), s.volumeSubscriptions()...)
	subs = append(subs,
		informer.Subscription{Object: &corev1.Node{}, OnEvent: s.onNode},
		informer.Subscription{Object: &policyv1.PodDisruptionBudget{}, OnEvent: s.onBudget},
		informer.Subscription{Object: &corev1.Pod{}, OnEvent: s.onPod})
	return informer.Subscribe(ctx, s.informers, subs...)
}

func (s *Scheduler) onNode(old, current client.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	node, ok := current.(*corev1.Node)
	if !ok {
		s.state.RemoveNode(old.GetName())
		s.nodeGone(old.GetName())
		return
	}
	if s.state.SetNode(node) {
		before, _ := old.(*corev1.Node)
		s.nodeChanged(before, node)
	}
}

func (s *Scheduler) onBudget(old, current client.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old != nil {
		delete(s.budgets, old.GetUID())
	}
	if pdb, ok := current.(*policyv1.PodDisruptionBudget); ok {
		s.budgets[pdb.UID] = newBudget(pdb)
	}
}

func (s *Scheduler) onPod(old, current client.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, _ := old.(*corev1.Pod)
	pod, ok := current.(*corev1.Pod)
	if !ok {
		s.forget(before)
		return
	}
	if before != nil && before.UID != pod.UID {
		s.forget(before) // deleted and made again between two events
		before = nil
	}
	if pod.DeletionTimestamp != nil {
		delete(s.doomed, pod.UID)
	}
	switch finished := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed; {
	case finished:
		s.forget(pod)
	case pod.Spec.NodeName != "":
		s.seenOn(before, pod)
	case s.profiles[pod.Spec.SchedulerName] == nil:
	case pod.DeletionTimestamp != nil:
		s.forget(pod)
	case len(pod.Spec.SchedulingGates) > 0:
		s.dequeue(pod)
		s.queue.gated[pod.UID] = struct{}{}
	default:
		delete(s.queue.gated, pod.UID)
		s.enqueue(before, pod)
	}
}

// seenOn takes in a pod that has a node, by whoever's decision.
func (s *Scheduler) seenOn(before, pod *corev1.Pod) {
	s.dequeue(pod)
	delete(s.assumed, pod.UID)
	if nominated := s.state.nominatedTo(pod.UID); nominated != "" && nominated != pod.Spec.NodeName {
		defer s.freeNomination(pod, nominated)
	}
	known := s.state.pods[pod.UID]
	held := s.state.freed
	moved := known == nil || known.node != pod.Spec.NodeName
	if known != nil && moved { // a binding that was taken for lost
		defer s.podGone(known.pod, known.node)
	}
	s.state.AddPod(pod, pod.Spec.NodeName)
	if before != nil && !maps.Equal(before.Labels, pod.Labels) {
		s.podChanged(before) // nobody's company any more
		s.podChanged(pod)
	}
	if !moved && s.state.freed != held { // it asks for something else, or goes: that may be less
		s.podGone(pod, pod.Spec.NodeName)
		return
	}
	if moved {
		s.podChanged(pod)
	}
}

// forget releases what a pod holds.
func (s *Scheduler) forget(pod *corev1.Pod) {
	s.dequeue(pod)
	delete(s.doomed, pod.UID)
	delete(s.queue.gated, pod.UID)
	if a := s.assumed[pod.UID]; a != nil {
		delete(s.assumed, pod.UID)
		s.release(pod, a)
	}
	if nominated := s.state.nominatedTo(pod.UID); nominated != "" {
		s.state.Unnominate(pod.UID)
		s.freeNomination(pod, nominated)
	}
	if node, ok := s.state.RemovePod(pod.UID); ok {
		s.podGone(pod, node)
	}
}

// freeNomination lets others have the room that was kept for a pod on a node.
func (s *Scheduler) freeNomination(pod *corev1.Pod, node string) { s.podGone(pod, node) }

func (s *Scheduler) dequeue(pod *corev1.Pod) {
	if w := s.queue.remove(pod.UID); w != nil {
		s.state.unref(w.template)
	}
}

// enqueue takes in a pod that has no node. One that is known only moves if it asks for
// something else now.
func (s *Scheduler) enqueue(before, pod *corev1.Pod) {
	if s.assumed[pod.UID] != nil {
		if w := s.queue.pods[pod.UID]; w != nil {
			w.pod = pod // it waits again if it cannot be bound
		}
		return
	}
	s.followNomination(before, pod)
	w, known := s.queue.pods[pod.UID]
	if known && s.state.sameTemplate(w.template, pod) {
		w.pod = pod
		return
	}
	number := uint64(0)
	if known {
		number = w.number
		s.dequeue(pod)
	}
	s.queue.add(pod, s.state.ref(pod), number, s.now())
	s.poke()
}

// followNomination takes over who has written a pod's nominated node. What was nominated here and is not
// written yet stays.
func (s *Scheduler) followNomination(before, pod *corev1.Pod) {
	was, is := "", pod.Status.NominatedNodeName
	if before != nil {
		was = before.Status.NominatedNodeName
	}
	kept := s.state.nominatedTo(pod.UID)
	if was == is && before != nil || kept == is {
		return
	}
	if s.owed[pod.UID] > 0 {
		return // ours is on its way and comes last
	}
	s.state.Unnominate(pod.UID)
	if is != "" {
		s.state.Nominate(pod, is)
	}
	if kept != "" {
		s.freeNomination(pod, kept)
	}
}

func (s *Scheduler) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// placeAll places pods until ctx ends.
func (s *Scheduler) placeAll(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var namespaces namespaceWatch
	defer namespaces.end()
	flush := time.NewTicker(flushEvery)
	defer flush.Stop()
	for ctx.Err() == nil {
		namespaces.begin(ctx, s)
		j, next := s.placeNext(s.now())
		if j != nil {
			select {
			case s.jobs <- j:
			case <-ctx.Done():
			}
			continue
		}
		var due <-chan time.Time
		if !next.IsZero() {
			timer.Reset(time.Until(next))
			due = timer.C
		}
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-due:
		case <-flush.C:
			s.mu.Lock()
			s.queue.flush(s.now())
			s.mu.Unlock()
		}
	}
}

// placeNext places one pod and returns what is to be written, nil if there is nothing to
// place before next.
func (s *Scheduler) placeNext(now time.Time) (j *job, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		w, next := s.queue.pop(now)
		if w == nil {
			return nil, next
		}
		w.attempts++
		slot, failure := s.state.find(w.template, w.pod)
		if failure == nil {
			return s.assume(w, slot, now), time.Time{}
		}
		s.stats.Misfits++
		s.opts.Metrics.searched(w, now, false)
		if j := s.misfit(w, failure, now); j != nil {
			return j, time.Time{}
		}
	}
}

// assume takes it that a pod is on a node from now on, and returns the binding to write.
func (s *Scheduler) assume(w *waiting, slot int32, now time.Time) *job {
	s.stats.Placed++
	node := s.state.nodes[slot].node.Name
	nominated := s.state.nominatedTo(w.pod.UID)
	s.state.AddPod(w.pod, node)
	if nominated != "" && nominated != node {
		s.freeNomination(w.pod, nominated)
	}
	s.queue.placed(w.template)
	j := &job{pod: w.pod, node: node, since: w.since, started: now, attempts: w.attempts}
	a := &assumption{node: node}
	s.assumed[w.pod.UID] = a
	if s.binder != nil && len(w.pod.Spec.Volumes) > 0 {
		j.wait, j.failed = s.binder.reserve(w.pod, node)
		a.reserved = j.failed == nil
	}
	s.opts.Metrics.searched(w, now, true)
	if len(s.queue.social) > 0 {
		s.podChanged(w.pod)
	}
	return j
}
