package agent

import (
	"context"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/agent/resize"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/volume"
)

// retryAfter is how long a pod waits after something of it could not be done; after a sync that failed as a whole, which is
// often over at once (a right that was just given), it begins with firstRetry and doubles up to that.
const (
	retryAfter = 10 * time.Second
	firstRetry = 250 * time.Millisecond
)

// annotationIPs keeps a pod's addresses with its sandbox, so that a new agent need not ask the
// network; annotationBackoff keeps with a container how long its next restart waits.
const (
	annotationIPs     = "gantry.dev/pod-ips"
	annotationBackoff = "gantry.dev/restart-backoff"
)

// worker looks after one pod. At most one goroutine runs it; it ends when there is nothing to
// wait for and starts again on notify.
type worker struct {
	agent *Agent
	uid   types.UID
	// static is the name of a static pod, empty for one of the API. It does not change.
	static types.NamespacedName

	stale atomic.Bool // the runtime has news
	dirty atomic.Bool // a ConfigMap or Secret of the pod has changed

	namespace atomic.Pointer[string]                    // path of the pod's network namespace; nil until it has one
	made      atomic.Pointer[map[string]volume.Mounted] // volumes as they were last made, by name; read-only

	admitted bool          // counts against the node's capacity; guarded by agent.mu
	counts   *resize.Grant // with that; guarded by agent.mu
	wish     *wish         // a resize that waits; guarded by agent.mu
	ended    chan struct{} // closed when nothing of the pod is left on the node

	mu       sync.Mutex // guards the fields below
	pod      *corev1.Pod
	removed  bool // the API has no such pod any more
	active   bool // the goroutine runs
	pending  bool // notify was called since the goroutine last looked
	wake     chan struct{}
	cancel   context.CancelFunc // ends the present sync early: the pod is to stop, or to stop sooner
	reported *corev1.PodStatus  // the newest status made
	killed   map[string]bool    // containers whose stop was begun
	ending   *ending            // the agent itself ends the pod; nil while it does not

	// The fields below belong to the goroutine.
	sandbox    bool    // the sandbox and its network were made or found alive
	handler    *string // of the pod's RuntimeClass; nil until it was looked up
	seenPod    bool    // something of the pod was found in or given to the runtime
	ips        []string
	observed   podstatus.Observed
	volumes    map[string]volume.Mounted
	waiting    map[string]podstatus.Waiting
	messages   map[string]string // termination messages by container ID
	failure    *podstatus.Waiting
	cleaned    bool // sandbox, network and volumes are gone
	finished   bool // the last status is made
	warnedDNS  bool
	env        map[string][]string      // by container name: the newest environment
	retry      time.Duration            // the wait after the last of syncs that failed in a row; 0 if it did not
	failures   map[string]time.Duration // by container name: the wait after starts that failed in a row
	mountsAt   time.Time                // when volumes were last brought up to date
	disruption *corev1.PodCondition     // why the node ends the pod
	graceLimit *time.Duration           // what containers get at most; nil is what the pod asks for
	counted    bool                     // admitted, with what resize says
	resize     resizeState

	cutOff cutOff // what becomes of the pod when the node is cut off; set with its sandbox

	listens     *corev1.PodCondition // where the pod of an application listens
	listensOf   int                  // the process that was looked at for it
	listenAgain bool                 // it is looked at again
}

func newWorker(a *Agent, pod *corev1.Pod) *worker {
	w := &worker{
		agent:    a,
		uid:      pod.UID,
		pod:      pod,
		wake:     make(chan struct{}, 1),
		ended:    make(chan struct{}),
		waiting:  map[string]podstatus.Waiting{},
		messages: map[string]string{},
		failures: map[string]time.Duration{},
		env:      map[string][]string{},
	}
	w.stale.Store(true)
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		// What an earlier agent reported holds until this one has tried itself.
		if waits := s.State.Waiting; waits != nil && waits.Reason != "ContainerCreating" && waits.Reason != "PodInitializing" && waits.Reason != "" {
			w.waiting[s.Name] = podstatus.Waiting{Reason: waits.Reason, Message: waits.Message}
		}
	}
	return w
}

// adopt takes over a sandbox that an earlier agent has made.
func (w *worker) adopt(s container.SandboxStatus) {
	w.seenPod = true
	w.handler = &s.Sandbox.Runtime
	w.adoptResize(s.Sandbox)
	w.agent.countLocked(w, w.resize.record.Granted)
	w.cutOff = cutOff(s.Sandbox.Annotations[annotationCutOff])
	w.agent.fence.adopt(w)
	if path := s.Sandbox.NetNSPath; path != "" {
		w.namespace.Store(&path)
	}
	if ips := s.Sandbox.Annotations[annotationIPs]; ips != "" {
		w.ips = strings.Split(ips, ",")
	}
	// Without a process in it the sandbox may be a memory of the time before a reboot: it is
	// made again (which changes nothing where it lives) before the next container starts.
	w.sandbox = slices.ContainsFunc(s.Containers, func(c container.Status) bool { return c.State == container.StateRunning })
}

// update gives the worker a newer version of its pod.
func (w *worker) update(pod *corev1.Pod) {
	w.mu.Lock()
	before := w.pod
	w.pod = pod
	if stopsSooner(before, pod) && w.cancel != nil {
		w.cancel()
	}
	reported := w.reported
	w.mu.Unlock()
	if before == pod || concerns(before, pod) {
		w.notify()
	}
	if reported != nil && readiness(&pod.Status) != readiness(&before.Status) && readiness(&pod.Status) != readiness(reported) {
		w.agent.statuses.again(w.uid) // a server thought that the node was lost
	}
}

