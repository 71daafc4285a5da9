package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/container"
)

// The annotations of static pods and of their mirrors in the API, with the kubelet's names.
const (
	annotationSource = "kubernetes.io/config.source"
	annotationHash   = "kubernetes.io/config.hash"
	annotationSeen   = "kubernetes.io/config.seen"
	annotationMirror = corev1.MirrorPodAnnotationKey
	sourceFile       = "file"
)

// StaticPods is a source of pods that run because the node says so. Read returns them; Run
// calls changed with all of them whenever they may have changed, until ctx ends.
type StaticPods interface {
	Read() []*corev1.Pod
	Run(ctx context.Context, changed func(pods []*corev1.Pod))
}

// isStatic reports whether a pod is one of a StaticPods; isMirror whether it is the API's
// image of one.
func isStatic(pod *corev1.Pod) bool {
	return pod.Annotations[annotationSource] == sourceFile && !isMirror(pod)
}

func isMirror(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[annotationMirror]
	return ok
}

// mirrors reports whether a pod of the API is the image of that static pod.
func mirrors(mirror, static *corev1.Pod) bool {
	return isMirror(mirror) && mirror.Annotations[annotationMirror] == static.Annotations[annotationHash]
}

// statics are the agent's static pods.
type statics struct {
	agent *Agent
	queue workqueue.TypedRateLimitingInterface[types.NamespacedName] // of mirrors to look at

	mu      sync.Mutex // guards the fields below; taken before agent.mu
	wanted  map[types.NamespacedName]*corev1.Pod
	shown   map[types.NamespacedName]*corev1.Pod  // mirrors that the API has; a node may not ask for those it has not
	leaving map[types.NamespacedName]int          // sandboxes of an earlier pod of the name that are being removed
	orphans map[types.UID]bool                    // their pods
	known   map[types.UID]container.SandboxStatus // what the runtime had when the agent started
}

func newStatics(a *Agent) *statics {
	return &statics{
		agent: a,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](100*time.Millisecond, 10*time.Second)),
		wanted: map[types.NamespacedName]*corev1.Pod{}, shown: map[types.NamespacedName]*corev1.Pod{}, leaving: map[types.NamespacedName]int{}, orphans: map[types.UID]bool{},
	}
}

func nameOf(pod *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}

// start reads the static pods and runs them; the API need not be there. Sandboxes of static
// pods that are no more go away, and a new pod of the name waits for that.
func (s *statics) start(source StaticPods, sandboxes []container.SandboxStatus) {
	if source == nil {
		return
	}
	pods := source.Read()
	s.mu.Lock()
	s.known = map[types.UID]container.SandboxStatus{}
	for _, sandbox := range sandboxes {
		uid := types.UID(sandbox.Sandbox.ID)
		s.known[uid] = sandbox
		if sandbox.Sandbox.Annotations[annotationSource] != sourceFile || slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return p.UID == uid }) {
			continue
		}
		name := types.NamespacedName{Namespace: sandbox.Sandbox.Namespace, Name: sandbox.Sandbox.Name}
		s.leaving[name]++
		s.orphans[uid] = true
		s.agent.spawn(func(ctx context.Context) {
			s.agent.removeOrphan(ctx, sandbox)
			s.mu.Lock()
			s.leaving[name]--
			s.mu.Unlock()
			s.next(name)
		})
	}
	s.mu.Unlock()
	s.set(pods)
	s.agent.spawn(func(ctx context.Context) { source.Run(ctx, s.set) })
}

// isOrphan reports whether a sandbox is one that start removes.
func (s *statics) isOrphan(uid types.UID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.orphans[uid]
}

// set takes the static pods that are to run.
func (s *statics) set(pods []*corev1.Pod) {
	s.mu.Lock()
	var changed []types.NamespacedName
	wanted := map[types.NamespacedName]*corev1.Pod{}
	for _, pod := range pods {
		name := nameOf(pod)
		old := s.wanted[name]
		if old != nil && old.UID == pod.UID {
			wanted[name] = old
			continue
		}
		pod = pod.DeepCopy()
		pod.Annotations[annotationSeen] = time.Now().Format(time.RFC3339Nano)
		wanted[name] = pod
		changed = append(changed, name)
	}
	for name := range s.wanted {
		if wanted[name] == nil {
			changed = append(changed, name)
		}
	}
	s.wanted = wanted
	s.mu.Unlock()
	for _, name := range changed {
		s.next(name)
	}
}

// next does what a name needs: ends the pod that is not wanted any more, and runs the one that
// is once no earlier one is left.
func (s *statics) next(name types.NamespacedName) {
	a := s.agent
	s.mu.Lock()
	pod, waits := s.wanted[name], s.leaving[name] > 0
	sandbox, had := container.SandboxStatus{}, false
	if pod != nil {
		sandbox, had = s.known[pod.UID]
	}
	a.mu.Lock()
	var old, current *worker
	for _, w := range a.workers {
		if w.static == name && (pod == nil || w.uid != pod.UID || w.isRemoved()) {
			old = w
		} else if w.static == name {
			current = w
		}
	}
	if pod != nil && old == nil && current == nil && !waits {
		current = newWorker(a, pod)
		current.static = name
		if had {
			current.adopt(sandbox)
			delete(s.known, pod.UID)
		}
		a.workers[pod.UID] = current
	}
	a.mu.Unlock()
	s.mu.Unlock()
	switch {
	case old != nil:
		old.remove() // forget calls next again
	case current != nil:
		current.notify()
	}
	s.queue.Add(name)
}

