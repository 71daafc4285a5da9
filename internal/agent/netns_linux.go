package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// connectTimeout bounds a connection to a pod's own loopback.
const connectTimeout = 10 * time.Second

// dialInNamespace connects to a port on the loopback address of a network namespace, IPv4
// first. Only the socket is made inside: it stays in its namespace wherever it is used.
func dialInNamespace(ctx context.Context, path string, port int32) (net.Conn, error) {
	var first error
	for _, address := range []unix.Sockaddr{
		&unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}},
		&unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}},
	} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		conn, err := dialSocket(path, address)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

func dialSocket(path string, address unix.Sockaddr) (net.Conn, error) {
	family := unix.AF_INET
	if _, ok := address.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := socketInNamespace(path, family)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "pod")
	defer file.Close()
	timeout := unix.NsecToTimeval(connectTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return nil, fmt.Errorf("bounding the connection: %w", err)
	}
	if err := unix.Connect(fd, address); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return net.FileConn(file)
}

// socketInNamespace makes a socket that belongs to another network namespace. The thread goes
// there and back; if it could not come back it must not be used again, so it is given up.
func socketInNamespace(path string, family int) (int, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		fd, err := func() (int, error) {
			own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return -1, fmt.Errorf("opening the own network namespace: %w", err)
			}
			defer unix.Close(own)
			other, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return -1, fmt.Errorf("opening the pod's network namespace: %w", err)
			}
			defer unix.Close(other)
			if err := unix.Setns(other, unix.CLONE_NEWNET); err != nil {
				return -1, fmt.Errorf("entering the pod's network namespace: %w", err)
			}
			fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
				if err == nil {
					_ = unix.Close(fd)
				}
				return -1, errStranded
			}
			return fd, err
		}()
		if !errors.Is(err, errStranded) {
			runtime.UnlockOSThread()
		}
		done <- result{fd, err}
	}()
	r := <-done
	return r.fd, r.err
}

var errStranded = errors.New("cannot leave the pod's network namespace")
