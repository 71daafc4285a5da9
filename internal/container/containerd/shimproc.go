package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/container/shim"
)

// shimStartTimeout bounds the first connection to a shim, shimEndTimeout the wait for one
// that was told to end.
const (
	shimStartTimeout = 10 * time.Second
	shimEndTimeout   = 5 * time.Second
)

// shimConn is the connection to the shim of one sandbox.
type shimConn struct {
	tasks  taskAPI.TTRPCTaskService
	client *ttrpc.Client
	stream string // path of the stream socket; "" for a stock shim
	proc   processID
	local  *shim.Local   // for a stock shim, whose streams are handled here
	gone   chan struct{} // closed when the shim is dead and collected
}

// processID names a process so that a reused number is not taken for it.
type processID struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // start time in ticks since boot, from /proc/PID/stat
}

// alive reports whether the process runs; a zombie does not.
func (p processID) alive() bool {
	state, start, err := processStat(p.PID)
	return err == nil && start == p.Start && state != "Z"
}

// signal sends a signal if the process is still the same.
func (p processID) signal(sig syscall.Signal) error {
	if !p.alive() {
		return unix.ESRCH
	}
	return unix.Kill(p.PID, sig)
}

// waitEnd waits until the process has ended, and collects it if it is a child of ours.
func (p processID) waitEnd(timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		collected, err := unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
		if collected == p.PID {
			return true
		}
		// ECHILD: not a child of ours, or collected elsewhere. A child that looks dead but
		// cannot be collected has threads that still end.
		if errors.Is(err, unix.ECHILD) && !p.alive() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause) // an adopted process cannot be waited for otherwise
	}
}

// processStat reads state and start time of a process.
func processStat(pid int) (state, start string, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", "", err
	}
	// The name in parentheses may hold anything, also spaces and parentheses.
	end := strings.LastIndexByte(string(data), ')')
	fields := strings.Fields(string(data[end+1:]))
	if end < 0 || len(fields) < 20 {
		return "", "", fmt.Errorf("/proc/%d/stat is not readable", pid)
	}
	return fields[0], fields[19], nil
}

// socketPaths returns the sockets of a sandbox's shim: for tasks and for streams.
func socketPaths(state, sandboxID string) (task, stream string) {
	sum := sha256.Sum256([]byte(sandboxID))
	base := filepath.Join(state, socketsDir, hex.EncodeToString(sum[:8]))
	return base + ".t", base + ".s"
}

// processDir returns the folder with what is known of a sandbox's shim.
func processDir(state, sandboxID string) string {
	return filepath.Join(state, processesDir, sandboxID)
}

// shimFile is the name of the record of a shim in its processDir.
const shimFile = "shim.json"

// startShim starts the shim of a sandbox and connects to it.
func (r *Runtime) startShim(ctx context.Context, sandboxID string) (*shimConn, error) {
	dir := processDir(r.opts.State, sandboxID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	taskPath, streamPath := socketPaths(r.opts.State, sandboxID)
	taskSocket, err := listenFile(taskPath)
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	defer taskSocket.Close()
	streamSocket, err := listenFile(streamPath)
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	defer streamSocket.Close()
	messages, err := os.OpenFile(filepath.Join(dir, "messages"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	defer messages.Close()

	cmd := exec.Command(r.opts.Shim, "serve", "-namespace", r.opts.Namespace, "-id", sandboxID)
	cmd.Dir = r.opts.State
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GOMAXPROCS=2", "TMPDIR=" + filepath.Join(r.opts.State, execDir)}
	cmd.Stdout, cmd.Stderr = messages, messages
	cmd.ExtraFiles = []*os.File{taskSocket, streamSocket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // signals to our group are not for it
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	pid := cmd.Process.Pid
	_ = cmd.Process.Release() // it outlives us; waitEnd collects it
	_, start, err := processStat(pid)
	if err != nil {
		return nil, fmt.Errorf("start shim: it ended at once: %s", lastMessage(dir))
	}
	proc := processID{PID: pid, Start: start}
	if err := writeJSON(filepath.Join(dir, shimFile), proc); err != nil {
		_ = proc.signal(unix.SIGKILL)
		proc.waitEnd(shimEndTimeout)
		return nil, fmt.Errorf("start shim: %w", err)
	}
	conn, err := r.connectShim(ctx, sandboxID, proc)
	if err != nil { // nobody would know of it: not even down
		_ = proc.signal(unix.SIGKILL)
		proc.waitEnd(shimEndTimeout)
		return nil, err
	}
	return conn, nil
}

// connectShim connects to a running shim.
func (r *Runtime) connectShim(ctx context.Context, sandboxID string, proc processID) (*shimConn, error) {
	taskPath, streamPath := socketPaths(r.opts.State, sandboxID)
	dialCtx, cancel := context.WithTimeout(ctx, shimStartTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(dialCtx, "unix", taskPath)
	if err != nil {
		return nil, fmt.Errorf("connect to shim: %w", err)
	}
	client := ttrpc.NewClient(conn)
	return &shimConn{
		tasks:  taskAPI.NewTTRPCTaskClient(client),
		client: client,
		stream: streamPath,
		proc:   proc,
		gone:   make(chan struct{}),
	}, nil
}

// readShim reads the record of a sandbox's shim.
func readShim(state, sandboxID string) (processID, error) {
	return readProcess(filepath.Join(processDir(state, sandboxID), shimFile))
}

// readProcess reads the record of a process.
func readProcess(path string) (processID, error) {
	var proc processID
	err := readJSON(path, &proc)
	return proc, err
}

// readJSON reads a record that writeJSON wrote.
func readJSON(path string, value any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, value); err != nil {
		return fmt.Errorf("read record %s: %w", filepath.Base(path), err)
	}
	return nil
}

// errorOutput returns what a program that failed said on its stderr.
func errorOutput(err error) string {
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return strings.TrimSpace(string(failed.Stderr))
	}
	return ""
}

// lastMessage returns the end of what a shim has said.
func lastMessage(dir string) string {
	data, err := os.ReadFile(filepath.Join(dir, "messages"))
	if err != nil || len(data) == 0 {
		return "no message"
	}
	if len(data) > 500 {
		data = data[len(data)-500:]
	}
	return strings.TrimSpace(string(data))
}

// listenFile makes a listening unix socket to be inherited.
func listenFile(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	return listener.File()
}

// removeShimFiles removes what is left of a dead shim.
func removeShimFiles(state, sandboxID string) error {
	taskPath, streamPath := socketPaths(state, sandboxID)
	for _, path := range []string{taskPath, streamPath} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove socket of shim: %w", err)
		}
	}
	return os.RemoveAll(processDir(state, sandboxID))
}

// writeJSON writes a small record in one step.
func writeJSON(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