// run keeps the mirrors until ctx ends.
func (s *statics) run(ctx context.Context) {
	defer context.AfterFunc(ctx, s.queue.ShutDown)()
	for {
		name, stop := s.queue.Get()
		if stop {
			return
		}
		if err := s.reconcile(ctx, name); err != nil && ctx.Err() == nil {
			s.agent.log.Debug("cannot keep a static pod's mirror yet", "namespace", name.Namespace, "name", name.Name, "error", err)
			s.queue.AddRateLimited(name)
		} else {
			s.queue.Forget(name)
		}
		s.queue.Done(name)
	}
}

// reconcile makes the API show the static pod of a name: a mirror that somebody deletes comes
// again, one of a pod that is no more goes.
func (s *statics) reconcile(ctx context.Context, name types.NamespacedName) error {
	c := s.agent.client
	if !s.agent.synced.Load() {
		return errors.New("the API's pods are not known yet")
	}
	pod, ending := s.running(name)
	if ending {
		return nil // shown until it has ended
	}
	mirror := s.mirror(name)
	exists := mirror != nil
	if exists && (pod == nil || mirror.DeletionTimestamp != nil || !mirrors(mirror, pod)) {
		uid, grace := mirror.UID, int64(0)
		err := c.Delete(ctx, mirror.DeepCopy(), &client.DeleteOptions{GracePeriodSeconds: &grace, Preconditions: &metav1.Preconditions{UID: &uid}})
		if err = isGone(err); err != nil {
			return fmt.Errorf("deleting the mirror: %w", err)
		}
		exists = false
	}
	if pod == nil || exists {
		return nil
	}
	return s.create(ctx, pod)
}

// running is the static pod of a name; ending says that one is on its way out.
func (s *statics) running(name types.NamespacedName) (pod *corev1.Pod, ending bool) {
	s.mu.Lock()
	wanted := s.wanted[name]
	s.mu.Unlock()
	a := s.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		if w.static == name && (wanted == nil || w.uid != wanted.UID || w.isRemoved()) {
			return nil, true
		}
	}
	return wanted, false
}

// create makes the mirror of a static pod, owned by the node.
func (s *statics) create(ctx context.Context, pod *corev1.Pod) error {
	a := s.agent
	var node corev1.Node
	if err := a.client.Get(ctx, client.ObjectKey{Name: a.opts.NodeName}, &node); err != nil {
		return fmt.Errorf("reading the node for a mirror: %w", err)
	}
	if node.DeletionTimestamp != nil {
		return nil
	}
	mirror := pod.DeepCopy()
	mirror.UID, mirror.ResourceVersion = "", ""
	mirror.Annotations = maps.Clone(pod.Annotations)
	mirror.Annotations[annotationMirror] = pod.Annotations[annotationHash]
	mirror.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: ptr(true)}}
	err := a.client.Create(ctx, mirror)
	if apierrors.IsAlreadyExists(err) {
		return errors.New("another pod has taken the name")
	}
	if err != nil {
		return fmt.Errorf("creating the mirror: %w", err)
	}
	return nil
}

// mirror is the mirror of that name that the API has; nil is none.
func (s *statics) mirror(name types.NamespacedName) *corev1.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown[name]
}

// mirrorDeleted forgets a mirror, and has it made again if its pod is there.
func (s *statics) mirrorDeleted(mirror *corev1.Pod) {
	name := nameOf(mirror)
	s.mu.Lock()
	if known := s.shown[name]; known != nil && known.UID == mirror.UID {
		delete(s.shown, name)
	}
	s.mu.Unlock()
	s.queue.Add(name)
}

// mirrorChanged looks at a mirror that the API tells of.
func (s *statics) mirrorChanged(mirror *corev1.Pod) {
	s.mu.Lock()
	before := s.shown[nameOf(mirror)]
	s.shown[nameOf(mirror)] = mirror
	s.mu.Unlock()
	if pod, _ := s.running(nameOf(mirror)); pod != nil && (before == nil || before.UID != mirror.UID) {
		s.agent.statuses.again(pod.UID)
	}
	if pod, _ := s.running(nameOf(mirror)); pod == nil || mirror.DeletionTimestamp != nil || !mirrors(mirror, pod) {
		s.queue.Add(nameOf(mirror))
	}
}

// finished is the mirror's status when the static pod has run its course before the agent
// started; it must not run again then.
func (s *statics) finished(ctx context.Context, pod *corev1.Pod) *corev1.PodStatus {
	var mirror corev1.Pod
	if err := s.agent.client.Get(ctx, nameOf(pod), &mirror); err != nil || !mirrors(&mirror, pod) || !podstatus.Terminal(mirror.Status.Phase) {
		return nil
	}
	return mirror.Status.DeepCopy()
}
