package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// indexNodeName lists pods by the node they are on.
const indexNodeName = "spec.nodeName"

// Options tunes a Controller.
type Options struct {
	ClusterCIDR  netip.Prefix  // pods' addresses in the whole cluster; required
	NodeCIDRBits int           // length of a node's part; default 24, 64 for IPv6
	Grace        time.Duration // silence after which a node is unreachable; default 40s
	StartupGrace time.Duration // the same for one that has never reported; default 60s
	Workers      int           // nodes at once; default 4
	Log          *slog.Logger  // default: discard
}

// Controller looks after the nodes' addresses, health and taints.
type Controller struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	loop      *controller.Loop

	mu     sync.Mutex // guards the fields below
	health map[string]health
	ready  int // nodes whose last event showed them ready
	ranges *ranges
}

// health is when a node was last heard.
type health struct {
	uid       types.UID
	heard     time.Time // by this side's clock
	lease     time.Time // the renew time heard last
	heartbeat time.Time // the Ready condition's, heard last
	ready     bool
}

// New checks opts and returns a controller that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*Controller, error) {
	bits := 24
	if opts.ClusterCIDR.IsValid() && opts.ClusterCIDR.Addr().Is6() {
		bits = 64
	}
	opts.NodeCIDRBits = cmp.Or(opts.NodeCIDRBits, bits)
	opts.Grace = cmp.Or(opts.Grace, 40*time.Second)
	opts.StartupGrace = cmp.Or(opts.StartupGrace, 60*time.Second)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if err := checkRange(opts.ClusterCIDR, opts.NodeCIDRBits); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if opts.Grace < 0 || opts.StartupGrace < 0 {
		return nil, fmt.Errorf("node: Grace %v and StartupGrace %v must not be negative", opts.Grace, opts.StartupGrace)
	}
	nc := &Controller{client: c, informers: informers, recorder: recorder, opts: opts}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "node", Workers: opts.Workers, Log: opts.Log, Reconcile: nc.reconcile})
	if err != nil {
		return nil, err
	}
	nc.loop = loop
	loop.Watch(&corev1.Node{}, nc.onNode)
	loop.Watch(&coordinationv1.Lease{}, nc.onLease)
	return nc, nil
}

// Run reconciles until ctx ends. It counts every node as heard when it starts.
func (nc *Controller) Run(ctx context.Context) error {
	nc.mu.Lock()
	nc.health, nc.ready, nc.ranges = map[string]health{}, 0, newRanges(nc.opts.ClusterCIDR, nc.opts.NodeCIDRBits)
	nc.mu.Unlock()
	return nc.loop.Run(ctx, nc.informers)
}

// Stats returns the counts of the controller's loop.
func (nc *Controller) Stats() controller.LoopStats { return nc.loop.Stats() }

func (nc *Controller) onNode(old, current client.Object) {
	node, ok := current.(*corev1.Node)
	if !ok {
		nc.mu.Lock()
		nc.forgetLocked(old.GetName())
		nc.ranges.release(old.GetUID())
		nc.mu.Unlock()
		nc.event(old.GetName(), old.GetUID(), "RemovingNode", fmt.Sprintf("Node %s event: Removing Node %s from Controller", old.GetName(), old.GetName()))
		return
	}
	if old == nil {
		nc.event(node.Name, node.UID, "RegisteredNode", fmt.Sprintf("Node %s event: Registered Node %s in Controller", node.Name, node.Name))
	}
	nc.hear(node, old)
	nc.loop.Add(controller.KeyOf(node))
}

// hear notes a node's addresses and heartbeat.
func (nc *Controller) hear(node *corev1.Node, old client.Object) {
	nc.mu.Lock()
	defer nc.mu.Unlock()
	if old != nil && old.GetUID() != node.UID { // deleted and made again between two events
		nc.ranges.release(old.GetUID())
	}
	nc.ranges.hold(node)
	h, known := nc.health[node.Name]
	if !known || h.uid != node.UID {
		nc.forgetLocked(node.Name)
		h = health{uid: node.UID, heard: time.Now()}
	}
	if ready := readiness(node) == corev1.ConditionTrue; ready != h.ready {
		h.ready = ready
		if ready {
			nc.ready++
		} else {
			nc.ready--
		}
	}
	if c := findCondition(node, corev1.NodeReady); c != nil && c.LastHeartbeatTime.After(h.heartbeat) {
		h.heartbeat, h.heard = c.LastHeartbeatTime.Time, time.Now()
	}
	nc.health[node.Name] = h
}

// forgetLocked ends what is known of a node that is gone.
func (nc *Controller) forgetLocked(name string) {
	if nc.health[name].ready {
		nc.ready--
	}
	delete(nc.health, name)
}

// onLease notes that a node's agent is alive. A node that is thought silent is looked at.
func (nc *Controller) onLease(_, current client.Object) {
	lease, ok := current.(*coordinationv1.Lease)
	if !ok || lease.Namespace != corev1.NamespaceNodeLease || lease.Spec.RenewTime == nil {
		return
	}
	nc.mu.Lock()
	defer nc.mu.Unlock()
	h, known := nc.health[lease.Name]
	if known && lease.Spec.RenewTime.After(h.lease) {
		h.lease, h.heard = lease.Spec.RenewTime.Time, time.Now()
		nc.health[lease.Name] = h
	}
}

