package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// writesAtOnce is how many pods of a node are written at once: each write waits for a disk.
const writesAtOnce = 16

// slowEviction is the time between two nodes that are given up in a large zone of which most is down (upstream:
// --secondary-node-eviction-rate 0.01).
const slowEviction = 100 * time.Second

// zoneRecheck is when a node that waits for its zone to be well is looked at again (upstream: --node-monitor-period).
const zoneRecheck = 5 * time.Second

// silence says whether a node is silent, what is known of it by beats, and when to look again.
func (nc *Controller) silence(stored *corev1.Node, h health, now time.Time) (silent bool, s standing, next time.Duration) {
	if nc.opts.Heartbeats != nil {
		s = nc.opts.Heartbeats.of(now, stored.Name)
	}
	if s.beats {
		if s.dead {
			return true, s, nc.opts.Grace
		}
		return false, s, s.settling // when it falls silent, listen adds it
	}
	grace := nc.opts.Grace
	if findCondition(stored, corev1.NodeReady) == nil {
		grace = nc.opts.StartupGrace
	}
	if left := h.heard.Add(grace).Sub(now); left > 0 {
		return false, s, left + time.Millisecond
	}
	return true, s, nc.opts.Grace
}

// reconcileHealth marks and taints a node by what was heard of it and says when to look again.
func (nc *Controller) reconcileHealth(ctx context.Context, stored *corev1.Node) (time.Duration, error) {
	nc.mu.Lock()
	h, known := nc.health[stored.Name]
	nc.mu.Unlock()
	if !known {
		return 0, nil // deleted a moment ago
	}
	now := time.Now()
	silent, s, next := nc.silence(stored, h, now)
	node := stored.DeepCopy()
	if silent && planConditions(node, now) {
		if err := nc.client.Status().Update(ctx, node); err != nil {
			return 0, client.IgnoreNotFound(fmt.Errorf("marking the node as silent: %w", err))
		}
		nc.hear(node, nil) // before its event: it must not count as ready below
		if readiness(stored) == corev1.ConditionTrue {
			nc.opts.Log.Info("node fell silent", "nodeName", node.Name, "heartbeats", s.beats)
			nc.event(node.Name, node.UID, "NodeNotReady", fmt.Sprintf("Node %s status is now: NodeNotReady", node.Name))
		}
	}
	evict, later := nc.evicts(stored, node, now)
	if later > 0 && (next == 0 || later < next) {
		next = later
	}
	if !silent || readiness(node) != corev1.ConditionUnknown {
		return next, nc.taint(ctx, node, evict, s.settling > 0, now)
	}
	// Side by side: Services leave the pods out while their replacements are on the way.
	var marking sync.WaitGroup
	var markErr error
	marking.Go(func() {
		markErr = controller.Safely(func() error { return nc.markPods(ctx, node.Name) })
	})
	err := nc.taint(ctx, node, evict, false, now)
	marking.Wait()
	switch {
	case s.released:
		err = errors.Join(err, nc.release(ctx, node.Name))
		next = time.Second // pods that are evicted later are given away then
	case s.release > 0:
		next = min(next, s.release)
	}
	return next, errors.Join(err, markErr)
}

// evicts says whether the pods of a node may be moved, and when to ask again if not.
func (nc *Controller) evicts(stored, node *corev1.Node, now time.Time) (evict bool, later time.Duration) {
	if readiness(node) == corev1.ConditionTrue {
		return true, 0
	}
	zone := zoneOf(node)
	begun := slices.ContainsFunc(stored.Spec.Taints, func(t corev1.Taint) bool { return managed(&t) && t.Effect == corev1.TaintEffectNoExecute })
	nc.mu.Lock()
	defer nc.mu.Unlock()
	switch planZone(nc.zones, zone) {
	case evictNow:
		return true, 0
	case evictNoMore:
		return begun, zoneRecheck
	case evictSlowly:
		if begun {
			return true, 0
		}
		if last, ok := nc.slowly[zone]; ok && now.Sub(last) < slowEviction {
			return false, slowEviction - now.Sub(last)
		}
		nc.slowly[zone] = now
		return true, 0
	}
	return false, zoneRecheck
}

// takesPods says whether pods can be placed on a node.
func takesPods(node *corev1.Node) bool {
	return readiness(node) == corev1.ConditionTrue && !node.Spec.Unschedulable && node.DeletionTimestamp == nil &&
		!slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Effect != corev1.TaintEffectPreferNoSchedule })
}

// taint writes the taints that a node's conditions lead to.
func (nc *Controller) taint(ctx context.Context, node *corev1.Node, evict, settling bool, now time.Time) error {
	taints, changed := planTaints(node, evict, settling, now)
	if !changed {
		return nil
	}
	node.Spec.Taints = taints
	if err := nc.client.Update(ctx, node); err != nil {
		return client.IgnoreNotFound(fmt.Errorf("updating taints: %w", err))
	}
	return nil
}

// onPods calls f for the pods of a node that want chooses, some at once, and joins what fails.
func (nc *Controller) onPods(ctx context.Context, node string, want func(*corev1.Pod) bool, f func(*corev1.Pod) error) error {
	var pods corev1.PodList
	if err := nc.client.List(ctx, &pods, client.MatchingFields{indexNodeName: node}); err != nil {
		return fmt.Errorf("listing the node's pods: %w", err)
	}
	var group errgroup.Group
	group.SetLimit(writesAtOnce)
	failures := make([]error, len(pods.Items))
	for i := range pods.Items {
		if pod := &pods.Items[i]; want(pod) {
			group.Go(func() error {
				failures[i] = controller.Safely(func() error { return f(pod) })
				return nil
			})
		}
	}
	return errors.Join(group.Wait(), errors.Join(failures...))
}

// markPods makes the pods of a silent node not ready, so that Services leave them out.
func (nc *Controller) markPods(ctx context.Context, node string) error {
	return nc.onPods(ctx, node, controller.PodReady, func(pod *corev1.Pod) error {
		c := *controller.PodCondition(pod, corev1.PodReady)
		c.Status, c.LastTransitionTime = corev1.ConditionFalse, metav1.Now()
		err := controller.PatchPodStatus(ctx, nc.client, pod, "", c)
		if err != nil {
			return client.IgnoreNotFound(fmt.Errorf("marking pod %s: %w", pod.Name, err))
		}
		nc.recorder.Event(pod, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
		return nil
	})
}

// release gives away the identities of the fenced pods of a node on which they are certainly stopped: their objects go,
// so that others can be made of the same name.
func (nc *Controller) release(ctx context.Context, node string) error {
	return nc.onPods(ctx, node, releasable, func(pod *corev1.Pod) error {
		err := controller.PatchPodStatus(ctx, nc.client, pod, corev1.PodFailed, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
			Reason: "NodeLost", Message: "The node was not heard of for so long that it has certainly stopped the pod",
		})
		if err != nil {
			return client.IgnoreNotFound(fmt.Errorf("marking pod %s: %w", pod.Name, err))
		}
		uid, none := pod.UID, int64(0)
		target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}}
		err = nc.client.Delete(ctx, target, &client.DeleteOptions{GracePeriodSeconds: &none, Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("deleting pod %s: %w", pod.Name, err)
		}
		nc.opts.Log.Info("a fenced pod of a silent node is given away", "namespace", pod.Namespace, "name", pod.Name, "nodeName", node)
		return nil
	})
}
