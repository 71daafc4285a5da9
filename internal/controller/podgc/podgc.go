package podgc

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Options tunes a Collector. The zero value suits production.
type Options struct {
	Interval   time.Duration // between looks; default 20s
	Quarantine time.Duration // how long a node must be gone; default 40s
	Threshold  int           // finished pods that are kept; default 12500
	Log        *slog.Logger  // default: discard
}

// Collector is the pod garbage collector.
type Collector struct {
	client client.Client
	opts   Options
	gone   map[string]time.Time // nodes that pods name and that are not there, and since when
}

// New checks opts and returns a collector that has started nothing; call Run.
func New(c client.Client, opts Options) (*Collector, error) {
	opts.Interval = cmp.Or(opts.Interval, 20*time.Second)
	opts.Quarantine = cmp.Or(opts.Quarantine, 40*time.Second)
	opts.Threshold = cmp.Or(opts.Threshold, 12500)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Interval < 0 || opts.Quarantine < 0 || opts.Threshold < 0 {
		return nil, fmt.Errorf("podgc: Interval %v, Quarantine %v and Threshold %d must not be negative", opts.Interval, opts.Quarantine, opts.Threshold)
	}
	return &Collector{client: c, opts: opts, gone: map[string]time.Time{}}, nil
}

// Run collects until ctx ends.
func (pc *Collector) Run(ctx context.Context) error {
	ticker := time.NewTicker(pc.opts.Interval)
	defer ticker.Stop()
	for {
		if err := controller.Safely(func() error { return pc.collect(ctx, time.Now()) }); err != nil && ctx.Err() == nil {
			pc.opts.Log.Warn("pods are collected again later", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// removal is a pod to delete and the condition that tells why, if any.
type removal struct {
	pod       *corev1.Pod
	condition *corev1.PodCondition
}

func (pc *Collector) collect(ctx context.Context, now time.Time) error {
	var pods corev1.PodList
	if err := pc.client.List(ctx, &pods); err != nil {
		return fmt.Errorf("listing pods: %w", err)
	}
	var nodes corev1.NodeList
	if err := pc.client.List(ctx, &nodes); err != nil {
		return fmt.Errorf("listing nodes: %w", err)
	}
	for _, r := range plan(pods.Items, nodes.Items, pc.gone, now, pc.opts) {
		if err := pc.remove(ctx, r); err != nil {
			return fmt.Errorf("deleting pod %s/%s: %w", r.pod.Namespace, r.pod.Name, err)
		}
		pc.opts.Log.Info("pod collected", "namespace", r.pod.Namespace, "name", r.pod.Name, "nodeName", r.pod.Spec.NodeName)
	}
	return nil
}

// plan says which pods go. gone is kept from look to look: which nodes were missing when.
func plan(pods []corev1.Pod, nodes []corev1.Node, gone map[string]time.Time, now time.Time, opts Options) []removal {
	byName := map[string]*corev1.Node{}
	for i := range nodes {
		byName[nodes[i].Name] = &nodes[i]
	}
	missing := map[string]bool{}
	var removals []removal
	var finished []*corev1.Pod
	for i := range pods {
		pod := &pods[i]
		name := pod.Spec.NodeName
		node := byName[name]
		if name != "" && node == nil {
			missing[name] = true
			if _, ok := gone[name]; !ok {
				gone[name] = now
			}
		}
		switch {
		case name != "" && node == nil && now.Sub(gone[name]) >= opts.Quarantine:
			removals = append(removals, removal{pod, &corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now),
				Reason: "DeletionByPodGC", Message: "PodGC: node no longer exists",
			}})
		case name == "" && pod.DeletionTimestamp != nil, node != nil && pod.DeletionTimestamp != nil && outOfService(node):
			removals = append(removals, removal{pod: pod})
		case ended(pod):
			finished = append(finished, pod)
		}
	}
	for name := range gone {
		if !missing[name] {
			delete(gone, name)
		}
	}
	if excess := len(finished) - opts.Threshold; excess > 0 {
		slices.SortFunc(finished, compareFinished)
		for _, pod := range finished[:excess] {
			removals = append(removals, removal{pod: pod})
		}
	}
	return removals
}

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// compareFinished puts evicted pods first, then the oldest.
func compareFinished(a, b *corev1.Pod) int {
	evicted := func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed && p.Status.Reason == "Evicted" }
	switch {
	case evicted(a) && !evicted(b):
		return -1
	case !evicted(a) && evicted(b):
		return 1
	case !a.CreationTimestamp.Equal(&b.CreationTimestamp):
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	}
	return strings.Compare(a.Name, b.Name)
}

// outOfService says whether a person has declared a node that is not ready to be off.
func outOfService(node *corev1.Node) bool {
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return false
		}
	}
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// remove marks a pod failed, because no agent will any more, and deletes it at once.
func (pc *Collector) remove(ctx context.Context, r removal) error {
	if !ended(r.pod) {
		var conditions []corev1.PodCondition
		if r.condition != nil {
			conditions = append(conditions, *r.condition)
		}
		if err := controller.PatchPodStatus(ctx, pc.client, r.pod, corev1.PodFailed, conditions...); err != nil {
			return client.IgnoreNotFound(err)
		}
	}
	uid, none := r.pod.UID, int64(0)
	target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: r.pod.Namespace, Name: r.pod.Name}}
	err := pc.client.Delete(ctx, target, &client.DeleteOptions{GracePeriodSeconds: &none, Preconditions: &metav1.Preconditions{UID: &uid}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
