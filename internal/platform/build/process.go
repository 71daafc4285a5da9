//go:build linux

package build

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/platform/build/job"
)

// startTimeout is how long the process may take until it answers.
const startTimeout = 30 * time.Second

// process is a gantry-build that runs.
type process struct {
	client *http.Client
	pid    int
	stdin  io.Closer
	done   chan struct{} // closed when it has ended and was waited for
}

// start starts the process and waits until it takes requests.
func (e *Engine) start(ctx context.Context) (*process, error) {
	if e.opts.Prepare != nil {
		if err := e.opts.Prepare(); err != nil {
			return nil, fmt.Errorf("starting builds: %w", err)
		}
	}
	for _, dir := range []string{e.opts.Dir, e.opts.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("starting builds: %w", err)
		}
	}
	var netns string
	if e.opts.Network != nil {
		var err error
		if netns, err = e.opts.Network.Setup(ctx); err != nil {
			return nil, fmt.Errorf("giving builds a network: %w", err)
		}
	}
	limits, err := e.limits()
	if err != nil {
		return nil, err
	}
	groups, err := makeCgroups(e.opts.Cgroup, limits)
	if err != nil {
		return nil, fmt.Errorf("making the builds' cgroup: %w", err)
	}
	setup, err := json.Marshal(job.Setup{
		Dir: e.opts.Dir, Socket: filepath.Join(e.opts.RunDir, workerSocket), Runc: e.opts.Runc, Static: e.opts.Static,
		Cgroup: "/" + e.opts.Cgroup, DNS: e.opts.DNS, CacheBytes: e.cacheBytes(), Bases: e.opts.Bases,
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the setup of builds: %w", err)
	}
	p, ready, err := e.spawn(netns, setup, groups)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", e.opts.Program, err)
	}
	select {
	case text := <-ready:
		if text != job.Ready {
			p.kill()
			return nil, fmt.Errorf("starting %s: %s", e.opts.Program, text)
		}
	case <-time.After(startTimeout):
		p.kill()
		return nil, fmt.Errorf("starting %s: it did not answer in %v", e.opts.Program, startTimeout)
	case <-ctx.Done():
		p.kill()
		return nil, ctx.Err()
	}
	return p, nil
}

// spawn runs the program in namespaces of its own. What it says first comes on ready.
func (e *Engine) spawn(netns string, setup []byte, groups []string) (*process, <-chan string, error) {
	socket := filepath.Join(e.opts.RunDir, workerSocket)
	p := &process{done: make(chan struct{}), client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
	cmd := exec.Command(e.opts.Program)
	cmd.Dir = "/"
	flags := uintptr(unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC)
	if netns == "" {
		flags |= unix.CLONE_NEWNET
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL, Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	p.stdin = stdin
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	stderr := &tail{max: 4096}
	cmd.Stderr = stderr
	started := make(chan error, 1)
	ready := make(chan string, 1)
	// The kernel takes the end of the thread that started a process for the parent's death, and a
	// namespace is a thread's: this one is kept for the process and ends with it.
	go func() {
		runtime.LockOSThread()
		defer close(p.done)
		if err := startIn(netns, cmd); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		if line = strings.TrimSpace(line); line == job.Ready {
			ready <- line
			line = ""
		}
		err := cmd.Wait()
		if line == "" && len(ready) == 0 {
			line = strings.TrimSpace(stderr.String())
		}
		select {
		case ready <- fmt.Sprintf("%s (%v)", line, err):
		default:
		}
		e.opts.Log.Debug("the building process ended", "error", err, "stderr", stderr.String())
	}()
	if err := <-started; err != nil {
		return nil, nil, err
	}
	err = enterCgroups(groups, p.pid)
	if err == nil {
		_, err = io.Copy(stdin, bytes.NewReader(setup)) // it does nothing before it has read this
	}
	if err != nil {
		p.kill()
		return nil, nil, err
	}
	return p, ready, nil
}

// startIn starts a command in a network namespace; the thread stays there.
func startIn(netns string, cmd *exec.Cmd) error {
	if netns != "" {
		ns, err := os.Open(netns)
		if err != nil {
			return fmt.Errorf("opening the network namespace: %w", err)
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the network namespace: %w", err)
		}
	}
	return cmd.Start()
}

// kill ends the process, and with it all of its PID namespace, and waits for that.
func (p *process) kill() {
	_ = p.stdin.Close()
	select {
	case <-p.done:
		return
	case <-time.After(stopGrace):
	}
	if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return // not ours to wait for
	}
	<-p.done
}

// stopGrace is how long the process may take to write its caches.
const stopGrace = 3 * time.Second

// tail keeps the last bytes that are written to it.
type tail struct {
	max  int
	data []byte
}

// Write implements io.Writer.
func (t *tail) Write(data []byte) (int, error) {
	t.data = append(t.data, data...)
	if extra := len(t.data) - t.max; extra > 0 {
		t.data = append([]byte(nil), t.data[extra:]...)
	}
	return len(data), nil
}

// String returns them. It must not be called while the process runs.
func (t *tail) String() string { return string(t.data) }
