package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// binder is what a binding needs beyond the binding: volumes.
type binder interface {
	// reserve is asked, with the scheduler's lock held, when a pod with volumes is given a node. It
	// writes nothing. wait says that preBind has something to do.
	reserve(pod *corev1.Pod, node string) (wait bool, err error)
	// unreserve undoes reserve, with the lock held: the pod will not be bound to the node.
	unreserve(pod *corev1.Pod, node string)
	// preBind writes, and waits until the pod can be bound or ctx ends.
	preBind(ctx context.Context, pod *corev1.Pod, node string) error
}

// evictionsAtOnce bounds the victims of one pod that are deleted at the same time.
const evictionsAtOnce = 16

// job is the writes that a decision leads to: a binding, or why there is none and who is
// evicted for the pod.
type job struct {
	pod *corev1.Pod

	node   string // to bind to
	wait   bool   // the binder has something to do before
	failed error  // the binder could not reserve

	message  string  // of the condition and the event; empty for neither
	nominate *string // new nominated node; nil to leave it
	victims  []*corev1.Pod
	aside    []*corev1.Pod // lose their nomination
	evictor  *waiting      // held until the victims are deleted
	owed     []types.UID   // pods whose nominated node it will have written

	since, started time.Time
	attempts       int
}

// write does a job, after those of the same pod that came before.
func (s *Scheduler) write(ctx context.Context, j *job) {
	s.mu.Lock()
	if later, busy := s.writing[j.pod.UID]; busy {
		s.writing[j.pod.UID] = append(later, j)
		s.mu.Unlock()
		return
	}
	s.writing[j.pod.UID] = nil
	s.mu.Unlock()
	for j != nil {
		s.do(ctx, j)
		s.mu.Lock()
		if later := s.writing[j.pod.UID]; len(later) > 0 {
			s.writing[j.pod.UID] = later[1:]
			j = later[0]
		} else {
			delete(s.writing, j.pod.UID)
			j = nil
		}
		s.mu.Unlock()
	}
}

// do does a job. A panic costs the pod a retry, not the process.
func (s *Scheduler) do(ctx context.Context, j *job) {
	defer s.pay(j)
	defer func() {
		if cause := recover(); cause != nil {
			s.opts.Log.Error("write panicked", "namespace", j.pod.Namespace, "name", j.pod.Name, "panic", cause)
			s.giveUp(j)
		}
	}()
	if j.node != "" {
		s.place(ctx, j)
		return
	}
	if !s.current(j) {
		s.giveUp(j)
		return
	}
	writeCtx, cancel := context.WithTimeout(ctx, s.opts.BindTimeout)
	defer cancel()
	err := s.report(writeCtx, j, corev1.PodReasonUnschedulable)
	if j.evictor == nil {
		if err != nil {
			s.untold(j.pod)
		}
		return
	}
	if err == nil {
		err = s.evictAll(ctx, j)
	}
	s.evicted(j, err)
}

// untold has a pod tried again whose condition could not be written.
func (s *Scheduler) untold(pod *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.queue.pods[pod.UID]
	if w == nil || w.line == nil {
		return
	}
	w.message = ""
	if w.line.held {
		w.line.missed = true
		return
	}
	s.queue.fault(w, s.now())
	s.poke()
}

// current says whether what a job tells of a pod still holds.
func (s *Scheduler) current(j *job) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue.pods[j.pod.UID] == nil || s.assumed[j.pod.UID] != nil {
		return false
	}
	// A nomination may have been given since it was to be taken away.
	return j.nominate == nil || s.state.nominatedTo(j.pod.UID) == *j.nominate
}

// giveUp undoes what was taken for granted with a job.
func (s *Scheduler) giveUp(j *job) {
	if j.node != "" {
		s.unassume(j.pod)
	}
	if j.evictor != nil {
		s.evicted(j, errors.New("given up"))
	}
}

