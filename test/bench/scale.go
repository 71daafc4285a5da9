//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	scaleNamespace = "bench-scale"
	lowPriority    = "bench-low"
	highPriority   = "bench-high"
	preemptors     = 500
	fillersPerNode = 8 // fill a simulated node's CPUs
)

// scaleCase is one way to fill a cluster of a size. It has systems of its own, one after the other: what thousands of
// idle nodes cost one system would slow the other down.
type scaleCase struct {
	part   string
	name   string
	nodes  int
	pods   int64
	target target
	memory bool // read what the system holds afterwards
	// prepare does what is not measured; nil does nothing.
	prepare func(ctx context.Context, s *system) error
	create  func(ctx context.Context, s *system) error
}

func scaleCases() []scaleCase {
	plain := func(count int) func(context.Context, *system) error {
		return func(ctx context.Context, s *system) error {
			return createDeployments(ctx, s, scaleNamespace, count, func(int) corev1.PodSpec { return podSpec() })
		}
	}
	eightfold, fivefold := target{ratioLeast, 8, ""}, target{ratioLeast, 5, ""}
	return []scaleCase{
		{part: partScale, name: "100 nodes, 2,000 pods", nodes: 100, pods: 2000, target: eightfold, create: plain(20)},
		{part: partScale, name: "1,000 nodes, 10,000 pods", nodes: 1000, pods: 10_000, target: eightfold, create: plain(100)},
		{part: partLarge, name: "5,000 nodes, 30,000 pods", nodes: 5000, pods: 30_000, target: eightfold, memory: true, create: plain(300)},
		{
			part: partScale, name: "1,000 nodes, 5,000 pods with anti-affinity and spread", nodes: 1000, pods: 5000, target: fivefold,
			create: func(ctx context.Context, s *system) error {
				return createDeployments(ctx, s, scaleNamespace, 50, apartSpec)
			},
		},
		{
			part: partScale, name: "100 full nodes, 500 pods that preempt", nodes: 100, pods: preemptors, target: fivefold,
			prepare: fillNodes, create: createPreemptors,
		},
	}
}

// apartSpec is of pods that share no node with their like and are spread evenly over the zones.
func apartSpec(i int) corev1.PodSpec {
	like := &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("web-%03d", i)}}
	spec := podSpec()
	spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: corev1.LabelHostname, LabelSelector: like}},
	}}
	spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: like,
	}}
	return spec
}

// cpuSpec is of pods that hold an eighth of a simulated node.
func cpuSpec(class string) corev1.PodSpec {
	spec, none := podSpec(), int64(0)
	spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("4")
	spec.PriorityClassName, spec.TerminationGracePeriodSeconds = class, &none
	return spec
}

// fillNodes takes all CPUs of the nodes for pods of low priority, which end at once when they are deleted.
func fillNodes(ctx context.Context, s *system) error {
	for name, value := range map[string]int32{lowPriority: 10, highPriority: 1000} {
		class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}
		if _, err := s.client.SchedulingV1().PriorityClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("make a priority class of %s: %w", s.name, err)
		}
	}
	const namespace, count = "bench-fillers", 100 * fillersPerNode
	_, err := measureBound(ctx, s, namespace, count, func(ctx context.Context) error {
		return fill(ctx, 8, count, func(ctx context.Context, i int) error {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("filler-%03d", i)}, Spec: cpuSpec(lowPriority)}
			_, err := s.client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
			return err
		})
	})
	return err
}

// createPreemptors makes pods that each need the place of one that is there.
func createPreemptors(ctx context.Context, s *system) error {
	return createDeployments(ctx, s, scaleNamespace, preemptors/podsPerDeployment, func(int) corev1.PodSpec { return cpuSpec(highPriority) })
}

// measureScale runs each case that was asked for on fresh systems, one after the other.
func (b *bench) measureScale(ctx context.Context) error {
	for _, c := range scaleCases() {
		if !slices.Contains(b.opts.only, c.part) {
			continue
		}
		rate := row{Name: c.name + ": rate", Unit: "pods/s", Target: c.target}
		cpu := row{Name: c.name + ": server CPU", Unit: "ms a pod"}
		held := row{Name: c.name + ": memory afterwards (PSS)", Unit: "MB", Target: target{ratioMost, 1.0 / 3, "1/3"}}
		for _, name := range b.order {
			b.say("%s on %s", c.name, name)
			if err := b.measureScaleOn(ctx, name, c, &rate, &cpu, &held); err != nil {
				return fmt.Errorf("%s on %s: %w", c.name, name, err)
			}
		}
		b.add(rate, cpu)
		if c.memory {
			b.add(held)
		}
	}
	return nil
}

func (b *bench) measureScaleOn(ctx context.Context, name string, c scaleCase, rate, cpu, held *row) (err error) {
	s, _, err := b.start(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stopNodes(), b.finish(s)) }()
	if err := s.addUser(ctx, s.pki()); err != nil {
		return err
	}
	if err := s.addNodes(ctx, c.nodes); err != nil {
		return err
	}
	if c.prepare != nil {
		if err := c.prepare(ctx, s); err != nil {
			return err
		}
	}
	out, err := measureBound(ctx, s, scaleNamespace, c.pods, func(ctx context.Context) error { return c.create(ctx, s) })
	if err != nil {
		return err
	}
	silent, err := s.tainted(ctx)
	if err != nil {
		return err
	}
	if len(silent) > 0 { // then the system has less to choose from, and more to do
		b.say("%s on %s: %d nodes fell silent, such as %s", c.name, name, len(silent), silent[0])
	}
	rate.put(s, out.rate)
	cpu.put(s, out.cpu)
	b.noteOthers(c.name, out.others)
	if !c.memory {
		return nil
	}
	pids, err := s.pids()
	if err != nil {
		return err
	}
	sum, err := memoryOf(pids)
	if err != nil {
		return err
	}
	held.put(s, sum.pss)
	return nil
}
