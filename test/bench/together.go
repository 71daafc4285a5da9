//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// together measures what needs the systems only running, in rounds that alternate between them.
func (b *bench) together(ctx context.Context, systems []*system) error {
	gantry := systems[0]
	if b.image != "" && (b.opts.runs(partIdle) || b.opts.runs(partPods)) {
		if err := errors.Join(gantry.namespace(ctx, realPods), loadImage(ctx, b.opts, gantry, b.image)); err != nil {
			return err
		}
	}
	if b.opts.runs(partIdle) {
		if err := b.measureIdle(ctx, systems); err != nil {
			return err
		}
	}
	if b.opts.runs(partPods) && b.image != "" {
		if err := b.measurePods(ctx, gantry); err != nil {
			return err
		}
	}
	for _, r := range requests() {
		if !b.opts.runs(r.part) {
			continue
		}
		if err := b.measureRequest(ctx, systems, r); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	if b.opts.runs(partWatch) {
		if err := b.measureWatches(ctx, systems); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
	}
	if b.opts.runs(partMany) {
		if err := b.measureManyWatches(ctx, systems); err != nil {
			return fmt.Errorf("many watches: %w", err)
		}
	}
	if b.opts.runs(partDeploy) {
		if err := b.measureDeploys(ctx, systems); err != nil {
			return fmt.Errorf("deployments: %w", err)
		}
	}
	return b.peak(systems)
}

// put appends a figure to the series of its system.
func (r *row) put(s *system, value float64) {
	if s.name == gantryName {
		r.Gantry = append(r.Gantry, value)
	} else {
		r.Upstream = append(r.Upstream, value)
	}
}

// noteOthers keeps the most CPU time that others used in any round of a figure.
func (b *bench) noteOthers(figure string, percent float64) {
	b.report.Others[figure] = math.Round(max(b.report.Others[figure], percent))
}

// measureIdle reads memory and CPU time after the systems had nothing to do; Gantry runs ten pods.
func (b *bench) measureIdle(ctx context.Context, systems []*system) error {
	if b.image != "" {
		for i := range idlePods {
			if _, err := startPod(ctx, systems[0], fmt.Sprintf("idle-%d", i)); err != nil {
				return err
			}
		}
	}
	b.say("idle for %s", b.opts.idle)
	pss := row{Name: "memory idle (PSS)", Unit: "MB", Target: target{valueMost, 150, ""}}
	rss := row{Name: "memory idle (RSS)", Unit: "MB"}
	cpu := row{Name: "CPU idle", Unit: "% of one"}
	before := map[string]time.Duration{}
	for _, s := range systems {
		used, err := s.cpu()
		if err != nil {
			return err
		}
		before[s.name] = used
	}
	begun := time.Now()
	select {
	case <-time.After(b.opts.idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, s := range systems {
		pids, err := s.pids()
		if err != nil {
			return err
		}
		held, err := memoryOf(pids)
		if err != nil {
			return err
		}
		used, err := cpuOf(pids)
		if err != nil {
			return err
		}
		pss.put(s, held.pss)
		rss.put(s, held.rss)
		cpu.put(s, 100*(used-before[s.name]).Seconds()/time.Since(begun).Seconds())
	}
	b.add(pss, rss, cpu)
	if b.image != "" {
		return removePods(ctx, systems[0])
	}
	return nil
}

// peak reads the memory after all the load.
func (b *bench) peak(systems []*system) error {
	after := row{Name: "memory after the load (PSS)", Unit: "MB"}
	for _, s := range systems {
		pids, err := s.pids()
		if err != nil {
			return err
		}
		held, err := memoryOf(pids)
		if err != nil {
			return err
		}
		after.put(s, held.pss)
	}
	b.add(after)
	return nil
}

// measurePods starts pods one by one on Gantry's node.
func (b *bench) measurePods(ctx context.Context, s *system) error {
	b.say("starting %d pods one by one", startPods)
	var process, running []time.Duration
	for i := range startPods {
		took, err := startPod(ctx, s, fmt.Sprintf("start-%d", i))
		if err != nil {
			return err
		}
		process, running = append(process, took.process), append(running, took.running)
	}
	for _, q := range []struct {
		name  string
		value float64
		want  target
	}{{"p50", 0.5, target{valueMost, 100, ""}}, {"p90", 0.9, target{}}, {"p99", 0.99, target{}}} {
		b.add(row{Name: "pod start to its process, " + q.name, Unit: "ms", Gantry: series{quantile(milliseconds(process), q.value)}, Target: q.want})
	}
	b.add(row{Name: "pod start to Running in the API, p50", Unit: "ms", Gantry: series{quantile(milliseconds(running), 0.5)}})
	return removePods(ctx, s)
}

// measureRequest drives one kind of request against each system in turns, after a warm-up.
func (b *bench) measureRequest(ctx context.Context, systems []*system, r request) error {
	type prepared struct {
		op   operation
		undo func(context.Context) error
	}
	workers := r.workers
	if workers == 0 {
		workers = b.opts.workers
	}
	b.say("%s, %d workers", r.name, workers)
	ready := make([]prepared, len(systems))
	for i, s := range systems {
		op, undo, err := r.prepare(ctx, s)
		if err != nil {
			return err
		}
		if undo == nil {
			undo = func(context.Context) error { return nil }
		}
		ready[i] = prepared{op, undo}
		if _, _, err := drive(ctx, load{workers, min(b.opts.round, time.Second), maxOperations}, op); err != nil {
			return fmt.Errorf("warm-up of %s: %w", s.name, err)
		}
		if err := undo(ctx); err != nil {
			return fmt.Errorf("undo the warm-up of %s: %w", s.name, err)
		}
	}
	rate := row{Name: r.name + ": rate", Unit: "/s", Target: r.rate}
	cpu := row{Name: r.name + ": server CPU", Unit: "µs", Target: r.cpu}
	p50, p99 := row{Name: r.name + ": p50", Unit: "ms"}, row{Name: r.name + ": p99", Unit: "ms"}
	for range b.opts.rounds {
		for i, s := range systems {
			out, err := measure(ctx, s, load{workers, b.opts.round, maxOperations}, ready[i].op)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			rate.put(s, out.rate)
			cpu.put(s, out.cpu)
			p50.put(s, out.p50)
			p99.put(s, out.p99)
			b.noteOthers(r.name, out.others)
			if err := ready[i].undo(ctx); err != nil {
				return fmt.Errorf("undo a round of %s: %w", s.name, err)
			}
		}
	}
	b.add(rate, cpu, p50, p99)
	return nil
}

func (b *bench) measureWatches(ctx context.Context, systems []*system) error {
	b.say("WATCH, %d watchers", watchers)
	rate := row{Name: "WATCH: deliveries", Unit: "/s"}
	cpu := row{Name: "WATCH: server CPU a delivery", Unit: "µs"}
	p50, p99 := row{Name: "WATCH: write to event, p50", Unit: "ms"}, row{Name: "WATCH: write to event, p99", Unit: "ms"}
	for range b.opts.rounds {
		for _, s := range systems {
			out, err := measureWatch(ctx, s, b.opts)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			rate.put(s, out.delivered)
			cpu.put(s, out.cpu)
			p50.put(s, quantile(out.latencies, 0.5))
			p99.put(s, quantile(out.latencies, 0.99))
			b.noteOthers("WATCH", out.others)
		}
	}
	b.add(rate, cpu, p50, p99)
	return nil
}

func (b *bench) measureDeploys(ctx context.Context, systems []*system) error {
	rate := row{Name: "Deployments to bound pods", Unit: "pods/s", Target: target{valueLeast, 1500, ""}}
	cpu := row{Name: "Deployments to bound pods: server CPU", Unit: "ms a pod"}
	for round := range b.opts.rounds {
		for _, s := range systems {
			b.say("round %d: %d Deployments of %d pods on %s", round+1, deployments, podsPerDeployment, s.name)
			out, err := measureDeploy(ctx, s, round)
			if err != nil {
				return err
			}
			rate.put(s, out.rate)
			cpu.put(s, out.cpu)
			b.noteOthers("Deployments", out.others)
		}
	}
	b.add(rate, cpu)
	return nil
}
