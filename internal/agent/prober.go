package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/nodeapi"
	"gantry.dev/gantry/internal/agent/podconfig"
	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/agent/probe"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/lifecycle"
)

// probeTries is how often a probe that errs (which is not: fails) is repeated at once.
const probeTries = 3

// prober runs the probes of all containers of the node. Its results wake the pods' workers,
// which alone act on them.
type prober struct {
	agent *Agent

	mu      sync.Mutex                     // guards the fields below
	probed  map[string]*probeSet           // by container ID
	results map[resultKey]podstatus.Result // what was decided
}

type resultKey struct {
	kind podstatus.Kind
	id   string
}

// probeSet is what runs for one container.
type probeSet struct {
	worker  *worker
	cancel  map[podstatus.Kind]context.CancelFunc
	counts  map[podstatus.Kind]*nodeapi.ProbeCount // guarded by prober.mu
	started chan struct{}                          // closed when the startup probe has succeeded
	once    sync.Once
}

func newProber(a *Agent) *prober {
	return &prober{agent: a, probed: map[string]*probeSet{}, results: map[resultKey]podstatus.Result{}}
}

// Result implements podstatus.Results.
func (p *prober) Result(kind podstatus.Kind, id string) (podstatus.Result, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.results[resultKey{kind, id}]
	return r, ok
}

func (p *prober) set(w *worker, kind podstatus.Kind, id string, result podstatus.Result) {
	p.mu.Lock()
	set, ok := p.probed[id]
	before, had := p.results[resultKey{kind, id}]
	if !ok {
		p.mu.Unlock()
		return
	}
	p.results[resultKey{kind, id}] = result
	if kind == podstatus.Startup && result == podstatus.Success {
		set.once.Do(func() { close(set.started) })
	}
	p.mu.Unlock()
	if !had || before != result {
		w.notify()
	}
}

// keep makes the running probes of a pod match its running containers.
func (p *prober) keep(w *worker, list []container.Status) {
	w.mu.Lock()
	pod, reported := w.pod, w.reported
	w.mu.Unlock()
	running := map[string]bool{}
	for _, c := range list {
		spec := podstatus.Container(pod, c.Name)
		if c.State != container.StateRunning || spec == nil || w.finished {
			continue
		}
		running[c.ID] = true
		p.ensure(w, pod, spec, c, reported)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, set := range p.probed {
		if set.worker == w && !running[id] {
			p.endLocked(id, set)
		}
	}
}

// count keeps figures of one probe, as the kubelet's prober_* metrics have them.
func (p *prober) count(c *nodeapi.ProbeCount, result podstatus.Result, ok bool, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !ok:
		c.Results[2]++
	case result == podstatus.Success:
		c.Results[0]++
	default:
		c.Results[1]++
		return
	}
	c.Seconds += took.Seconds()
	for i, bound := range nodeapi.ProbeBuckets() {
		if took.Seconds() <= bound {
			c.Buckets[i]++
		}
	}
}

// counts copies the figures of all probes that run.
func (p *prober) counts() []nodeapi.ProbeCount {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []nodeapi.ProbeCount
	for _, set := range p.probed {
		for _, c := range set.counts {
			one := *c
			one.Buckets = slices.Clone(c.Buckets)
			list = append(list, one)
		}
	}
	return list
}

func (p *prober) endLocked(id string, set *probeSet) {
	for _, cancel := range set.cancel {
		cancel()
	}
	delete(p.probed, id)
	for _, kind := range []podstatus.Kind{podstatus.Liveness, podstatus.Readiness, podstatus.Startup} {
		delete(p.results, resultKey{kind, id})
	}
}

