//go:build linux

package agent

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDialInNamespace reaches a listener that only the other namespace has.
func TestDialInNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	path := filepath.Join(t.TempDir(), "net")
	listener := make(chan net.Listener, 1)
	go func() {
		defer close(listener)
		runtime.LockOSThread() // the thread stays in its namespace and ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		// A child is forked from this thread, so it acts in the new namespace.
		if exec.Command("ip", "link", "set", "lo", "up").Run() != nil || os.WriteFile(path, nil, 0o600) != nil {
			return
		}
		if unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "") != nil {
			return
		}
		if l, err := net.Listen("tcp4", "127.0.0.1:0"); err == nil {
			listener <- l
		}
	}()
	l := <-listener
	if l == nil {
		t.Skip("cannot make a network namespace")
	}
	t.Cleanup(func() {
		_ = l.Close()
		_ = exec.Command("umount", path).Run()
	})
	go func() { // ends when the listener is closed
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("hi"))
			_ = conn.Close()
		}
	}()
	conn, err := dialInNamespace(t.Context(), path, int32(l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 2)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "hi" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if _, err := dialInNamespace(t.Context(), path, 1); err == nil {
		t.Error("a closed port was reached")
	}
}