// place binds a pod.
func (s *Scheduler) place(ctx context.Context, j *job) {
	err := j.failed
	if err != nil {
		err = fmt.Errorf("running Reserve plugin %q: %w", VolumeBinding, err)
	}
	if err == nil && j.wait {
		err = s.preBind(ctx, j)
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.BindTimeout)
	defer cancel()
	if err == nil {
		if err = s.bind(ctx, j.pod, j.node); err == nil {
			s.bound(j)
			return
		}
		err = fmt.Errorf("running Bind plugin \"DefaultBinder\": %w", err)
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return // the scheduler stops
	}
	s.unassume(j.pod)
	s.opts.Metrics.attempt(j, "error")
	if apierrors.IsNotFound(err) {
		return // the pod was deleted meanwhile
	}
	s.opts.Log.Warn("binding will be retried", "namespace", j.pod.Namespace, "name", j.pod.Name, "nodeName", j.node, "error", err)
	empty := ""
	failure := &job{pod: j.pod, message: err.Error()}
	if j.pod.Status.NominatedNodeName != "" {
		failure.nominate = &empty
	}
	_ = s.report(ctx, failure, corev1.PodReasonSchedulerError) // logged there
}

func (s *Scheduler) bound(j *job) {
	s.mu.Lock()
	s.stats.Bound++
	s.dequeue(j.pod)
	s.mu.Unlock()
	s.opts.Metrics.attempt(j, "scheduled")
	s.event(j.pod.Spec.SchedulerName, j.pod, corev1.EventTypeNormal, "Scheduled",
		fmt.Sprintf("Successfully assigned %s/%s to %s", j.pod.Namespace, j.pod.Name, j.node))
}

// preBind has the binder do its part. It ends early if the pod goes or is preempted.
func (s *Scheduler) preBind(ctx context.Context, j *job) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	a := s.assumed[j.pod.UID]
	if a != nil {
		a.cancel = cancel
	}
	s.mu.Unlock()
	if a == nil {
		return apierrors.NewNotFound(corev1.Resource("pods"), j.pod.Name)
	}
	err := s.binder.preBind(ctx, j.pod, j.node)
	s.mu.Lock()
	a.cancel = nil // from here on a victim is deleted
	s.mu.Unlock()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	if err != nil {
		return fmt.Errorf("running PreBind plugin %q: %w", VolumeBinding, err)
	}
	return nil
}

func (s *Scheduler) bind(ctx context.Context, pod *corev1.Pod, node string) error {
	target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}}
	return s.client.SubResource("binding").Create(ctx, target, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	})
}

// unassume takes back an assumed binding and lets the pod wait. If an event has shown
// the pod on a node, or gone, meanwhile, that stands.
func (s *Scheduler) unassume(pod *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.BindErrors++
	a := s.assumed[pod.UID]
	if a == nil {
		return
	}
	delete(s.assumed, pod.UID)
	s.release(pod, a)
	node, ok := s.state.RemovePod(pod.UID)
	if w := s.queue.pods[pod.UID]; w != nil {
		s.waitAgain(w)
	}
	if ok {
		s.podGone(pod, node)
	}
}

// waitAgain lets a pod wait that could not be bound. It may have changed since it was placed.
func (s *Scheduler) waitAgain(w *waiting) {
	defer s.poke()
	if s.state.sameTemplate(w.template, w.pod) {
		w.message = ""
		s.queue.fault(w, s.now())
		return
	}
	s.dequeue(w.pod)
	s.queue.add(w.pod, s.state.ref(w.pod), w.number, s.now())
}

// release ends what a placement holds outside of State.
func (s *Scheduler) release(pod *corev1.Pod, a *assumption) {
	if a.cancel != nil {
		a.cancel(apierrors.NewNotFound(corev1.Resource("pods"), pod.Name))
	}
	if a.reserved {
		s.binder.unreserve(pod, a.node)
		s.retryRejectedBy(PluginsOf(VolumeBinding, NodeVolumeLimits), nil)
	}
}

