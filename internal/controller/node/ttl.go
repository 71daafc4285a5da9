package node

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
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
}

// NewTTL returns a TTL that has started nothing; call Run.
func NewTTL(c client.Client, informers controller.Informers, log *slog.Logger) (*TTL, error) {
	t := &TTL{client: c, informers: informers}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "ttl", Workers: 1, Log: log, Reconcile: t.reconcile})
	if err != nil {
		return nil, err
	}
	loop.Watch(&corev1.Node{}, func(old, current client.Object) {
		if current != nil && (old == nil || old.GetAnnotations()[corev1.ObjectTTLAnnotationKey] != current.GetAnnotations()[corev1.ObjectTTLAnnotationKey]) {
			loop.Add(controller.KeyOf(current))
		}
	})
	t.loop = loop
	return t, nil
}

// Run reconciles until ctx ends.
func (t *TTL) Run(ctx context.Context) error { return t.loop.Run(ctx, t.informers) }

func (t *TTL) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var nodes corev1.NodeList
	if err := t.client.List(ctx, &nodes); err != nil {
		return 0, fmt.Errorf("counting nodes: %w", err)
	}
	for i := range nodes.Items {
		if nodes.Items[i].Name != key.Name {
			continue
		}
		node := nodes.Items[i].DeepCopy()
		before := node.Annotations[corev1.ObjectTTLAnnotationKey]
		now, err := strconv.Atoi(before)
		if err != nil {
			now = -1
		}
		wanted := ttlSeconds(len(nodes.Items), now)
		if wanted == now {
			return 0, nil
		}
		patch := client.MergeFrom(nodes.Items[i].DeepCopy())
		if node.Annotations == nil {
			node.Annotations = map[string]string{}
		}
		node.Annotations[corev1.ObjectTTLAnnotationKey] = strconv.Itoa(wanted)
		return 0, client.IgnoreNotFound(t.client.Patch(ctx, node, patch))
	}
	return 0, nil
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
