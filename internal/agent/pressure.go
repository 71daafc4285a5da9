package agent

import (
	"cmp"
	"context"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/eviction"
	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/agent/resize"
	"gantry.dev/gantry/internal/lifecycle"
)

// Eviction says when a node that runs short ends pods. The zero value never does.
type Eviction struct {
	Thresholds []eviction.Threshold
	Transition time.Duration // how long a condition outlives its cause; default 5m
	MaxGrace   time.Duration // what pods get at most at a soft threshold
	Every      time.Duration // between looks at everything; default 10s
	// Quick is the time between looks at memory and disk alone; default 1s, a quarter of it while
	// less than twice a threshold is left. A program can take gigabytes in a second.
	Quick time.Duration
}

func (e *Eviction) complete() {
	e.Transition = cmp.Or(e.Transition, 5*time.Minute)
	e.Every = cmp.Or(e.Every, 10*time.Second)
	e.Quick = cmp.Or(e.Quick, time.Second)
}

const (
	// immediateGrace is what containers get at a hard threshold.
	immediateGrace = time.Second
	// evictedLimit is how long the next pod waits for the last one to be gone.
	evictedLimit = 30 * time.Second
)

// pressure watches what the node has left, and ends pods when that is too little.
type pressure struct {
	agent   *Agent
	figures figures
	manager *eviction.Manager // belongs to run

	conditions atomic.Pointer[[]corev1.NodeConditionType]
}

func newPressure(a *Agent) *pressure {
	return &pressure{agent: a, figures: measured{a}, manager: eviction.NewManager(a.opts.Eviction.Thresholds, a.opts.Eviction.Transition)}
}

// current are the node's pressure conditions that hold.
func (p *pressure) current() []corev1.NodeConditionType {
	if list := p.conditions.Load(); list != nil {
		return *list
	}
	return nil
}

// run looks until ctx ends.
func (p *pressure) run(ctx context.Context) {
	opts := p.agent.opts.Eviction
	var last time.Time
	for {
		full := time.Since(last) >= opts.Every
		if full {
			last = time.Now()
		}
		wait := opts.Quick
		switch {
		case len(opts.Thresholds) == 0:
			wait = opts.Every
			p.enforceLimits(ctx)
		case p.look(ctx, full):
			wait = opts.Quick / 4
		}
		if !lifecycle.Pause(ctx, wait) {
			return
		}
	}
}

// look measures and acts once; near says that memory or disk are running out.
func (p *pressure) look(ctx context.Context, full bool) (near bool) {
	a := p.agent
	measure := p.figures.quick
	if full {
		measure = p.figures.all
	}
	observed, err := measure()
	if err != nil {
		a.log.Warn("cannot measure what the node has left", "error", err)
		return false
	}
	near = p.manager.Near(observed)
	if near && !full {
		if more, err := p.figures.all(); err == nil {
			observed = more
		}
	}
	decision := p.manager.Observe(time.Now(), observed)
	p.tell(decision.Conditions)
	if full && p.enforceLimits(ctx) {
		return near
	}
	if len(decision.Starved) > 0 {
		p.relieve(ctx, decision.Starved)
	}
	return near
}

// tell publishes conditions; a change is reported at once.
func (p *pressure) tell(conditions []corev1.NodeConditionType) {
	before := p.current()
	if slices.Equal(before, conditions) {
		return
	}
	p.conditions.Store(&conditions)
	p.agent.log.Info("the node's pressure has changed", "nodeName", p.agent.opts.NodeName, "conditions", conditions)
	p.agent.reportSoon()
}

