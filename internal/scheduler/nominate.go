package scheduler

import (
	"errors"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// misfit puts a pod aside that fits nowhere, and has others evicted for it if that helps. It returns what
// is to be written, nil if all is told already.
func (s *Scheduler) misfit(w *waiting, failure *FitError, now time.Time) *job {
	message := failure.Message
	kept := s.state.nominatedTo(w.pod.UID)
	plugins := failure.Plugins
	j := &job{pod: w.pod, started: now}
	if failure.evictable {
		e, tail, against := s.preempt(w, failure, now)
		if e != nil {
			return s.evict(w, e, message, plugins, now)
		}
		plugins |= against
		message = withTail(message, tail)
		if tail == reasonTerminating {
			s.queue.misfit(w, true, plugins, now)
			return s.tell(w, j, message)
		}
	}
	// Nothing can be done for the pod where it is nominated, so that others may have the room.
	lapsed := kept != "" && preempts(w.pod)
	if lapsed {
		s.state.Unnominate(w.pod.UID)
		s.freeNomination(w.pod, kept)
		kept = ""
	}
	if lapsed || w.pod.Status.NominatedNodeName != kept { // it may be written already, and not be seen yet
		j.nominate = &kept
		s.owe(j)
		w.message = ""
	}
	s.queue.misfit(w, kept != "", plugins, now)
	return s.tell(w, j, message)
}

// owe notes that nominations are to be written. Until they are, events tell of older ones. Every job that
// is owed comes to do.
func (s *Scheduler) owe(j *job) {
	j.owed = append(j.owed, j.pod.UID)
	for _, pod := range j.aside {
		j.owed = append(j.owed, pod.UID)
	}
	for _, uid := range j.owed {
		s.owed[uid]++
	}
}

// pay ends what owe has begun.
func (s *Scheduler) pay(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, uid := range j.owed {
		if s.owed[uid]--; s.owed[uid] == 0 {
			delete(s.owed, uid)
		}
	}
}

// tell completes the job that reports a pod's failure, nil if there is nothing new.
func (s *Scheduler) tell(w *waiting, j *job, message string) *job {
	if w.message == message {
		return nil
	}
	w.message = message
	j.message = message
	return j
}

// preempt looks for whom to evict for a pod. Without an answer it says why. What was in vain
// for a pod is so for its kin until something changes.
func (s *Scheduler) preempt(w *waiting, failure *FitError, now time.Time) (*eviction, string, PluginSet) {
	if s.state.waitsForVictims(w.template, w.pod, s.isDoomed) {
		return nil, reasonTerminating, 0
	}
	s.opts.Metrics.preempting()
	s.turn++
	budgets := slices.Collect(maps.Values(s.budgets))
	return s.state.preempt(w.template, w.pod, failure, budgets, s.turn, now)
}

// isDoomed says whether a pod's deletion was asked for and is not to be seen yet.
func (s *Scheduler) isDoomed(pod *corev1.Pod) bool {
	_, doomed := s.doomed[pod.UID]
	return doomed
}

// evict nominates a pod to the node on which others make room for it.
func (s *Scheduler) evict(w *waiting, e *eviction, message string, plugins PluginSet, now time.Time) *job {
	node := s.state.nodes[e.slot].node.Name
	j := &job{pod: w.pod, started: now, message: message, nominate: &node, evictor: w}
	for _, victim := range e.victims {
		a := s.assumed[victim.UID]
		_, doomed := s.doomed[victim.UID]
		switch {
		case a != nil && a.cancel != nil: // it waits to be bound, and need not be deleted
			a.cancel(errors.New("preempted by DefaultPreemption"))
		case victim.DeletionTimestamp == nil && !doomed:
			s.doomed[victim.UID] = struct{}{}
			j.victims = append(j.victims, victim)
		}
	}
	if len(j.victims) > 0 {
		s.opts.Metrics.evicting(len(e.victims))
	}
	for _, pod := range s.state.pushedAside(e.slot, priorityOf(w.pod)) {
		s.state.Unnominate(pod.UID)
		j.aside = append(j.aside, pod)
		if other := s.queue.pods[pod.UID]; other != nil && other.line != nil {
			s.retry(other.line)
		}
	}
	kept := s.state.nominatedTo(w.pod.UID)
	s.state.Nominate(w.pod, node)
	if len(j.aside) > 0 {
		s.retryOn(e.slot) // less room may be kept there now
	}
	if kept != "" && kept != node {
		s.freeNomination(w.pod, kept)
	}
	s.owe(j)
	w.message = message
	s.queue.misfit(w, true, plugins, now).held = true
	return j
}
