package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"golang.org/x/sys/unix"
)

// ErrNoFence is what Fence answers of a shim that is too old to know of deadlines.
var ErrNoFence = errors.New("the shim cannot hold a deadline")

// errFenced is why nothing starts in a pod after its deadline.
var errFenced = errors.New("the pod was fenced: its node was cut off for too long")

// The pause between two rounds of killing, how many there are at most, and the limit of one call to the inner service.
const (
	killPause  = 50 * time.Millisecond
	killRounds = 1200
	killCall   = 5 * time.Second
)

// fence is the deadline at which all containers are killed. It is held by the kernel's clock of the time since boot, which
// goes on while the machine sleeps, and by this program alone: nobody else needs to be alive. It is made when it is first
// asked for; most pods never do.
type fence struct {
	kill func() // called once, when the deadline has passed

	mu    sync.Mutex // guards the fields below
	timer int        // file descriptor of the timer; 0: none yet
	fired bool
}

// set moves the deadline; 0 takes it away. It says whether it has passed already, which is for ever.
func (f *fence) set(at time.Duration) (fired bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fired {
		return true, nil
	}
	if f.timer == 0 {
		if at == 0 {
			return false, nil
		}
		fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
		if err != nil {
			return false, fmt.Errorf("make a timer: %w", err)
		}
		f.timer = fd
		go f.await(os.NewFile(uintptr(fd), "fence")) // ends with the program, or by firing
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(at.Nanoseconds())}
	if err := unix.TimerfdSettime(f.timer, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		return false, fmt.Errorf("set the timer: %w", err)
	}
	return false, nil
}

// await waits for the deadline and kills. A deadline that is moved between its passing and the kill counts as moved: who
// moved it had heard from a server meanwhile.
func (f *fence) await(timer *os.File) {
	var count [8]byte
	for {
		if _, err := timer.Read(count[:]); err == nil {
			break
		}
		time.Sleep(killPause) // cannot be, and must not cost a processor
	}
	f.mu.Lock()
	f.fired = true
	f.mu.Unlock()
	f.kill()
}

// passed says whether the deadline has passed.
func (f *fence) passed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// killAll kills every process of every container, until all have ended: one that is being started meanwhile too. It does so
// by the kernel's lists of processes, because runc may need more memory or time than the machine has left.
func (t *tasks) killAll(ctx context.Context) {
	for round := range killRounds {
		t.mu.Lock()
		running := map[string]string{}
		for id, c := range t.containers {
			if c.exit == nil {
				running[id] = c.cgroup
			}
		}
		t.mu.Unlock()
		if len(running) == 0 && round > 0 {
			return
		}
		for id, cgroup := range running {
			if killCgroup(cgroup) && round%20 != 19 {
				continue
			}
			callCtx, cancel := context.WithTimeout(ctx, killCall)
			_, _ = t.Kill(callCtx, &taskAPI.KillRequest{ID: id, Signal: uint32(unix.SIGKILL), All: true}) // tried again
			cancel()
		}
		time.Sleep(killPause)
	}
}

// killCgroup kills the processes of a cgroup and those below it; false if it knows of none.
func killCgroup(cgroup string) bool {
	if cgroup == "" || filepath.Dir(cgroup) == "/sys/fs" {
		return false
	}
	if os.WriteFile(filepath.Join(cgroup, "cgroup.kill"), []byte("1"), 0) == nil {
		return true
	}
	found := false
	_ = filepath.WalkDir(cgroup, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.Name() != "cgroup.procs" {
			return nil //nolint:nilerr // a folder that went meanwhile has no processes
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // see above
		}
		for line := range strings.Lines(string(data)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 1 && pid != os.Getpid() {
				found = unix.Kill(pid, unix.SIGKILL) == nil || found
			}
		}
		return nil
	})
	return found
}

// serveFence moves the deadline as a client asks.
func serveFence(conn net.Conn, t *tasks, greeting hello) {
	var answer reply
	fired, err := t.fence.set(greeting.At)
	answer.Fired = fired
	if err != nil {
		answer.Error = err.Error()
	}
	line, _ := json.Marshal(answer)       // two plain fields cannot fail
	_, _ = conn.Write(append(line, '\n')) // a client that is gone asks again
}

// Fence moves the time, since the machine's boot, at which the shim behind socket kills its pod; 0 takes it away. fired says
// that this has happened: nothing starts in the pod any more.
func Fence(ctx context.Context, socket string, at time.Duration) (fired bool, err error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return false, fmt.Errorf("reach the shim: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := greet(conn, hello{Op: "fence", At: at}); err != nil {
		return false, err
	}
	var answer reply
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		if ctx.Err() == nil {
			return false, fmt.Errorf("%w: %w", ErrNoFence, err)
		}
		return false, fmt.Errorf("read the shim's answer: %w", err)
	}
	if answer.Error != "" {
		return false, errors.New(answer.Error)
	}
	return answer.Fired, nil
}
