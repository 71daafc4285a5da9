package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/admission"
	"gantry.dev/gantry/internal/lifecycle"
)

// Words of a node that goes down with its machine. Source: the kubelet.
const (
	shutdownRefused = "NodeShutdown"
	shutdownReason  = "Terminated"
	shutdownMessage = "Pod was terminated in response to imminent node shutdown."
	shutdownStatus  = "node is shutting down"
)

// watchRetry is the wait before the machine's shutdown is watched for again.
const watchRetry = time.Second

// systemCritical is the priority from which pods are the last to end.
const systemCritical = 2000000000

// Shutdown says how a node ends its pods when its machine goes down. The zero value does not.
type Shutdown struct {
	// Classes are how long pods of a priority and above get, up to the next class's priority.
	Classes []ShutdownClass
	// Watch tells of the machine's shutdown: it calls on with true when one begins, holds the
	// machine back until on returns, but for at most delay, and calls on with false when it was
	// called off. It blocks until ctx ends or watching fails; nil watches nothing.
	Watch func(ctx context.Context, delay time.Duration, on func(ctx context.Context, stopping bool)) error
}

// ShutdownClass is the time that pods of a priority get to end.
type ShutdownClass struct {
	Priority int32
	Grace    time.Duration
}

// ShutdownClasses are the two classes of a node that gives all pods grace, the last part of it
// to those that the system needs.
func ShutdownClasses(grace, critical time.Duration) []ShutdownClass {
	if grace <= 0 || critical > grace {
		return nil
	}
	return []ShutdownClass{{Priority: 0, Grace: grace - critical}, {Priority: systemCritical, Grace: critical}}
}

// shutdown ends the pods before the machine.
type shutdown struct {
	agent   *Agent
	classes []ShutdownClass // by rising priority

	mu       sync.Mutex // guards the field below
	stopping bool
}

func newShutdown(a *Agent) *shutdown {
	classes := slices.Clone(a.opts.Shutdown.Classes)
	slices.SortFunc(classes, func(x, y ShutdownClass) int { return int(x.Priority) - int(y.Priority) })
	return &shutdown{agent: a, classes: classes}
}

// delay is how long all classes take together at most.
func (s *shutdown) delay() time.Duration {
	total := time.Duration(0)
	for _, c := range s.classes {
		total += c.Grace
	}
	return total
}

func (s *shutdown) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// run watches for the machine's shutdown until ctx ends.
func (s *shutdown) run(ctx context.Context) {
	a := s.agent
	if len(s.classes) == 0 || a.opts.Shutdown.Watch == nil {
		return
	}
	told := false
	for {
		err := a.opts.Shutdown.Watch(ctx, s.delay(), s.changed)
		if ctx.Err() != nil {
			return
		}
		if !told {
			told = true
			a.log.Warn("cannot watch for the machine's shutdown, its pods will end without grace", "error", err)
		}
		if !lifecycle.Pause(ctx, watchRetry) {
			return
		}
	}
}

// changed is told that the machine goes down, or does not after all.
func (s *shutdown) changed(ctx context.Context, stopping bool) {
	a := s.agent
	s.mu.Lock()
	s.stopping = stopping
	s.mu.Unlock()
	a.reportSoon()
	if !stopping {
		a.events.node(corev1.EventTypeNormal, "Shutdown", "Shutdown manager detected shutdown cancellation")
		return
	}
	a.events.node(corev1.EventTypeNormal, "Shutdown", "Shutdown manager detected shutdown event")
	a.log.Info("the machine goes down, its pods are ended", "nodeName", a.opts.NodeName)
	s.endAll(ctx)
}

// endAll ends pods class by class, the lowest priority first; a class that takes longer than it
// may does not hold up the next.
func (s *shutdown) endAll(ctx context.Context) {
	for i, workers := range s.group(s.agent.activeWorkers()) {
		grace := s.classes[i].Grace
		for _, w := range workers {
			limit := grace
			if own := w.current().Spec.TerminationGracePeriodSeconds; own != nil {
				limit = min(limit, time.Duration(*own)*time.Second)
			}
			w.end(ending{reason: shutdownReason, message: shutdownMessage, grace: &limit, condition: shutdownMessage})
		}
		deadline := time.Now().Add(grace)
		for _, w := range workers {
			w.waitEnded(ctx, time.Until(deadline))
		}
	}
}

// group sorts pods into the classes: each into the highest whose priority it has, those below
// all into the lowest.
func (s *shutdown) group(workers []*worker) [][]*worker {
	groups := make([][]*worker, len(s.classes))
	for _, w := range workers {
		priority := int32(0)
		if p := w.current().Spec.Priority; p != nil {
			priority = *p
		}
		class := 0
		for i, c := range s.classes {
			if priority >= c.Priority {
				class = i
			}
		}
		groups[class] = append(groups[class], w)
	}
	return groups
}

// MachineStops ends the node's pods as for a shutdown of the machine, for callers that know of
// one where nobody could be watched. It returns when all have ended or their time is over.
func (a *Agent) MachineStops(ctx context.Context) {
	if len(a.shutdown.classes) > 0 && !a.shutdown.isStopping() {
		a.shutdown.changed(ctx, true)
	}
}

// shutdownRefusal turns new pods away while the machine goes down.
func (a *Agent) shutdownRefusal() *admission.Refusal {
	if !a.shutdown.isStopping() {
		return nil
	}
	return &admission.Refusal{Reason: shutdownRefused, Message: "Pod was rejected as the node is shutting down."}
}
