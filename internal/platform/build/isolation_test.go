//go:build linux

package build_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gantry.dev/gantry/internal/platform/build"
	"gantry.dev/gantry/internal/platform/build/job"
)

// traces are what is on the machine of builds with this cgroup and folder.
func traces(t *testing.T, cgroup, dir string) []string {
	t.Helper()
	var found []string
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + cgroup)
	if err != nil {
		t.Fatal(err)
	}
	direct, err := filepath.Glob("/sys/fs/cgroup/" + cgroup)
	if err != nil {
		t.Fatal(err)
	}
	found = append(found, append(groups, direct...)...)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(mounts) {
		if bytes.Contains(line, []byte(dir)) {
			found = append(found, "mount "+string(line))
		}
	}
	return append(found, processes(t, dir)...)
}

// processes are those whose arguments or environment name the folder, or that wait in a step of a test.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	lines, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		if strings.HasPrefix(path, "/proc/"+strconv.Itoa(os.Getpid())+"/") {
			continue
		}
		for _, file := range []string{path, filepath.Join(filepath.Dir(path), "cmdline")} {
			data, err := os.ReadFile(file)
			if err == nil && bytes.Contains(data, []byte(dir)) {
				found = append(found, "process "+filepath.Dir(path)+" "+string(data))
			}
		}
	}
	return found
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !check(); {
		if time.Now().After(deadline) {
			t.Fatal("this did not come: ", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

const cgroupOfTest = "gantry-build-test"

func sleeping(mark string) map[string]string {
	return map[string]string{"Dockerfile": "FROM registry.gantry.internal/base/busybox\nRUN MARK=" + mark + " sh -c 'echo sleeping; sleep 3600'\n"}
}

// TestKilled kills the building process in the middle of a step.
func TestKilled(t *testing.T) {
	b := newBench(t, func(o *build.EngineOptions) { o.Cgroup = cgroupOfTest + "-kill" })
	b.base("base/busybox")
	mark := "mark-" + strconv.Itoa(os.Getpid()) + "-kill"
	_, err := b.try(t.Context(), sleeping(mark), nil, func(e job.Event) {
		if e.Type == job.Log && e.Text == "sleeping" {
			if err := syscall.Kill(workerOf(t, b.opts.Cgroup), syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	})
	if !errors.Is(err, build.ErrCrashed) {
		t.Fatalf("Build: %v, want ErrCrashed", err)
	}
	eventually(t, "nothing is left", func() bool { return len(traces(t, b.opts.Cgroup, b.opts.Dir))+len(processes(t, mark)) == 0 })
	// The next one works, on what the killed one left on disk.
	b.image(b.build(map[string]string{"Dockerfile": "FROM registry.gantry.internal/base/busybox\nRUN echo again\n"}, nil))
	b.stop()
	if left := traces(t, b.opts.Cgroup, b.opts.Dir); len(left) > 0 {
		t.Errorf("left after the end: %q", left)
	}
}

// workerOf is the process that builds: the only one in the leaf of its cgroup that is no child of another there.
func workerOf(t *testing.T, cgroup string) int {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/memory/", "/sys/fs/cgroup/"} {
		data, err := os.ReadFile(pattern + cgroup + "/worker/cgroup.procs")
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.Fields(string(data))[0])
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatal("there is no building process")
	return 0
}

// helperEnv makes the test program one that builds until it is killed.
const helperEnv = "GANTRY_BUILD_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperEnv); dir != "" {
		os.Exit(helper(dir))
	}
	os.Exit(m.Run())
}

// helper runs an engine and a step that sleeps.
func helper(dir string) int {
	var opts build.EngineOptions
	data, err := os.ReadFile(filepath.Join(dir, "options.json"))
	if err == nil {
		err = json.Unmarshal(data, &opts)
	}
	if err != nil {
		return 1
	}
	var request job.Request
	if data, err = os.ReadFile(filepath.Join(dir, "request.json")); err == nil {
		err = json.Unmarshal(data, &request)
	}
	engine, newErr := build.NewEngine(opts)
	target, urlErr := url.Parse(os.Getenv("GANTRY_BUILD_TEST_REGISTRY"))
	if errors.Join(err, newErr, urlErr) != nil {
		return 1
	}
	go func() { _ = engine.Run(context.Background()) }()
	_, err = engine.Build(context.Background(), request, build.Images{Registry: httputil.NewSingleHostReverseProxy(target)}, func(e job.Event) {
		if e.Type == job.Log && e.Text == "sleeping" {
			_ = os.WriteFile(filepath.Join(dir, "sleeping"), nil, 0o600)
		}
	})
	fmt.Println(err)
	return 1
}

// TestParentKilled kills what plays gantry in the middle of a step.
func TestParentKilled(t *testing.T) {
	b := newBench(t, func(o *build.EngineOptions) { o.Cgroup = cgroupOfTest + "-parent" })
	b.stop()
	b.base("base/busybox")
	mark := "mark-" + strconv.Itoa(os.Getpid()) + "-parent"
	dir := t.TempDir()
	for file, value := range map[string]any{"options.json": b.opts, "request.json": job.Request{Repository: shop, App: "web", Source: b.upload(sleeping(mark))}} {
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+dir, "GANTRY_BUILD_TEST_REGISTRY="+b.server.URL)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the step runs", func() bool { _, err := os.Stat(filepath.Join(dir, "sleeping")); return err == nil })
	if len(processes(t, mark)) == 0 {
		t.Error("the step's process was not found")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "no process is left", func() bool { return len(processes(t, mark))+len(processes(t, b.opts.Dir)) == 0 })
	for _, trace := range traces(t, b.opts.Cgroup, b.opts.Dir) {
		if !strings.HasPrefix(trace, "/sys/fs/cgroup/") { // empty groups, which the next start takes away
			t.Errorf("left after the kill: %s", trace)
		}
	}
	b.start()
	eventually(t, "the next start takes the rest away", func() bool { return len(traces(t, b.opts.Cgroup, b.opts.Dir)) == 0 })
}

// TestCanceled ends a build by its context.
func TestCanceled(t *testing.T) {
	b := newBench(t, nil)
	b.base("base/busybox")
	mark := "mark-" + strconv.Itoa(os.Getpid()) + "-cancel"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := b.try(ctx, sleeping(mark), nil, func(e job.Event) {
		if e.Type == job.Log && e.Text == "sleeping" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Build: %v, want it canceled", err)
	}
	eventually(t, "the step has ended", func() bool { return len(processes(t, mark)) == 0 })
	b.image(b.build(map[string]string{"Dockerfile": "FROM registry.gantry.internal/base/busybox\nRUN echo again\n"}, nil))
}

// TestIdle sees the process end by itself and come back.
func TestIdle(t *testing.T) {
	b := newBench(t, func(o *build.EngineOptions) { o.Idle = 50 * time.Millisecond; o.Cgroup = cgroupOfTest + "-idle" })
	b.base("base/busybox")
	files := map[string]string{"Dockerfile": "FROM registry.gantry.internal/base/busybox\nRUN echo once > /file\n"}
	_, first := b.image(b.build(files, nil))
	eventually(t, "the process ends", func() bool { return len(traces(t, b.opts.Cgroup, b.opts.Dir)) == 0 })
	events := b.build(files, nil)
	if _, second := b.image(events); second != first {
		t.Errorf("the image changed from %s to %s", first, second)
	}
	cached := false
	for _, e := range events {
		cached = cached || e.Type == job.Step && e.Cached && strings.Contains(e.Text, "RUN echo once")
	}
	if !cached {
		t.Errorf("the step was not cached:\n%s", transcript(events))
	}
	usage, err := b.engine.Usage()
	if err != nil || usage.Bytes < 1<<20 {
		t.Errorf("Usage = %+v, %v", usage, err)
	}
	if freed, err := b.engine.Prune(t.Context()); err != nil || freed.Bytes < 1<<20 {
		t.Errorf("Prune = %+v, %v; want more than a MiB", freed, err)
	}
}

// TestReach sees that a step has neither the machine's network nor its processes, and the limits of its cgroup.
func TestReach(t *testing.T) {
	b := newBench(t, nil)
	b.base("base/busybox")
	port := b.server.URL[strings.LastIndex(b.server.URL, ":")+1:]
	events := b.build(map[string]string{"Dockerfile": "FROM registry.gantry.internal/base/busybox\n" +
		"RUN if nc -w 2 127.0.0.1 " + port + " </dev/null; then echo reached the machine; fi; ip -o link\n" +
		"RUN ls /proc | grep -c '^[0-9]'\n"}, nil)
	b.image(events)
	for _, e := range events {
		if e.Type == job.Log && (strings.Contains(e.Text, "reached") || strings.Contains(e.Text, "eth")) {
			t.Errorf("a step reached the machine's network:\n%s", transcript(events))
		}
	}
	limit, err := os.ReadFile("/sys/fs/cgroup/memory/" + cgroupGlob(t, b) + "/memory.limit_in_bytes")
	if err == nil && strings.TrimSpace(string(limit)) != strconv.Itoa(2<<30) {
		t.Errorf("the memory limit is %s", limit)
	}
}

// cgroupGlob is the name of the group whose processes work on the folder.
func cgroupGlob(t *testing.T, b *bench) string {
	t.Helper()
	if b.opts.Cgroup != "" {
		return b.opts.Cgroup
	}
	return build.CgroupName(b.opts.Dir)
}