// ensure starts the probes of one running container once.
func (p *prober) ensure(w *worker, pod *corev1.Pod, spec *corev1.Container, c container.Status, reported *corev1.PodStatus) {
	if spec.LivenessProbe == nil && spec.ReadinessProbe == nil && spec.StartupProbe == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.probed[c.ID] != nil || pod.DeletionTimestamp != nil {
		return
	}
	set := &probeSet{worker: w, cancel: map[podstatus.Kind]context.CancelFunc{}, counts: map[podstatus.Kind]*nodeapi.ProbeCount{}, started: make(chan struct{})}
	p.probed[c.ID] = set
	// A container that an earlier agent saw started is not asked again whether it has.
	if reported == nil {
		reported = &pod.Status
	}
	if spec.StartupProbe == nil || alreadyStarted(reported, c) {
		set.once.Do(func() { close(set.started) })
	}
	for kind, probeSpec := range map[podstatus.Kind]*corev1.Probe{
		podstatus.Liveness: spec.LivenessProbe, podstatus.Readiness: spec.ReadinessProbe, podstatus.Startup: spec.StartupProbe,
	} {
		if probeSpec == nil {
			continue
		}
		run := &probeRun{prober: p, set: set, w: w, kind: kind, spec: probeSpec, c: spec, status: c}
		stopCtx, cancel := context.WithCancel(context.Background())
		set.cancel[kind] = cancel
		set.counts[kind] = &nodeapi.ProbeCount{
			Namespace: pod.Namespace, Pod: pod.Name, PodUID: string(pod.UID), Container: spec.Name, Type: string(kind),
			Buckets: make([]uint64, len(nodeapi.ProbeBuckets())),
		}
		p.agent.spawn(func(ctx context.Context) {
			defer context.AfterFunc(ctx, cancel)()
			run.run(stopCtx)
		})
	}
}

func alreadyStarted(status *corev1.PodStatus, c container.Status) bool {
	for _, list := range [][]corev1.ContainerStatus{status.InitContainerStatuses, status.ContainerStatuses} {
		for _, s := range list {
			if s.Name == c.Name && s.ContainerID == podstatus.IDScheme+c.ID {
				return s.Started != nil && *s.Started
			}
		}
	}
	return false
}

// stopForTermination ends the probes that could kill; readiness goes on until the containers
// have ended, so that traffic stops in time.
func (p *prober) stopForTermination(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, set := range p.probed {
		if set.worker != w {
			continue
		}
		for _, kind := range []podstatus.Kind{podstatus.Liveness, podstatus.Startup} {
			if cancel := set.cancel[kind]; cancel != nil {
				cancel()
			}
			delete(p.results, resultKey{kind, id})
		}
	}
}

// drop ends all probes of a pod.
func (p *prober) drop(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, set := range p.probed {
		if set.worker == w {
			p.endLocked(id, set)
		}
	}
}

// probeRun is one probe of one container.
type probeRun struct {
	prober *prober
	set    *probeSet
	w      *worker
	kind   podstatus.Kind
	spec   *corev1.Probe
	c      *corev1.Container
	status container.Status
}

