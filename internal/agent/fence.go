package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/heartbeat"
)

// Fencer is what a runtime may have beside Sandboxes. Fence moves the time, since the machine's boot, at which a sandbox
// is killed, whatever becomes of the agent; 0 takes the time away. fired says that it has been: nothing starts in it any
// more. Where nothing runs it does nothing. A sandbox that cannot be fenced answers container.ErrNoFence. Without a Fencer
// the agent fences nothing.
type Fencer interface {
	Fence(ctx context.Context, id string, at time.Duration) (fired bool, err error)
}

// How far a deadline may lag behind what the server's answers allow, so that not each of them costs a call; how long the
// servers know that the node does not fence before it stops to; the limit of one call; and how many there are at once.
const (
	fenceLag     = time.Second
	fenceOff     = 10 * time.Second
	fenceCall    = 2 * time.Second
	fenceWorkers = 8
)

// Words of a pod that was killed because its node was cut off.
const (
	fencedReason  = container.ReasonFenced
	fencedMessage = "The node was cut off from the cluster for longer than the pod may run without it."
)

// errCutOff is why a pod that must not run while the node is cut off does not start.
var errCutOff = errors.New("the node is cut off from the cluster: the pod must not run here until a server is heard again")

// fence keeps the deadlines of the pods that must not outlive their node's membership.
type fence struct {
	agent *Agent
	held  Fencer        // nil: the runtime cannot
	news  chan struct{} // capacity 1

	mu       sync.Mutex // guards the fields below
	pods     map[types.UID]*fencedPod
	until    time.Duration // the newest deadline that a leading server's answer allows; 0: none was heard
	wanted   bool          // another node could take pods over
	live     bool          // sandboxes to be fenced may hold deadlines
	sure     bool          // all of them do
	offSince time.Duration // since when leading servers know that the node does not fence; 0: they do not
	back     bool          // a server was heard for the first time after every deadline had passed
}

// fencedPod is a pod that may have to end when the node is cut off.
type fencedPod struct {
	worker *worker
	always bool          // also when no other node could run it
	set    time.Duration // its deadline; 0: none
}

func newFence(a *Agent) *fence {
	f := &fence{agent: a, news: make(chan struct{}, 1), pods: map[types.UID]*fencedPod{}}
	f.held, _ = a.runtime.(Fencer)
	return f
}

// announce is what beats say: how long fenced pods go on, or 0 if it may be that one goes on for ever.
func (f *fence) announce() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held == nil || !f.sure || !f.wanted {
		return 0
	}
	return f.agent.opts.FenceDeadline
}

// answered takes in a server's answer to a beat that was begun to be sent at a time since the boot.
func (f *fence) answered(answer heartbeat.Answer, beat heartbeat.Beat, sent time.Duration) {
	if answer.Report {
		f.agent.reportSoon()
	}
	if !answer.Leads || f.held == nil {
		return
	}
	lasts := f.agent.opts.FenceDeadline
	if beat.Leaving == heartbeat.LeavingRestart {
		lasts = max(lasts, heartbeat.RestartGrace)
	}
	f.mu.Lock()
	f.back = f.back || f.until <= sent
	f.until = max(f.until, sent+lasts)
	f.wanted = answer.Takeover
	switch {
	case answer.Takeover || beat.FenceMillis != 0:
		f.offSince = 0
	case f.offSince == 0:
		f.offSince = sent
	}
	f.mu.Unlock()
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// run moves deadlines until ctx ends.
func (f *fence) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.news:
			f.move(ctx)
		}
	}
}

// move brings all deadlines to where the newest answer allows them to be.
func (f *fence) move(ctx context.Context) {
	f.mu.Lock()
	var waiting []*worker
	if f.back {
		f.back = false
		for _, p := range f.pods {
			waiting = append(waiting, p.worker)
		}
	}
	until, off := f.until, !f.wanted && f.live && f.offSince > 0 && f.offFor() >= fenceOff
	if f.wanted {
		f.live = true // before the first call: it may work and its answer be lost
	}
	live := f.live
	if off {
		f.live, f.sure, live = false, false, false
	}
	type call struct {
		uid types.UID
		pod *fencedPod
		at  time.Duration
	}
	var calls []call
	for uid, p := range f.pods {
		at := time.Duration(0)
		if live || p.always {
			at = until
		}
		if at == 0 && p.set != 0 || at != 0 && at-p.set >= fenceLag {
			calls = append(calls, call{uid, p, at})
		}
	}
	f.mu.Unlock()
	for _, w := range waiting {
		w.notify() // it may have been refused while the node was cut off
	}
	var group errgroup.Group
	group.SetLimit(fenceWorkers)
	var failed sync.Map
	for _, c := range calls {
		group.Go(func() error {
			if _, err := f.set(ctx, c.pod, c.uid, c.at); err != nil {
				failed.Store(c.uid, err)
			}
			return nil
		})
	}
	_ = group.Wait() // errors are in failed
	all := true
	failed.Range(func(uid, err any) bool {
		all = false
		f.agent.log.Warn("cannot move the deadline of a fenced pod", "uid", uid, "error", err)
		return true
	})
	f.mu.Lock()
	f.sure = f.live && all
	f.mu.Unlock()
}