// readiness is what a status says of its pod's readiness.
func readiness(status *corev1.PodStatus) corev1.ConditionStatus {
	for i := range status.Conditions {
		if status.Conditions[i].Type == corev1.PodReady {
			return status.Conditions[i].Status
		}
	}
	return ""
}

// concerns reports whether a change is of interest: everything but what the agent wrote itself.
func concerns(before, now *corev1.Pod) bool {
	return before.Generation != now.Generation ||
		before.DeletionTimestamp != nil != (now.DeletionTimestamp != nil) ||
		graceOf(before) != graceOf(now) ||
		podstatus.Terminal(before.Status.Phase) != podstatus.Terminal(now.Status.Phase) ||
		!equalMaps(before.Labels, now.Labels) || !equalMaps(before.Annotations, now.Annotations) ||
		gatesChanged(before, now)
}

func equalMaps(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if other, ok := b[k]; !ok || other != v {
			return false
		}
	}
	return true
}

func gatesChanged(before, now *corev1.Pod) bool {
	if len(now.Spec.ReadinessGates) == 0 {
		return false
	}
	value := func(pod *corev1.Pod, kind corev1.PodConditionType) corev1.ConditionStatus {
		for _, c := range pod.Status.Conditions {
			if c.Type == kind {
				return c.Status
			}
		}
		return ""
	}
	return slices.ContainsFunc(now.Spec.ReadinessGates, func(g corev1.PodReadinessGate) bool {
		return value(before, g.ConditionType) != value(now, g.ConditionType)
	})
}

func graceOf(pod *corev1.Pod) int64 {
	if pod.DeletionGracePeriodSeconds == nil {
		return -1
	}
	return *pod.DeletionGracePeriodSeconds
}

// stopsSooner reports whether the change makes the present sync pointless or too slow.
func stopsSooner(before, now *corev1.Pod) bool {
	return before.DeletionTimestamp == nil && now.DeletionTimestamp != nil ||
		now.DeletionTimestamp != nil && graceOf(now) < graceOf(before)
}

// remove says that the pod is gone from the API.
func (w *worker) remove() {
	w.mu.Lock()
	w.removed = true
	if w.cancel != nil {
		w.cancel()
	}
	w.mu.Unlock()
	w.notify()
}

// firstLook reports whether nothing was made of the pod's status yet.
func (w *worker) firstLook() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reported == nil
}

// isRemoved reports whether the pod is to end for good.
func (w *worker) isRemoved() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.removed
}

// keepOn makes the rest of the present sync one that changes of the pod do not end early.
func (w *worker) keepOn() {
	w.mu.Lock()
	w.cancel = nil
	w.mu.Unlock()
}

// uses reports whether the pod's volumes or environment come from an object.
func (w *worker) uses(namespace, name string, secret bool) bool {
	w.mu.Lock()
	pod := w.pod
	w.mu.Unlock()
	return pod.Namespace == namespace && refersTo(pod, name, secret)
}

// snapshot is the pod with the newest status that the agent has made.
func (w *worker) snapshot() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reported == nil {
		return w.pod
	}
	pod := *w.pod
	pod.Status = *w.reported
	return &pod
}

// notify makes the worker look at its pod, soon and at least once.
func (w *worker) notify() {
	a := w.agent
	a.mu.Lock()
	running := a.running
	w.mu.Lock()
	w.pending = true
	start := running && !w.active
	if start {
		w.active = true
		a.spawn(w.run)
	}
	w.mu.Unlock()
	a.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run syncs the pod until it has nothing to wait for.
func (w *worker) run(ctx context.Context) {
	for ctx.Err() == nil {
		next := w.safeSync(ctx)
		if next == never {
			w.mu.Lock()
			if !w.pending {
				w.active = false
				w.mu.Unlock()
				return
			}
			w.mu.Unlock()
			continue
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
	w.mu.Lock()
	w.active = false
	w.mu.Unlock()
}

// Two special waits: until notify with the goroutine kept, and until notify without.
const (
	idle  = 365 * 24 * time.Hour
	never = time.Duration(-1)
)

// safeSync runs one sync; a panic costs the pod a delay, not the agent its life.
func (w *worker) safeSync(ctx context.Context) (next time.Duration) {
	syncCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case <-w.wake: // what it tells of is looked at now
	default:
	}
	w.mu.Lock()
	w.pending = false
	w.cancel = cancel
	pod, removed := w.pod, w.removed
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.cancel = nil
		w.mu.Unlock()
		if r := recover(); r != nil {
			w.agent.log.Error("a pod's sync panicked", "namespace", pod.Namespace, "name", pod.Name, "uid", w.uid,
				"panic", r, "stack", string(debug.Stack()))
			next = retryAfter
		}
	}()
	next, err := w.sync(syncCtx, pod, removed)
	if err != nil && syncCtx.Err() == nil {
		w.agent.log.Warn("cannot bring a pod where it should be", "namespace", pod.Namespace, "name", pod.Name, "uid", w.uid, "error", err)
		w.retry = min(max(2*w.retry, firstRetry), retryAfter)
		next = w.retry
	} else if err == nil {
		w.retry = 0
	}
	if syncCtx.Err() != nil && ctx.Err() == nil {
		next = 0 // interrupted because the pod has changed
	}
	return next
}
