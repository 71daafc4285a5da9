package routes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/network/feed"
)

// startTimeout bounds how long a started edge may take to answer.
const startTimeout = 10 * time.Second

// fileHash names a program by its content.
func fileHash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("reading the edge's program: %w", err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("reading the edge's program: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)[:12]), nil
}

// dial connects to a running edge and returns its greeting.
func dial(ctx context.Context, socket string) (net.Conn, feed.Hello, error) {
	var hello feed.Hello
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, hello, fmt.Errorf("connecting to the edge: %w", err)
	}
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if err := feed.Expect(conn, feed.KindHello, &hello); err != nil {
		_ = conn.Close()
		return nil, hello, fmt.Errorf("greeting the edge: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	return conn, hello, nil
}

// absent reports whether an error of dial says that no edge runs.
func absent(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

// connect returns a connection to an edge of our build: one that runs, or one started now,
// which takes over from any other.
func (f *Feeder) connect(ctx context.Context) (net.Conn, feed.Hello, error) {
	build, err := fileHash(f.opts.Binary)
	if err != nil {
		return nil, feed.Hello{}, err
	}
	conn, hello, err := dial(ctx, f.opts.Socket)
	if err == nil && hello.Build == build && hello.Version == feed.Version {
		return conn, hello, nil
	}
	if err == nil {
		f.log.Info("replacing the edge", "pid", hello.PID, "build", hello.Build, "newBuild", build)
		_ = conn.Close()
	}
	if err := f.start(build); err != nil {
		return nil, hello, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, hello, err = dial(ctx, f.opts.Socket)
		if err == nil && hello.Build == build {
			return conn, hello, nil
		}
		if err == nil {
			_ = conn.Close()
			err = fmt.Errorf("the older edge, pid %d, is still there", hello.PID)
		}
		if f.reap() {
			return nil, hello, errors.New("the edge ended at its start; its log says why")
		}
		if !lifecycle.Pause(ctx, 2*time.Millisecond) {
			return nil, hello, fmt.Errorf("starting the edge: %w", err)
		}
	}
}

// start runs the edge in a session of its own, so that nothing that ends us ends it.
func (f *Feeder) start(build string) error {
	log, err := os.OpenFile(f.opts.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("opening the edge's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(f.opts.Binary, "-socket", f.opts.Socket, "-state", f.opts.StateDir, "-dns", join(f.opts.Listen),
		"-uid", strconv.Itoa(f.opts.UID), "-build", build, "-resolv-conf", f.opts.ResolvConf)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the edge: %w", err)
	}
	f.log.Info("edge started", "pid", cmd.Process.Pid, "build", build)
	f.children = append(f.children, cmd.Process.Pid)
	return cmd.Process.Release() // reap waits for it
}

func join(list []netip.AddrPort) string {
	texts := make([]string, len(list))
	for i, at := range list {
		texts[i] = at.String()
	}
	return strings.Join(texts, ",")
}

// reap collects edges that we started and that have ended. It reports whether the last one
// is among them.
func (f *Feeder) reap() bool {
	last := false
	var running []int
	for i, pid := range f.children {
		got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if err == nil && got == 0 {
			running = append(running, pid)
		} else {
			last = i == len(f.children)-1
		}
	}
	f.children = running
	return last
}

// Stop ends the edge behind a socket and waits until it is gone. None running is fine.
func Stop(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*startTimeout)
	defer cancel()
	conn, hello, err := dial(ctx, socket)
	for err != nil && !absent(err) { // one that hands over hangs up
		if !lifecycle.Pause(ctx, 5*time.Millisecond) {
			return err
		}
		conn, hello, err = dial(ctx, socket)
	}
	if err != nil {
		return removeSocket(socket)
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	var ack feed.Ack
	if err := feed.Write(conn, feed.KindStop, nil); err != nil {
		return fmt.Errorf("stopping the edge: %w", err)
	}
	if err := feed.Expect(conn, feed.KindAck, &ack); err != nil {
		return fmt.Errorf("stopping the edge: %w", err)
	}
	// Its listening socket closes last.
	for {
		again, _, err := dial(ctx, socket)
		if absent(err) {
			return removeSocket(socket)
		}
		if err == nil {
			_ = again.Close()
		}
		if !lifecycle.Pause(ctx, 5*time.Millisecond) {
			return fmt.Errorf("waiting for the end of the edge, pid %d: %w", hello.PID, ctx.Err())
		}
	}
}

func removeSocket(socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the edge's socket: %w", err)
	}
	return nil
}

// Stats asks a running edge for its counters.
func Stats(ctx context.Context, socket string) (feed.Stats, error) {
	var stats feed.Stats
	conn, _, err := dial(ctx, socket)
	if err != nil {
		return stats, err
	}
	defer func() { _ = conn.Close() }()
	if err := feed.Write(conn, feed.KindStats, nil); err != nil {
		return stats, fmt.Errorf("asking the edge: %w", err)
	}
	if err := feed.Expect(conn, feed.KindStats, &stats); err != nil {
		return stats, fmt.Errorf("asking the edge: %w", err)
	}
	return stats, nil
}