// offFor is how long leading servers have known that the node does not fence. f.mu is held.
func (f *fence) offFor() time.Duration { return f.until - f.agent.opts.FenceDeadline - f.offSince }

// set moves the deadline of one pod. A pod whose deadline has passed is ended.
func (f *fence) set(ctx context.Context, p *fencedPod, uid types.UID, at time.Duration) (fired bool, err error) {
	callCtx, cancel := context.WithTimeout(ctx, fenceCall)
	defer cancel()
	fired, err = f.held.Fence(callCtx, string(uid), at)
	if err != nil {
		return false, err
	}
	f.mu.Lock()
	p.set = at
	f.mu.Unlock()
	if fired {
		p.worker.endFenced()
	}
	return fired, nil
}

// guard makes sure that a pod which is about to start a container ends when the node is cut off, if it has to.
func (f *fence) guard(ctx context.Context, w *worker) error {
	kind := w.cutOff
	if f.held == nil || !kind.ends() {
		return nil
	}
	f.mu.Lock()
	p := f.pods[w.uid]
	if p == nil {
		p = &fencedPod{worker: w, always: kind == cutOffStop}
		f.pods[w.uid] = p
	}
	// Before a server is heard for the first time nobody knows: the pod may have been given away while this agent did not run.
	unheard := f.until == 0 && f.agent.opts.Heartbeats != nil
	needed, at := p.always || f.live || f.wanted || unheard, f.until
	f.mu.Unlock()
	if !needed {
		return nil
	}
	if at <= f.agent.opts.Clock() {
		return errCutOff
	}
	fired, err := f.set(ctx, p, w.uid, at)
	switch {
	case errors.Is(err, container.ErrNoFence):
		w.cutOff = cutOffKeep // the server does not give it away then
		f.drop(w.uid)
		return nil
	case err == nil && fired:
		return errCutOff
	}
	return err
}

// adopt takes over the pod of a sandbox that an earlier agent has fenced, as it may hold a deadline.
func (f *fence) adopt(w *worker) {
	if f.held == nil || !w.cutOff.ends() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods[w.uid] = &fencedPod{worker: w, always: w.cutOff == cutOffStop, set: 1} // unknown, and long past
	f.live = true
}

func (f *fence) drop(uid types.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pods, uid)
}

// cutOff is what becomes of a pod when its node is cut off from the cluster.
type cutOff string

const (
	cutOffKeep   cutOff = ""             // it runs on
	cutOffStop   cutOff = "stop"         // it ends
	cutOffFence  cutOff = "fence"        // it ends before another node runs what has its identity
	cutOffShared cutOff = "fence-shared" // the same, and it writes to storage that other nodes reach
	cutOffPinned cutOff = "keep-pinned"  // it runs on, and no other node could run it
)

// ends says whether the pod ends at all.
func (c cutOff) ends() bool { return c != cutOffKeep && c != cutOffPinned }

// annotationCutOff of a pod says what becomes of it when its node is cut off: keep, stop or fence. The agent keeps the
// answer with the sandbox under the same name.
const annotationCutOff = "gantry.dev/when-cut-off"

// planCutOff says what becomes of a pod with these volumes. Source: ADR 0039.
func planCutOff(pod *corev1.Pod, volumes []*corev1.PersistentVolume, readOnly []bool) cutOff {
	if isStatic(pod) {
		return cutOffKeep
	}
	pinned, shared := false, false
	for i, pv := range volumes {
		switch {
		case onOneNode(pv):
			pinned = true
		case !readOnly[i]:
			shared = true
		}
	}
	fenced := cutOffFence
	if shared {
		fenced = cutOffShared
	}
	keep := cutOffKeep
	if pinned {
		keep = cutOffPinned
	}
	switch pod.Annotations[annotationCutOff] {
	case "keep":
		return keep
	case "stop":
		return cutOffStop
	case "fence":
		return fenced
	}
	owner := metav1.GetControllerOf(pod)
	stateful := owner != nil && owner.Kind == "StatefulSet" && strings.HasPrefix(owner.APIVersion, "apps/")
	if pinned || !stateful && !shared {
		return keep // no other node could run it, or one may run it besides
	}
	return fenced
}

