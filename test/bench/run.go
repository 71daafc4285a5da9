//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/test/upstream"
)

const (
	partReady  = "ready"
	partIdle   = "idle"
	partWatch  = "watch"
	partMany   = "watches"
	partDeploy = "deploy"
	partPods   = "pods"
	// These run only when they are named: they take as long as all others together, and longer.
	partScale = "scale"
	partLarge = "large"

	idlePods = 10
)

// parts are the names that -only takes.
func parts() []string {
	return []string{partReady, partIdle, "get", "create", "patch", "status", "list", "list10k", "apply", partWatch, partMany, partDeploy, partPods, partScale, partLarge, partGateway, partApplication, partFailover}
}

// bench is one run.
type bench struct {
	opts      options
	dir       string
	image     string
	launchers map[string]launcher
	order     []string // names of the systems, Gantry first
	report    report
	say       func(format string, args ...any)
}

// run measures what opts ask for, prints the table to out and the progress to progress.
func run(ctx context.Context, opts options, out, progress io.Writer) (err error) {
	if slices.Equal(opts.only, []string{partGateway}) {
		return measureGateway(ctx, opts, out)
	}
	if slices.Equal(opts.only, []string{partApplication}) {
		return measureApplication(ctx, opts, out, progress)
	}
	if slices.Equal(opts.only, []string{partFailover}) {
		return measureFailover(ctx, opts, out, progress)
	}
	dir, err := os.MkdirTemp("", "gbench")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() {
		if err == nil {
			err = os.RemoveAll(dir)
		}
	}()
	b := &bench{
		opts: opts, dir: dir, order: []string{gantryName}, launchers: map[string]launcher{gantryName: launchGantry(opts)},
		say: func(format string, args ...any) { _, _ = fmt.Fprintf(progress, "bench: "+format+"\n", args...) },
		report: report{Machine: describeMachine(), Others: map[string]float64{}, Settings: map[string]string{
			"rounds": fmt.Sprint(opts.rounds), "round": opts.round.String(), "workers": fmt.Sprint(opts.workers), "idle": opts.idle.String(),
		}},
	}
	if !opts.gantryOnly {
		programs, err := upstream.Build(ctx, upstream.BuildOptions{Module: opts.module, Cache: opts.cache, Log: progress})
		if err != nil {
			return err
		}
		b.order = append(b.order, upstreamName)
		b.launchers[upstreamName] = launchUpstream(programs)
		b.report.Settings["upstream"] = "Kubernetes " + upstream.Version + ", etcd " + upstream.EtcdVersion
	}
	if !opts.controlOnly {
		b.image = filepath.Join(dir, "image.tar")
		if err := writeImage(b.image); err != nil {
			return err
		}
	}
	failed := b.all(ctx)
	if len(b.report.Rows) > 0 {
		if err := b.print(out); err != nil {
			return errors.Join(failed, err)
		}
	}
	return failed
}

func (b *bench) print(out io.Writer) error {
	if err := writeTable(out, b.report.Rows); err != nil {
		return err
	}
	for _, figure := range slices.Sorted(maps.Keys(b.report.Others)) {
		if percent := b.report.Others[figure]; percent >= 20 {
			_, _ = fmt.Fprintf(out, "disturbed: %s: in one round others used %.0f%% of a CPU\n", figure, percent)
		}
	}
	if b.opts.jsonPath == "" {
		return nil
	}
	file, err := os.Create(b.opts.jsonPath)
	if err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return errors.Join(writeJSON(file, b.report), file.Close())
}

// all runs the parts: first the starts, each with systems of its own, then the rest side by side.
func (b *bench) all(ctx context.Context) error {
	if b.opts.runs(partReady) {
		if err := b.measureStarts(ctx); err != nil {
			return err
		}
	}
	if slices.Contains(b.opts.only, partScale) || slices.Contains(b.opts.only, partLarge) {
		if err := b.measureScale(ctx); err != nil {
			return err
		}
	}
	if !b.opts.needsTogether() {
		return nil
	}
	systems, err := b.startAll(ctx)
	if err == nil {
		err = b.together(ctx, systems)
	}
	for _, s := range systems {
		if err != nil {
			b.say("%s is kept in %s for a look", s.name, s.dir)
		}
		err = errors.Join(err, s.stopNodes(), b.finish(s))
	}
	return err
}