// evictAll deletes the victims of a job. It goes on after an error, and returns the first.
func (s *Scheduler) evictAll(ctx context.Context, j *job) error {
	empty := ""
	for _, pod := range j.aside {
		away := &job{pod: pod, nominate: &empty}
		s.mu.Lock()
		s.owe(away)
		s.mu.Unlock()
		s.write(ctx, away)
	}
	errs := make([]error, len(j.victims))
	atOnce := min(evictionsAtOnce, s.opts.BindWorkers)
	for from := 0; from < len(j.victims); from += atOnce {
		var group sync.WaitGroup
		for i := from; i < min(from+atOnce, len(j.victims)); i++ {
			group.Go(func() { errs[i] = s.evictOne(ctx, j, j.victims[i]) })
		}
		group.Wait()
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// evictOne tells a pod why it goes, and deletes it.
func (s *Scheduler) evictOne(ctx context.Context, j *job, victim *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.BindTimeout)
	defer cancel()
	condition := corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
		Message:            j.pod.Spec.SchedulerName + ": preempting to accommodate a higher priority pod",
		ObservedGeneration: victim.Generation,
	}
	err := s.patchStatus(ctx, victim, &condition, nil)
	if err == nil {
		err = s.client.Delete(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: victim.Namespace, Name: victim.Name}},
			client.Preconditions{UID: &victim.UID})
	}
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err) && s.replaced(ctx, victim):
		return nil // gone already
	case err != nil:
		return fmt.Errorf("evicting pod %s/%s: %w", victim.Namespace, victim.Name, err)
	}
	s.mu.Lock()
	s.stats.Preempted++
	s.mu.Unlock()
	s.event(j.pod.Spec.SchedulerName, victim, corev1.EventTypeNormal, "Preempted", fmt.Sprintf("Preempted by pod %s on node %s", j.pod.UID, *j.nominate))
	return nil
}

// replaced says whether a pod's name belongs to another pod now.
func (s *Scheduler) replaced(ctx context.Context, pod *corev1.Pod) bool {
	var there corev1.Pod
	err := s.client.Get(ctx, client.ObjectKeyFromObject(pod), &there)
	return apierrors.IsNotFound(err) || err == nil && there.UID != pod.UID
}

// evicted ends the wait of a pod for the deletion of others.
func (s *Scheduler) evicted(j *job, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		for _, victim := range j.victims {
			delete(s.doomed, victim.UID)
		}
		// Another pod may have counted on these evictions.
		if slot, ok := s.state.slots[*j.nominate]; ok {
			defer s.retryOn(slot)
		}
	}
	w := j.evictor
	l := w.line
	if s.queue.pods[j.pod.UID] != w || l == nil || !l.held {
		return // it has gone, or asks for something else now
	}
	l.held = false
	if err != nil {
		s.opts.Log.Warn("preemption will be retried", "namespace", j.pod.Namespace, "name", j.pod.Name, "error", err)
		w.message = ""
		s.queue.fault(w, s.now())
		s.poke()
		return
	}
	if l.missed {
		l.missed = false
		s.retry(l)
	}
}

// report writes the PodScheduled condition, the nominated node and an event.
func (s *Scheduler) report(ctx context.Context, j *job, reason string) error {
	var condition *corev1.PodCondition
	if j.message != "" {
		s.event(j.pod.Spec.SchedulerName, j.pod, corev1.EventTypeWarning, "FailedScheduling", shorten(j.message))
		condition = &corev1.PodCondition{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: reason, Message: j.message,
			ObservedGeneration: j.pod.Generation,
		}
	}
	err := s.patchStatus(ctx, j.pod, condition, j.nominate)
	if err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		s.opts.Log.Warn("status not written", "namespace", j.pod.Namespace, "name", j.pod.Name, "error", err)
	}
	return err
}

// shorten cuts a message to what an Event may hold.
func shorten(message string) string {
	const limit, more = 1024, " ..."
	if len(message) <= limit {
		return message
	}
	return message[:limit-len(more)] + more
}

// patchStatus writes a condition and a nominated node, where they differ from what the pod has.
func (s *Scheduler) patchStatus(ctx context.Context, pod *corev1.Pod, condition *corev1.PodCondition, nominate *string) error {
	status := map[string]any{}
	if condition != nil && !hasCondition(pod, condition) {
		status["conditions"] = []corev1.PodCondition{*condition}
	}
	if nominate != nil {
		status["nominatedNodeName"] = nominate
		if *nominate == "" {
			status["nominatedNodeName"] = nil
		}
	}
	if len(status) == 0 {
		return nil
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		return fmt.Errorf("encoding a status: %w", err)
	}
	target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}}
	return s.client.Status().Patch(ctx, target, client.RawPatch(types.StrategicMergePatchType, body))
}

// hasCondition says whether a pod has a condition already. It dates the condition.
func hasCondition(pod *corev1.Pod, condition *corev1.PodCondition) bool {
	condition.LastTransitionTime = metav1.Now()
	for i := range pod.Status.Conditions {
		have := &pod.Status.Conditions[i]
		if have.Type != condition.Type || have.Status != condition.Status {
			continue
		}
		condition.LastTransitionTime = have.LastTransitionTime
		return have.Reason == condition.Reason && have.Message == condition.Message
	}
	return false
}