// run asks, counts and decides until ctx ends.
func (r *probeRun) run(ctx context.Context) {
	if r.kind != podstatus.Startup {
		select {
		case <-r.set.started:
		case <-ctx.Done():
			return
		}
	} else {
		select {
		case <-r.set.started:
			return
		default:
		}
	}
	delay := time.Until(r.status.StartedAt.Add(time.Duration(r.spec.InitialDelaySeconds) * time.Second))
	if delay > 0 && !lifecycle.Pause(ctx, delay) {
		return
	}
	period := time.Duration(max(r.spec.PeriodSeconds, 1)) * time.Second
	if r.kind == podstatus.Startup && !r.firstMoment(ctx, period) {
		return
	}
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	count, last := 0, podstatus.Unknown
	for {
		began := time.Now()
		result, ok := r.once(ctx)
		if ctx.Err() != nil {
			return
		}
		r.prober.count(r.set.counts[r.kind], result, ok, time.Since(began))
		if ok {
			if result == last {
				count++
			} else {
				last, count = result, 1
			}
			needed := max(int(r.spec.FailureThreshold), 1)
			if result == podstatus.Success {
				needed = max(int(r.spec.SuccessThreshold), 1)
			}
			if count >= needed {
				r.prober.set(r.w, r.kind, r.status.ID, result)
				if r.decided(result) {
					return
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// firstMoment looks often whether a process of an application listens, for one period at most: a request may wait for it at a
// gateway, and a program that starts in 50 ms must not cost it a second. What fails meanwhile is neither counted nor told. It
// returns false when ctx has ended.
func (r *probeRun) firstMoment(ctx context.Context, period time.Duration) bool {
	r.w.mu.Lock()
	pod := r.w.pod
	r.w.mu.Unlock()
	if pod.Labels[processLabel] == "" || r.spec.Exec != nil {
		return ctx.Err() == nil
	}
	for end := time.Now().Add(period); time.Now().Before(end); {
		if outcome, _, err := r.ask(ctx, pod); err == nil && outcome == probe.Success {
			break
		}
		if !lifecycle.Pause(ctx, firstMomentEvery) {
			return false
		}
	}
	return ctx.Err() == nil
}

// firstMomentEvery is the time between two looks of firstMoment.
const firstMomentEvery = 20 * time.Millisecond

// decided reports whether asking on is pointless: the container will be killed, or has started.
func (r *probeRun) decided(result podstatus.Result) bool {
	return r.kind == podstatus.Startup || r.kind == podstatus.Liveness && result == podstatus.Failure
}

// once asks once; false means that nothing was learned.
func (r *probeRun) once(ctx context.Context) (podstatus.Result, bool) {
	r.w.mu.Lock()
	pod := r.w.pod
	r.w.mu.Unlock()
	var outcome probe.Outcome
	var output string
	var err error
	for range probeTries {
		if outcome, output, err = r.ask(ctx, pod); err == nil || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return podstatus.Unknown, false
	}
	events := r.prober.agent.events
	switch {
	case err != nil:
		events.container(pod, r.c, corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe errored and resulted in unknown state: %s", r.kind, err))
		return podstatus.Unknown, false
	case outcome == probe.Warning:
		events.container(pod, r.c, corev1.EventTypeWarning, "ProbeWarning", fmt.Sprintf("%s probe warning: %s", r.kind, output))
		return podstatus.Success, true
	case outcome == probe.Success:
		return podstatus.Success, true
	default:
		events.container(pod, r.c, corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe failed: %s", r.kind, output))
		return podstatus.Failure, true
	}
}

func (r *probeRun) ask(ctx context.Context, pod *corev1.Pod) (probe.Outcome, string, error) {
	a := r.prober.agent
	timeout := time.Duration(max(r.spec.TimeoutSeconds, 1)) * time.Second
	address := podAddress(pod, r.w)
	switch {
	case r.spec.Exec != nil:
		var env []string
		for _, e := range r.c.Env {
			env = append(env, e.Name+"="+e.Value)
		}
		run := func(ctx context.Context, cmd []string, out io.Writer) (int, error) {
			return a.runtime.Exec(ctx, r.status.ID, cmd, container.Streams{Stdout: out, Stderr: out})
		}
		return probe.Exec(ctx, run, podconfig.ExpandAll(r.spec.Exec.Command, env), timeout)
	case r.spec.HTTPGet != nil:
		request, err := probe.Request(ctx, r.spec.HTTPGet, r.c, address, "probe")
		if err != nil {
			return probe.Failure, "", err
		}
		outcome, output := probe.HTTP(request, probe.Client(a.opts.Dial, timeout))
		return outcome, output, nil
	case r.spec.TCPSocket != nil:
		port, err := probe.Port(r.spec.TCPSocket.Port, r.c)
		if err != nil {
			return probe.Failure, "", err
		}
		host := r.spec.TCPSocket.Host
		if host == "" {
			host = address
		}
		outcome, output := probe.TCP(ctx, a.opts.Dial, net.JoinHostPort(host, strconv.Itoa(port)), timeout)
		return outcome, output, nil
	case r.spec.GRPC != nil:
		service := ""
		if r.spec.GRPC.Service != nil {
			service = *r.spec.GRPC.Service
		}
		outcome, output := probe.GRPC(ctx, a.opts.Dial, net.JoinHostPort(address, strconv.Itoa(int(r.spec.GRPC.Port))), service, timeout)
		return outcome, output, nil
	default:
		return probe.Failure, "", fmt.Errorf("missing probe handler for %s:%s", podconfig.PodRef(pod), r.c.Name)
	}
}

// podAddress is where a pod is reached, as its newest status says.
func podAddress(pod *corev1.Pod, w *worker) string {
	if pod.Spec.HostNetwork {
		return w.agent.opts.NodeIPs[0]
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reported != nil && w.reported.PodIP != "" {
		return w.reported.PodIP
	}
	return pod.Status.PodIP
}
