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
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/heartbeat"
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
	// Heartbeats is what this server hears of nodes; while Run runs it is the one that decides. nil: Leases tell alone.
	Heartbeats *Heartbeats
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
	zones  map[string]zoneCount
	slowly map[string]time.Time // when a node of a large, disrupted zone was given up last
	ranges *ranges
}

// health is when a node was last heard.
type health struct {
	uid       types.UID
	heard     time.Time // by this side's clock
	lease     time.Time // the renew time heard last
	heartbeat time.Time // the Ready condition's, heard last
	ready     bool
	zone      string
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
	nc.health, nc.ranges = map[string]health{}, newRanges(nc.opts.ClusterCIDR, nc.opts.NodeCIDRBits)
	nc.zones, nc.slowly = map[string]zoneCount{}, map[string]time.Time{}
	nc.mu.Unlock()
	if nc.opts.Heartbeats == nil {
		return nc.loop.Run(ctx, nc.informers)
	}
	nc.opts.Heartbeats.Lead(time.Now())
	defer nc.opts.Heartbeats.Follow()
	ctx, cancel := context.WithCancel(ctx)
	var listening sync.WaitGroup
	defer listening.Wait()
	defer cancel()
	listening.Go(func() { nc.listen(ctx) })
	return nc.loop.Run(ctx, nc.informers)
}

// listen looks at nodes as they fall silent and come back, until ctx ends.
func (nc *Controller) listen(ctx context.Context) {
	beats := nc.opts.Heartbeats
	for {
		changed, next := beats.tick(time.Now())
		for _, name := range changed {
			nc.loop.Add(controller.Key{Name: name})
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-beats.news:
			timer.Stop()
		case <-timer.C:
		}
	}
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
		h = health{uid: node.UID, heard: time.Now(), zone: zoneOf(node)}
		nc.countLocked(h, 1)
	}
	if h.ready != (readiness(node) == corev1.ConditionTrue) || h.zone != zoneOf(node) {
		nc.countLocked(h, -1)
		h.ready, h.zone = readiness(node) == corev1.ConditionTrue, zoneOf(node)
		nc.countLocked(h, 1)
	}
	if beats := nc.opts.Heartbeats; beats != nil {
		_, expected := node.Annotations[heartbeat.NodeAnnotation]
		beats.know(time.Now(), node.Name, view{expected: expected, ready: readiness(node), takes: takesPods(node)})
	}
	if c := findCondition(node, corev1.NodeReady); c != nil && c.LastHeartbeatTime.After(h.heartbeat) {
		h.heartbeat, h.heard = c.LastHeartbeatTime.Time, time.Now()
	}
	nc.health[node.Name] = h
}

// forgetLocked ends what is known of a node that is gone.
func (nc *Controller) forgetLocked(name string) {
	if h, known := nc.health[name]; known {
		nc.countLocked(h, -1)
	}
	delete(nc.health, name)
	if nc.opts.Heartbeats != nil {
		nc.opts.Heartbeats.forget(name)
	}
}

// countLocked counts a node in its zone, or no longer.
func (nc *Controller) countLocked(h health, by int) {
	z := nc.zones[h.zone]
	z.nodes += by
	if h.ready {
		z.ready += by
	}
	nc.zones[h.zone] = z
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
