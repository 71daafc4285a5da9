package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
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
	return map[string]string{"Scheduled": "Binding", "FailedScheduling": "Scheduling"}
}

// Options tunes a Scheduler. The zero value suits production.
type Options struct {
	Name        string        // pods with this schedulerName are placed; default "default-scheduler"
	BindWorkers int           // bindings and status writes at once; default 64
	BindTimeout time.Duration // limit for one write; default 10s
	Log         *slog.Logger  // default: discard
}

// Scheduler places the pods that name it. It is safe for concurrent use.
type Scheduler struct {
	client    client.Client
	informers Informers
	recorder  Recorder
	opts      Options
	wake      chan struct{} // capacity 1: the queue may have something to place
	jobs      chan job

	mu    sync.Mutex // guards the fields below
	state *State
	queue *queue
	stats Stats
	// assumed are pods that were placed here and not yet seen on their node.
	assumed map[types.UID]struct{}
}

// Stats counts what a Scheduler has done since its start.
type Stats struct {
	Placed     int64 // nodes chosen
	Bound      int64 // bindings the API took
	BindErrors int64 // bindings the API refused
	Misfits    int64 // times that no node could take a pod
	Waiting    int   // pods without a node now
}

// New checks opts and returns a Scheduler that has started nothing; call Run.
func New(c client.Client, informers Informers, recorder Recorder, opts Options) (*Scheduler, error) {
	opts.Name = cmp.Or(opts.Name, corev1.DefaultSchedulerName)
	opts.BindWorkers = cmp.Or(opts.BindWorkers, 64)
	opts.BindTimeout = cmp.Or(opts.BindTimeout, 10*time.Second)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c == nil || informers == nil || recorder == nil:
		return nil, errors.New("scheduler: a client, informers and a recorder are needed")
	case opts.BindWorkers < 1 || opts.BindWorkers > 1024:
		return nil, fmt.Errorf("scheduler: BindWorkers is %d, want 1 to 1024", opts.BindWorkers)
	}
	return &Scheduler{
		client: c, informers: informers, recorder: recorder, opts: opts,
		wake: make(chan struct{}, 1), jobs: make(chan job, 4*opts.BindWorkers),
		state: NewState(), queue: newQueue(), assumed: map[types.UID]struct{}{},
	}, nil
}

// Stats returns the counts so far.
func (s *Scheduler) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.Waiting = len(s.queue.pods)
	return stats
}

// Why tells how each node does for a pod as things are now.
func (s *Scheduler) Why(pod *corev1.Pod) Diagnosis {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Diagnose(pod)
}

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
	var writers sync.WaitGroup
	for range s.opts.BindWorkers {
		writers.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case j := <-s.jobs:
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
	s.state, s.queue, s.assumed = NewState(), newQueue(), map[types.UID]struct{}{}
	for len(s.jobs) > 0 {
		<-s.jobs
	}
}

func (s *Scheduler) subscribe(ctx context.Context) (stop func(), err error) {
	return informer.Subscribe(ctx, s.informers,
		informer.Subscription{Object: &corev1.Node{}, OnEvent: s.onNode},
		informer.Subscription{Object: &corev1.Pod{}, OnEvent: s.onPod})
}

func (s *Scheduler) onNode(old, current client.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	node, ok := current.(*corev1.Node)
	if !ok {
		s.state.RemoveNode(old.GetName())
		return
	}
	if s.state.SetNode(node) {
		s.retryOn(node.Name)
	}
}

func (s *Scheduler) onPod(old, current client.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pod, ok := current.(*corev1.Pod)
	if !ok {
		s.forget(old.(*corev1.Pod))
		return
	}
	if before, ok := old.(*corev1.Pod); ok && before.UID != pod.UID {
		s.forget(before) // deleted and made again between two events
	}
	switch finished := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed; {
	case finished:
		s.forget(pod)
	case pod.Spec.NodeName != "":
		s.dequeue(pod)
		delete(s.assumed, pod.UID)
		s.state.AddPod(pod, pod.Spec.NodeName)
	case pod.Spec.SchedulerName != s.opts.Name || len(pod.Spec.SchedulingGates) > 0 || pod.DeletionTimestamp != nil:
		s.dequeue(pod)
	default:
		s.enqueue(pod)
	}
}

// forget releases what a pod holds.
func (s *Scheduler) forget(pod *corev1.Pod) {
	s.dequeue(pod)
	delete(s.assumed, pod.UID)
	if node, ok := s.state.RemovePod(pod.UID); ok {
		s.retryOn(node)
	}
}

func (s *Scheduler) dequeue(pod *corev1.Pod) {
	if w := s.queue.remove(pod.UID); w != nil {
		s.state.unref(w.template)
	}
}

// enqueue takes in a pod that has no node. One that is known only moves if it asks for
// something else now.
func (s *Scheduler) enqueue(pod *corev1.Pod) {
	if _, assumed := s.state.pods[pod.UID]; assumed {
		return
	}
	w, known := s.queue.pods[pod.UID]
	switch {
	case known && sameDemands(w.template.pod, pod):
		w.pod = pod
		return
	case known:
		s.dequeue(pod)
	}
	s.queue.add(pod, s.state.ref(pod))
	s.poke()
}

// retryOn activates the pods that fitted nowhere and would fit on a node now.
func (s *Scheduler) retryOn(node string) {
	slot, ok := s.state.slots[node]
	if !ok {
		return
	}
	for t, pods := range s.queue.misfits {
		if s.state.reject(t, nil, slot) != nil {
			continue
		}
		for w := range pods {
			s.queue.activate(w)
		}
		s.poke()
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
	for ctx.Err() == nil {
		j, next := s.placeNext(time.Now())
		if j.pod != nil {
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
		}
	}
}

// placeNext places one pod and returns what is to be written, a job without a pod if
// there is nothing to place before next.
func (s *Scheduler) placeNext(now time.Time) (j job, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		w, next := s.queue.pop(now)
		if w == nil {
			return job{}, next
		}
		slot, failure := s.state.find(w.template, w.pod)
		if failure != nil {
			s.stats.Misfits++
			s.queue.misfit(w)
			if w.message == failure.Message {
				continue // told already
			}
			w.message = failure.Message
			return job{pod: w.pod, message: failure.Message}, time.Time{}
		}
		s.stats.Placed++
		node := s.state.nodes[slot].node.Name
		s.state.AddPod(w.pod, node)
		s.assumed[w.pod.UID] = struct{}{}
		return job{pod: w.pod, node: node}, time.Time{}
	}
}