// finish stops a system and removes what it leaves.
func (b *bench) finish(s *system) error {
	err := s.stop()
	if s.name == gantryName {
		err = errors.Join(err, purge(b.opts, s.dir))
	}
	return err
}

// start starts a system in a fresh folder and waits for its first write.
func (b *bench) start(ctx context.Context, name string) (*system, time.Duration, error) {
	dir, err := os.MkdirTemp(b.dir, name[:1])
	if err != nil {
		return nil, 0, fmt.Errorf("make a folder: %w", err)
	}
	s, err := b.launchers[name](ctx, dir)
	if err != nil {
		return nil, 0, err
	}
	if err := s.awaitWrite(ctx); err != nil {
		return nil, 0, errors.Join(err, b.finish(s))
	}
	return s, time.Since(s.started), nil
}

func (b *bench) startAll(ctx context.Context) (systems []*system, err error) {
	for _, name := range b.order {
		b.say("starting %s", name)
		s, _, err := b.start(ctx, name)
		if err != nil {
			return systems, err
		}
		systems = append(systems, s)
		if err := s.addUser(ctx, s.pki()); err != nil {
			return systems, err
		}
	}
	return systems, nil
}

// measureStarts starts and stops each system by itself, in turns.
func (b *bench) measureStarts(ctx context.Context) error {
	ready := row{Name: "API ready, first start", Unit: "ms", Target: target{valueMost, 600, ""}}
	again := row{Name: "API ready, second start", Unit: "ms"}
	first := row{Name: "first pod Running, second start", Unit: "ms", Target: target{valueMost, 2000, ""}}
	for round := range b.opts.rounds {
		for _, name := range b.order {
			b.say("round %d: starting and stopping %s", round+1, name)
			s, took, err := b.start(ctx, name)
			if err != nil {
				return err
			}
			if name == upstreamName {
				ready.Upstream = append(ready.Upstream, float64(took.Milliseconds()))
				if err := b.finish(s); err != nil {
					return err
				}
				continue
			}
			ready.Gantry = append(ready.Gantry, float64(took.Milliseconds()))
			write, pod, err := b.restart(ctx, s)
			if err != nil {
				return err
			}
			again.Gantry = append(again.Gantry, float64(write.Milliseconds()))
			if pod > 0 {
				first.Gantry = append(first.Gantry, float64(pod.Milliseconds()))
			}
		}
	}
	b.add(ready, again)
	if len(first.Gantry) > 0 {
		b.add(first)
	}
	return nil
}

// restart stops a node of Gantry, after it was given the image, and starts it again. It returns how
// long the first write and the first running pod took.
func (b *bench) restart(ctx context.Context, s *system) (write, pod time.Duration, err error) {
	dir := s.dir
	defer func() { err = errors.Join(err, b.finish(s)) }()
	if b.image != "" {
		if err := s.namespace(ctx, realPods); err != nil {
			return 0, 0, err
		}
		if err := loadImage(ctx, b.opts, s, b.image); err != nil {
			return 0, 0, err
		}
	}
	if err := s.stop(); err != nil {
		return 0, 0, err
	}
	again, err := startGantry(ctx, b.opts, dir)
	if err != nil {
		return 0, 0, err
	}
	s = again
	if err := s.awaitWrite(ctx); err != nil {
		return 0, 0, err
	}
	write = time.Since(s.started)
	if b.image == "" {
		return write, 0, nil
	}
	if _, err := startPod(ctx, s, "first"); err != nil {
		return 0, 0, err
	}
	return write, time.Since(s.started), nil
}

func (b *bench) add(rows ...row) { b.report.Rows = append(b.report.Rows, rows...) }

// describeMachine says where this runs, without naming it.
func describeMachine() machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), CPU: procValue("/proc/cpuinfo", "model name"), Memory: procValue("/proc/meminfo", "MemTotal")}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	return m
}

func procValue(path, key string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		if name, value, found := strings.Cut(scanner.Text(), ":"); found && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