// onOneNode says whether a volume can be reached from one node only.
func onOneNode(pv *corev1.PersistentVolume) bool {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil || len(pv.Spec.NodeAffinity.Required.NodeSelectorTerms) == 0 {
		return false
	}
	return !slices.ContainsFunc(pv.Spec.NodeAffinity.Required.NodeSelectorTerms, func(term corev1.NodeSelectorTerm) bool {
		return !slices.ContainsFunc(slices.Concat(term.MatchExpressions, term.MatchFields), func(r corev1.NodeSelectorRequirement) bool {
			return (r.Key == corev1.LabelHostname || r.Key == "metadata.name") && r.Operator == corev1.NodeSelectorOpIn && len(r.Values) == 1
		})
	})
}

// lookUpCutOff reads the pod's claims and says what becomes of it. A sandbox with the stock shim cannot be fenced.
func (w *worker) lookUpCutOff(ctx context.Context, pod *corev1.Pod, handler string) (cutOff, error) {
	a := w.agent
	switch value := pod.Annotations[annotationCutOff]; value {
	case "", "keep", "stop", "fence":
	default:
		a.events.pod(pod, corev1.EventTypeWarning, "UnknownWhenCutOff",
			fmt.Sprintf("The annotation %s is %q, which is none of keep, stop and fence: it is ignored.", annotationCutOff, value))
	}
	if a.fence.held == nil || handler != "" {
		return cutOffKeep, nil
	}
	var volumes []*corev1.PersistentVolume
	var readOnly []bool
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		name, only := "", false
		switch {
		case v.PersistentVolumeClaim != nil:
			name, only = v.PersistentVolumeClaim.ClaimName, v.PersistentVolumeClaim.ReadOnly
		case v.Ephemeral != nil:
			name = pod.Name + "-" + v.Name
		default:
			continue
		}
		claim, pv := new(corev1.PersistentVolumeClaim), new(corev1.PersistentVolume)
		if err := a.client.Get(ctx, types.NamespacedName{Namespace: pod.Namespace, Name: name}, claim); err != nil {
			return cutOffKeep, fmt.Errorf("reading claim %s: %w", name, err)
		}
		if claim.Spec.VolumeName == "" {
			return cutOffKeep, fmt.Errorf("claim %s is not bound yet", name)
		}
		if err := a.client.Get(ctx, types.NamespacedName{Name: claim.Spec.VolumeName}, pv); err != nil {
			return cutOffKeep, fmt.Errorf("reading volume %s: %w", claim.Spec.VolumeName, err)
		}
		volumes, readOnly = append(volumes, pv), append(readOnly, only)
	}
	return planCutOff(pod, volumes, readOnly), nil
}

// fencedCondition tells the server whether the pod is fenced, or why it is not; nil if there is nothing to tell.
func (w *worker) fencedCondition() *corev1.PodCondition {
	c := &corev1.PodCondition{
		Type: heartbeat.ConditionFenced, Status: corev1.ConditionTrue, Reason: heartbeat.ReasonIdentity,
		Message: "The node kills the pod when no server hears it for long.", LastTransitionTime: metav1.Now(),
	}
	switch w.cutOff {
	case cutOffKeep:
		return nil
	case cutOffShared:
		c.Reason = heartbeat.ReasonSharedStorage
		c.Message = "The node kills the pod when no server hears it for long. Its storage can be reached from other nodes."
	case cutOffPinned:
		c.Status, c.Reason = corev1.ConditionFalse, heartbeat.ReasonLocalVolume
		c.Message = "The pod waits for its node when that is cut off: no other node has its volume."
	}
	return c
}

// endFenced ends a pod that was killed because its node was cut off.
func (w *worker) endFenced() {
	none := time.Duration(0)
	w.end(ending{reason: fencedReason, message: fencedMessage, grace: &none})
}

// wasFenced says whether a container was killed because the node was cut off.
func wasFenced(list []container.Status) bool {
	return slices.ContainsFunc(list, func(c container.Status) bool { return c.Reason == container.ReasonFenced })
}

// runHeartbeats sends heartbeats until ctx ends.
func (a *Agent) runHeartbeats(ctx context.Context) error {
	sender, err := heartbeat.NewSender(heartbeat.Options{
		Node: a.opts.NodeName, BootID: a.nodeInfo().BootID, Servers: a.opts.Heartbeats, Clock: a.opts.Clock,
		Fence: a.fence.announce, Answered: a.fence.answered, Heard: a.opts.Heard, Logger: a.log,
		Leaving: func() string {
			if a.shutdown.isStopping() {
				return "" // the machine goes: its pods are to run elsewhere
			}
			return heartbeat.LeavingRestart
		},
	})
	if err != nil {
		return err
	}
	err = sender.Run(ctx)
	a.fence.move(context.WithoutCancel(ctx)) // as far as the last answer allows
	return err
}