// relieve frees what is short: first by removing what nobody uses, then by ending one pod.
func (p *pressure) relieve(ctx context.Context, starved []eviction.Threshold) {
	a, signal := p.agent, starved[0].Signal
	a.events.node(corev1.EventTypeWarning, "EvictionThresholdMet", "Attempting to reclaim "+string(signal.Resource()))
	a.log.Warn("the node runs short", "nodeName", a.opts.NodeName, "signal", signal, "available", p.manager.Observations()[signal].Available)
	split := p.figures.split()
	if p.collect(ctx, signal, split) {
		if observed, err := p.figures.all(); err == nil && len(p.manager.Unmet(observed)) == 0 {
			return
		}
	}
	byUID := map[*corev1.Pod]*worker{}
	var pods []*corev1.Pod
	for _, w := range a.activeWorkers() {
		if w.isEnding() {
			continue
		}
		pod := a.grantedSnapshot(w)
		pods = append(pods, pod)
		byUID[pod] = w
	}
	usages := p.figures.usages(ctx, pods, signal.Resource() == corev1.ResourceEphemeralStorage || signal.Resource() == eviction.ResourceInodes)
	eviction.Rank(signal, split, pods, usages)
	for _, pod := range pods {
		if eviction.Critical(pod) {
			continue
		}
		grace := immediateGrace
		if !starved[0].Hard() {
			grace = a.opts.Eviction.MaxGrace
			if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
				grace = min(grace, time.Duration(*s)*time.Second)
			}
		}
		message, annotations := eviction.Message(starved, p.manager.Observations(), pod, usages)
		p.evict(byUID[pod], pod, message, annotations, grace, message)
		byUID[pod].waitEnded(ctx, evictedLimit)
		return
	}
	a.log.Error("the node runs short and has no pod that may be ended", "nodeName", a.opts.NodeName, "signal", signal)
}

// collect removes dead containers and unused images where that frees the disk that is short.
func (p *pressure) collect(ctx context.Context, signal eviction.Signal, split bool) bool {
	switch signal {
	case eviction.ImageFSAvailable, eviction.ImageFSInodesFree:
	case eviction.NodeFSAvailable, eviction.NodeFSInodesFree:
		if split {
			return false
		}
	default:
		return false
	}
	a := p.agent
	if err := a.collectContainers(ctx); err != nil && ctx.Err() == nil {
		a.log.Warn("cannot remove dead containers to free the disk", "error", err)
	}
	if err := a.collectImages(ctx, time.Now(), true); err != nil && ctx.Err() == nil {
		a.log.Warn("cannot remove unused images to free the disk", "error", err)
	}
	return true
}

// evict ends a pod for the node's sake.
func (p *pressure) evict(w *worker, pod *corev1.Pod, message string, annotations map[string]string, grace time.Duration, condition string) {
	a := p.agent
	a.events.podAnnotated(pod, annotations, corev1.EventTypeWarning, eviction.Reason, message)
	a.log.Warn("a pod is evicted", "namespace", pod.Namespace, "name", pod.Name, "uid", pod.UID, "message", message)
	w.end(ending{reason: eviction.Reason, message: message, grace: &grace, condition: condition})
}

// enforceLimits ends pods that have more on disk than they may; it reports whether it ended any.
func (p *pressure) enforceLimits(ctx context.Context) bool {
	a := p.agent
	split := p.figures.split()
	var ended []*worker
	for _, w := range a.activeWorkers() {
		if w.isEnding() {
			continue
		}
		pod := a.grantedSnapshot(w)
		if !eviction.Limited(pod) || eviction.Critical(pod) {
			continue
		}
		usage, err := p.figures.storage(ctx, pod)
		if err != nil {
			if ctx.Err() == nil {
				a.log.Debug("cannot measure a pod's folders", "namespace", pod.Namespace, "name", pod.Name, "uid", pod.UID, "error", err)
			}
			continue
		}
		if message := eviction.OverLimit(pod, usage, split); message != "" {
			p.evict(w, pod, message, nil, immediateGrace, "")
			ended = append(ended, w)
		}
	}
	deadline := time.Now().Add(evictedLimit)
	for _, w := range ended {
		w.waitEnded(ctx, time.Until(deadline))
	}
	return len(ended) > 0
}

// grantedSnapshot is a worker's pod with its newest status and what it was granted.
func (a *Agent) grantedSnapshot(w *worker) *corev1.Pod {
	pod := w.snapshot()
	a.mu.Lock()
	defer a.mu.Unlock()
	if w.counts == nil {
		return pod
	}
	return w.counts.Apply(pod)
}

// runningOf lists the running containers of a pod by its status.
func (a *Agent) runningOf(pod *corev1.Pod) []resize.Running {
	var list []resize.Running
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range statuses {
			if statuses[i].State.Running != nil {
				list = append(list, resize.Running{ID: podstatus.TrimScheme(statuses[i].ContainerID), Name: statuses[i].Name})
			}
		}
	}
	return list
}
