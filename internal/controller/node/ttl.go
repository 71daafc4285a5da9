package node

import (
	"context"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// TTL tells agents, in an annotation of each Node, for how long they may remember ConfigMaps and
// Secrets: longer in larger clusters.
type TTL struct {
	client    client.Client
	informers controller.Informers
	loop      *controller.Loop
	nodes     atomic.Int64 // that events have told of
}

// NewTTL returns a TTL that has started nothing; call Run.
func NewTTL(c client.Client, informers controller.Informers, log *slog.Logger) (*TTL, error) {
	t := &TTL{client: c, informers: informers}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "ttl", Workers: 1, Log: log, Reconcile: t.reconcile})
	if err != nil {
		return nil, err
	}
	loop.Watch(&corev1.Node{}, func(old, current client.Object) {
		switch {
		case old == nil:
			t.nodes.Add(1)
		case current == nil:
			t.nodes.Add(-1)
		}
		if current != nil && (old == nil || old.GetAnnotations()[corev1.ObjectTTLAnnotationKey] != current.GetAnnotations()[corev1.ObjectTTLAnnotationKey]) {
			loop.Add(controller.KeyOf(current))
		}
	})
	t.loop = loop
	return t, nil
}

// Run reconciles until ctx ends.
func (t *TTL) Run(ctx context.Context) error {
	t.nodes.Store(0)
	return t.loop.Run(ctx, t.informers)
}

func (t *TTL) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var stored corev1.Node
	if err := t.client.Get(ctx, key, &stored); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	now, err := strconv.Atoi(stored.Annotations[corev1.ObjectTTLAnnotationKey])
	if err != nil {
		now = -1
	}
	wanted := ttlSeconds(int(t.nodes.Load()), now)
	if wanted == now {
		return 0, nil
	}
	node := stored.DeepCopy()
	if node.Annotations == nil {
		node.Annotations = map[string]string{}
	}
	node.Annotations[corev1.ObjectTTLAnnotationKey] = strconv.Itoa(wanted)
	return 0, client.IgnoreNotFound(t.client.Patch(ctx, node, client.MergeFrom(stored.DeepCopy())))
}

// ttlSeconds is what a cluster of so many nodes needs. Steps overlap, so that a cluster at a step's
// edge does not change its mind with each node (kube-controller-manager's ttl controller).
func ttlSeconds(nodes, now int) int {
	steps := []struct{ from, to, seconds int }{{0, 100, 0}, {90, 500, 15}, {450, 1000, 30}, {900, 2000, 60}, {1800, 1 << 31, 300}}
	for _, s := range steps {
		if s.seconds == now && nodes >= s.from && nodes <= s.to {
			return now
		}
	}
	for _, s := range steps {
		if nodes <= s.to {
			return s.seconds
		}
	}
	return steps[len(steps)-1].seconds
}
