//go:build linux

package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/platform/build/job"
)

// oomScore makes the kernel take builds before anything that serves.
const oomScore = "900"

// Main runs the program and returns its exit code. Its standard input holds one job.Setup.
func Main(stdin io.Reader, stdout io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, stdin, stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gantry-build:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	var setup job.Setup
	decoder := json.NewDecoder(stdin)
	if err := decoder.Decode(&setup); err != nil {
		return fmt.Errorf("reading the setup: %w", err)
	}
	// The other end of standard input is gantry's: no more builds without it, even if the
	// kernel's signal of a parent's death were missed.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, io.MultiReader(decoder.Buffered(), stdin))
		cancel()
	}()
	if err := prepare(setup); err != nil {
		return err
	}
	engine, err := newEngine(ctx, setup)
	if err != nil {
		return err
	}
	defer engine.Close()
	return serve(ctx, engine, setup.Socket, stdout)
}

// serve answers on the socket until ctx ends.
func serve(ctx context.Context, e *engine, socket string, stdout io.Writer) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing an old socket: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("listening for builds: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return fmt.Errorf("protecting the socket: %w", err)
	}
	server := &http.Server{Handler: e.handler(), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	if _, err := fmt.Fprintln(stdout, job.Ready); err != nil {
		return fmt.Errorf("saying that builds are taken: %w", err)
	}
	select {
	case err := <-done:
		return fmt.Errorf("serving builds: %w", err)
	case <-ctx.Done():
	}
	if err := server.Close(); err != nil {
		return fmt.Errorf("ending builds: %w", err)
	}
	<-done
	return nil
}

// prepare gives the process a view of the machine of its own.
func prepare(setup job.Setup) error {
	if os.Getpid() != 1 {
		return errors.New("this program is started by gantry, in namespaces of its own")
	}
	for _, dir := range []string{setup.Dir, filepath.Join(setup.Dir, "tmp"), filepath.Join(setup.Dir, "source")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making the build folder: %w", err)
		}
	}
	if err := lock(filepath.Join(setup.Dir, "lock")); err != nil {
		return err
	}
	for _, dir := range []string{"tmp", "source", "engine/runc-overlayfs/executor", "engine/runc-overlayfs/cachemounts"} {
		if err := clearDir(filepath.Join(setup.Dir, dir)); err != nil {
			return fmt.Errorf("removing what an earlier build left: %w", err)
		}
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0); err != nil && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("making builds the first to go without memory: %w", err)
	}
	if err := os.Setenv("TMPDIR", filepath.Join(setup.Dir, "tmp")); err != nil {
		return err
	}
	return mountAll(setup)
}

// lock holds the folder for this process: two engines on one cache would ruin it.
func lock(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("locking the build folder: %w", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil // the file stays open as long as the process
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("locking the build folder, which another process holds: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// clearDir empties a folder that may be absent.
func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
	}
	return err
}

// mountAll mounts what differs from the machine: /proc of the own PID namespace, an empty /run, where runc keeps its
// state, and the name servers.
func mountAll(setup job.Setup) error {
	resolv, err := resolvConf(setup)
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("detaching from the machine's mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	// Rules for the network are about IPv4: there is no other in this process's namespace.
	for _, scope := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/disable_ipv6", []byte("1"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("switching IPv6 off for builds: %w", err)
		}
	}
	runc := "/run/runc"
	if err := os.MkdirAll(runc, 0o711); err != nil {
		return fmt.Errorf("making runc's folder: %w", err)
	}
	if err := unix.Mount("tmpfs", runc, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=711"); err != nil {
		return fmt.Errorf("mounting runc's folder: %w", err)
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return nil //nolint:nilerr // a machine without name servers has none to replace
	}
	if err := unix.Mount(resolv, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting the list of name servers: %w", err)
	}
	return nil
}

// resolvConf writes the list of name servers.
func resolvConf(setup job.Setup) (string, error) {
	path := filepath.Join(setup.Dir, "resolv.conf")
	var text []byte
	for _, server := range setup.DNS {
		text = fmt.Appendf(text, "nameserver %s\n", server)
	}
	if len(setup.DNS) == 0 {
		text, _ = os.ReadFile("/etc/resolv.conf")
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return "", fmt.Errorf("writing the list of name servers: %w", err)
	}
	return path, nil
}
