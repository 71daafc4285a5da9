package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Of packets: the headers of IPv4 and UDP, what every path carries (RFC 791), and how long an
// answer may take before a size counts as lost.
const (
	headers   = 28
	leastMTU  = 576
	mostMTU   = 65535 // loopback says one more than a packet can have
	sizeTries = 2
	sizeWait  = 150 * time.Millisecond
)

// measure finds the largest packet that arrives and comes back uncut. The path says what it
// carries by ICMP; where packets of that size are lost in silence, the size is searched for.
func measure(ctx context.Context, q Question) (Answer, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp4", q.At)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = conn.Close() }()
	if err := neverCut(conn); err != nil {
		return Answer{}, err
	}
	said, err := settledMTU(conn)
	if err != nil {
		return Answer{}, err
	}
	if arrives(conn, said) {
		return Answer{MTU: said, Said: said}, nil
	}
	if !arrives(conn, leastMTU) {
		return Answer{Said: said}, errors.New("no packet comes back")
	}
	low, high := leastMTU, said
	for high-low > 1 {
		if middle := (low + high) / 2; arrives(conn, middle) {
			low = middle
		} else {
			high = middle
		}
	}
	return Answer{MTU: low, Said: said}, fmt.Errorf("packets above %d bytes are lost, though the path is said to carry %d", low, said)
}

// settledMTU sends packets as large as the path is said to be until nobody says less.
func settledMTU(conn net.Conn) (int, error) {
	for {
		before, err := pathMTU(conn)
		if err != nil {
			return 0, err
		}
		arrives(conn, before)
		after, err := pathMTU(conn)
		if err != nil || after == before {
			return after, err
		}
	}
}

// arrives reports whether a packet of that many bytes comes back.
func arrives(conn net.Conn, bytes int) bool {
	buf := make([]byte, bytes)
	for range sizeTries {
		_ = conn.SetDeadline(time.Now().Add(sizeWait))
		if _, err := conn.Write(buf[:bytes-headers]); err != nil {
			continue
		}
		for {
			n, err := conn.Read(buf)
			if err != nil {
				break
			}
			if n == bytes-headers {
				return true
			}
		}
	}
	return false
}

// neverCut makes the kernel send packets whole or not at all.
func neverCut(conn any) error {
	return control(conn, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
}

// pathMTU is what the kernel knows of the path.
func pathMTU(conn net.Conn) (mtu int, err error) {
	err = control(conn, func(fd int) (err error) {
		mtu, err = unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
		return err
	})
	return min(mtu, mostMTU), err
}

func control(conn any, do func(fd int) error) error {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return errors.New("the connection has no socket")
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil { //nolint:gosec // a descriptor
		return err
	}
	return inner
}