func (nc *Controller) event(name string, uid types.UID, reason, note string) {
	ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: uid}
	nc.recorder.Event(ref, corev1.EventTypeNormal, reason, note)
}

func (nc *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var stored corev1.Node
	if err := nc.client.Get(ctx, key, &stored); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	addressErr := nc.assignCIDR(ctx, &stored) // a node without addresses is looked after all the same
	next, err := nc.reconcileHealth(ctx, &stored)
	return next, errors.Join(addressErr, err)
}

// reconcileHealth marks and taints a node by what was heard of it and says when to look again.
func (nc *Controller) reconcileHealth(ctx context.Context, stored *corev1.Node) (time.Duration, error) {
	grace := nc.opts.Grace
	if findCondition(stored, corev1.NodeReady) == nil {
		grace = nc.opts.StartupGrace
	}
	nc.mu.Lock()
	h, known := nc.health[stored.Name]
	nc.mu.Unlock()
	if !known {
		return 0, nil // deleted a moment ago
	}
	now := time.Now()
	silent := !now.Before(h.heard.Add(grace))
	node := stored.DeepCopy()
	if silent && planConditions(node, now) {
		if err := nc.client.Status().Update(ctx, node); err != nil {
			return 0, client.IgnoreNotFound(fmt.Errorf("marking the node as silent: %w", err))
		}
		nc.hear(node, nil) // before its event: it must not count as ready below
		if readiness(stored) == corev1.ConditionTrue {
			nc.opts.Log.Info("node fell silent", "nodeName", node.Name, "grace", grace)
			nc.event(node.Name, node.UID, "NodeNotReady", fmt.Sprintf("Node %s status is now: NodeNotReady", node.Name))
		}
	}
	if err := nc.taint(ctx, node, now); err != nil {
		return 0, err
	}
	if readiness(node) == corev1.ConditionUnknown && silent {
		return nc.opts.Grace, nc.markPods(ctx, node.Name)
	}
	return h.heard.Add(grace).Sub(now) + time.Millisecond, nil
}

// taint writes the taints that a node's conditions lead to.
func (nc *Controller) taint(ctx context.Context, node *corev1.Node, now time.Time) error {
	evict := readiness(node) == corev1.ConditionTrue || nc.anyReady()
	taints, changed := planTaints(node, evict, now)
	if !changed {
		return nil
	}
	node.Spec.Taints = taints
	if err := nc.client.Update(ctx, node); err != nil {
		return client.IgnoreNotFound(fmt.Errorf("updating taints: %w", err))
	}
	return nil
}

// anyReady says whether at least one node is ready.
func (nc *Controller) anyReady() bool {
	nc.mu.Lock()
	defer nc.mu.Unlock()
	return nc.ready > 0
}

// markPods makes the pods of a silent node not ready, so that Services leave them out.
func (nc *Controller) markPods(ctx context.Context, node string) error {
	var pods corev1.PodList
	if err := nc.client.List(ctx, &pods, client.MatchingFields{indexNodeName: node}); err != nil {
		return fmt.Errorf("listing the node's pods: %w", err)
	}
	var failures []error
	for i := range pods.Items {
		pod := &pods.Items[i]
		for j := range pod.Status.Conditions {
			c := pod.Status.Conditions[j]
			if c.Type != corev1.PodReady || c.Status != corev1.ConditionTrue {
				continue
			}
			c.Status, c.LastTransitionTime = corev1.ConditionFalse, metav1.Now()
			err := controller.PatchPodStatus(ctx, nc.client, pod, "", c)
			if client.IgnoreNotFound(err) != nil {
				failures = append(failures, fmt.Errorf("marking pod %s: %w", pod.Name, err))
				continue
			}
			nc.recorder.Event(pod, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
		}
	}
	return errors.Join(failures...)
}

// assignCIDR gives a node its part of the cluster's pod addresses.
func (nc *Controller) assignCIDR(ctx context.Context, stored *corev1.Node) error {
	if stored.Spec.PodCIDR != "" || stored.DeletionTimestamp != nil {
		return nil
	}
	nc.mu.Lock()
	prefix, err := nc.ranges.take(stored.UID)
	nc.mu.Unlock()
	if err != nil {
		nc.event(stored.Name, stored.UID, "CIDRNotAvailable", fmt.Sprintf("Node %s status is now: CIDRNotAvailable", stored.Name))
		return fmt.Errorf("giving the node addresses: %w", err)
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": stored.UID},
		"spec":     map[string]any{"podCIDR": prefix.String(), "podCIDRs": []string{prefix.String()}},
	})
	if err != nil {
		return fmt.Errorf("encoding a pod CIDR: %w", err)
	}
	updated := stored.DeepCopy()
	if err := nc.client.Patch(ctx, updated, client.RawPatch(types.MergePatchType, body)); err != nil {
		if apierrors.IsNotFound(err) { // perhaps after the event of its end
			nc.mu.Lock()
			nc.ranges.release(stored.UID)
			nc.mu.Unlock()
			return nil
		}
		return fmt.Errorf("giving the node %s: %w", prefix, err)
	}
	*stored = *updated
	return nil
}
