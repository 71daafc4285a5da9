//go:build linux

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// commandTimeout is the limit of one gantry command: up waits for the node itself.
const commandTimeout = 3 * time.Minute

// Options says what Start starts.
type Options struct {
	Bin   string   // folder with gantry and kubectl; required
	Flags []string // of gantry up, besides --detach and --data-dir
}

// Cluster is a node on a machine of its own.
type Cluster struct {
	Dir string // the data dir

	opts    Options
	machine *machine
	workers []*Cluster
}

// Start makes the machine and starts the node; it returns when the node is ready. Call Remove in
// the end, also after an error of a later step.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	if opts.Bin == "" {
		return nil, errors.New("cluster: Bin is required")
	}
	bin, err := filepath.Abs(opts.Bin)
	if err != nil {
		return nil, fmt.Errorf("cluster: find the programs: %w", err)
	}
	opts.Bin = bin
	m, err := newMachine(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(tempDir(), "gc-")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cluster: make the data dir: %w", err), m.remove())
	}
	c := &Cluster{Dir: dir, opts: opts, machine: m}
	if err := c.Up(ctx); err != nil {
		return nil, errors.Join(err, c.Remove(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// Join makes a worker of this cluster on a machine beside it, and returns when it is ready. Remove takes it away, too.
func (c *Cluster) Join(ctx context.Context) (*Cluster, error) {
	number := len(c.workers) + 1
	said, err := c.output(ctx, "token", "create")
	if err != nil {
		return nil, err
	}
	flags := append(slices.Clone(c.opts.Flags), "--node-name", fmt.Sprintf("worker-%d", number))
	words := strings.Fields(said)
	for i, word := range words {
		if (word == "--join" || word == "--token") && i+1 < len(words) {
			flags = append(flags, word, words[i+1])
		}
	}
	m, err := c.machine.neighbour(ctx, number)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(tempDir(), "gc-")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cluster: make the data dir: %w", err), m.remove())
	}
	w := &Cluster{Dir: dir, opts: Options{Bin: c.opts.Bin, Flags: flags}, machine: m}
	if err := w.Up(ctx); err != nil {
		return nil, errors.Join(err, w.Remove(context.WithoutCancel(ctx)))
	}
	c.workers = append(c.workers, w)
	return w, nil
}

// tempDir is $TMPDIR unless that is long: a socket's path has 108 bytes at most.
func tempDir() string {
	if dir := os.TempDir(); len(dir) <= 16 {
		return dir
	}
	return "/tmp"
}

// Up starts the node, also after Kill, and waits until it is ready.
func (c *Cluster) Up(ctx context.Context) error {
	return c.gantry(ctx, append([]string{"up", "--detach"}, c.opts.Flags...)...)
}

// Kill ends the main process with a signal and waits until it is gone.
func (c *Cluster) Kill(ctx context.Context, signal syscall.Signal) error {
	text, err := os.ReadFile(filepath.Join(c.Dir, "run", "gantry.pid"))
	if err != nil {
		return fmt.Errorf("cluster: find the main process: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("cluster: read the main process's number: %w", err)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("cluster: signal the main process: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for running(pid) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("cluster: the main process %d does not end: %w", pid, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// running reports whether a process is there and no zombie.
func running(pid int) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(cmdline) > 0
}

// Remove stops the node and takes the machine and the data away; workers that joined it go first.
func (c *Cluster) Remove(ctx context.Context) error {
	var failed []error
	for _, w := range c.workers {
		failed = append(failed, w.Remove(ctx))
	}
	c.workers = nil
	err := c.gantry(ctx, "down", "--purge", "--yes")
	c.killAll()
	mounts, mountErr := mountsUnder(c.Dir)
	slices.Reverse(mounts)
	for _, mount := range mounts {
		_ = syscall.Unmount(mount, syscall.MNT_DETACH)
	}
	return errors.Join(append(failed, err, mountErr, os.RemoveAll(c.Dir), c.machine.remove())...)
}

// killAll ends what a failed down has left on this machine.
func (c *Cluster) killAll() {
	folders, _ := filepath.Glob("/proc/[0-9]*")
	for _, folder := range folders {
		cmdline, err := os.ReadFile(filepath.Join(folder, "cmdline"))
		pid, numErr := strconv.Atoi(filepath.Base(folder))
		if err != nil || numErr != nil || pid == os.Getpid() {
			continue
		}
		words := strings.Split(string(cmdline), "\x00")
		if slices.ContainsFunc(words, func(w string) bool { return w == c.Dir || strings.Contains(w, c.Dir+"/") }) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// Kubeconfig is the path of the administrator's.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.Dir, "admin.kubeconfig") }

// Log is the path of the node's log.
func (c *Cluster) Log() string { return filepath.Join(c.Dir, "log", "gantry.log") }

// Kubectl is the path of the kubectl beside gantry.
func (c *Cluster) Kubectl() string { return filepath.Join(c.opts.Bin, "kubectl") }

// Rest is the administrator's client configuration, which connects from inside of the machine.
func (c *Cluster) Rest() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("cluster: read the kubeconfig: %w", err)
	}
	config.Dial, config.QPS, config.Burst = c.machine.dial, 1000, 1000
	config.WarningHandler = rest.NoWarnings{}
	return config, nil
}

// Command is a program on the machine. It gets SIGTERM when ctx ends, and sees no setting of the
// caller that is meant for Gantry.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + c.machine.path(), "--", name}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "GANTRY_") || strings.HasPrefix(entry, "KUBECONFIG=")
	})
	cmd.Env = append(cmd.Env, "KUBECONFIG="+c.Kubeconfig())
	// A test must not depend on how full this machine's disk is.
	cmd.Env = append(cmd.Env, "GANTRY_EVICTION_HARD=memory.available<100Mi,nodefs.available<256Mi", "GANTRY_IMAGE_GC_HIGH_THRESHOLD=100")
	return cmd
}

// gantry runs a gantry command on the cluster; an error has all that it said.
func (c *Cluster) gantry(ctx context.Context, args ...string) error {
	_, err := c.output(ctx, args...)
	return err
}

// output runs a gantry command and returns all that it said.
func (c *Cluster) output(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := c.Command(ctx, filepath.Join(c.opts.Bin, "gantry"), append([]string{"--data-dir", c.Dir}, args...)...)
	cmd.Env = slices.DeleteFunc(cmd.Env, func(entry string) bool { return strings.HasPrefix(entry, "KUBECONFIG=") })
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("cluster: gantry %s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return said.String(), nil
}

// mountsUnder are the mount points at or below a folder, in the order of their making.
func mountsUnder(folder string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cluster: read the mounts: %w", err)
	}
	var found []string
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); len(fields) > 4 && (fields[4] == folder || strings.HasPrefix(fields[4], folder+"/")) {
			found = append(found, fields[4])
		}
	}
	return found, nil
}

// Namespace is the path of the machine's network namespace.
func (c *Cluster) Namespace() string { return c.machine.path() }
