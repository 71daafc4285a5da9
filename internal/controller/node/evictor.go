package node

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// EvictorOptions tunes an Evictor. The zero value suits production.
type EvictorOptions struct {
	Workers int          // nodes at once; default 4
	Log     *slog.Logger // default: discard
	// DefaultSeconds is how long pods that say nothing tolerate that their node is unreachable. Pods with such a toleration
	// that no other node could run are not evicted.
	DefaultSeconds int64
}

// Evictor deletes the pods that do not tolerate a NoExecute taint of their node, each
// when its toleration ends.
type Evictor struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	loop      *controller.Loop
	unsaid    int64 // seconds of a toleration that the pod was given by default

	mu      sync.Mutex // guards the fields below
	tainted map[string]bool
	since   map[string]map[types.UID]time.Time // pods with an end in sight, by node
}

// NewEvictor checks opts and returns an evictor that has started nothing; call Run.
func NewEvictor(c client.Client, informers controller.Informers, recorder controller.Recorder, opts EvictorOptions) (*Evictor, error) {
	e := &Evictor{unsaid: opts.DefaultSeconds, client: c, informers: informers, recorder: recorder, tainted: map[string]bool{}, since: map[string]map[types.UID]time.Time{}}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "taint-eviction", Workers: opts.Workers, Log: opts.Log, Reconcile: e.reconcile})
	if err != nil {
		return nil, err
	}
	e.loop = loop
	loop.Watch(&corev1.Node{}, e.onNode)
	loop.Watch(&corev1.Pod{}, e.onPod)
	return e, nil
}

// Run evicts until ctx ends.
func (e *Evictor) Run(ctx context.Context) error { return e.loop.Run(ctx, e.informers) }

// Stats returns the counts of the evictor's loop.
func (e *Evictor) Stats() controller.LoopStats { return e.loop.Stats() }

func noExecute(taints []corev1.Taint) bool {
	return slices.ContainsFunc(taints, func(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute })
}

func (e *Evictor) onNode(old, current client.Object) {
	node, ok := current.(*corev1.Node)
	e.mu.Lock()
	defer e.mu.Unlock()
	if !ok {
		delete(e.tainted, old.GetName())
		delete(e.since, old.GetName())
		return
	}
	was, is := e.tainted[node.Name], noExecute(node.Spec.Taints)
	if is {
		e.tainted[node.Name] = true
	} else {
		delete(e.tainted, node.Name)
	}
	if was || is {
		e.loop.Add(controller.KeyOf(node))
	}
}

func (e *Evictor) onPod(_, current client.Object) {
	pod, ok := current.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.tainted[pod.Spec.NodeName] {
		e.loop.Add(controller.Key{Name: pod.Spec.NodeName})
	}
}

func (e *Evictor) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var node corev1.Node
	if err := e.client.Get(ctx, key, &node); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	var pods corev1.PodList
	if err := e.client.List(ctx, &pods, client.MatchingFields{indexNodeName: node.Name}); err != nil {
		return 0, fmt.Errorf("listing the node's pods: %w", err)
	}
	now := time.Now()
	next := time.Duration(0)
	due := e.due(&node, pods.Items, now, &next)
	var group errgroup.Group
	group.SetLimit(writesAtOnce)
	for _, pod := range due {
		group.Go(func() error {
			err := controller.Safely(func() error { return e.evict(ctx, pod) })
			if err != nil {
				return fmt.Errorf("evicting pod %s/%s: %w", pod.Namespace, pod.Name, err)
			}
			return nil
		})
	}
	return next, group.Wait()
}

// due returns the pods whose time is over and sets next to when another's will be.
func (e *Evictor) due(node *corev1.Node, pods []corev1.Pod, now time.Time, next *time.Duration) []*corev1.Pod {
	e.mu.Lock()
	defer e.mu.Unlock()
	before, after := e.since[node.Name], map[types.UID]time.Time{}
	var over []*corev1.Pod
	for i := range pods {
		pod := &pods[i]
		if pod.DeletionTimestamp != nil {
			continue
		}
		v := planEviction(patience(node.Spec.Taints, pod, e.unsaid), pod.Spec.Tolerations)
		since, counting := before[pod.UID]
		if v.tolerates {
			if counting {
				e.recorder.Event(pod, corev1.EventTypeNormal, "TaintManagerEviction", fmt.Sprintf("Cancelling deletion of Pod %s/%s", pod.Namespace, pod.Name))
			}
			continue
		}
		if !counting {
			since = now
		}
		after[pod.UID] = since
		left := since.Add(v.after).Sub(now)
		if left <= 0 {
			over = append(over, pod)
		} else if *next == 0 || left < *next {
			*next = left
		}
	}
	if len(after) == 0 {
		delete(e.since, node.Name)
	} else {
		e.since[node.Name] = after
	}
	return over
}

func (e *Evictor) evict(ctx context.Context, pod *corev1.Pod) error {
	e.recorder.Event(pod, corev1.EventTypeNormal, "TaintManagerEviction", fmt.Sprintf("Marking for deletion Pod %s/%s", pod.Namespace, pod.Name))
	err := controller.PatchPodStatus(ctx, e.client, pod, "", corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
		Reason: "DeletionByTaintManager", Message: "Taint manager: deleting due to NoExecute taint",
	})
	if err != nil {
		return client.IgnoreNotFound(err)
	}
	uid := pod.UID
	target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}}
	err = e.client.Delete(ctx, target, client.Preconditions{UID: &uid})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
