package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/network/feed"
)

// sockets are all that the edge listens on.
type sockets struct {
	control *net.UnixListener
	udp     []*net.UDPConn
	tcp     []*net.TCPListener
	http    []*net.TCPListener // the gateway's; it opens and closes them itself
}

// names says what the sockets are, in the order in which send attaches them.
func (s sockets) names() []string {
	out := []string{"control"}
	for _, conn := range s.udp {
		out = append(out, "udp "+conn.LocalAddr().String())
	}
	for _, listener := range s.tcp {
		out = append(out, "tcp "+listener.Addr().String())
	}
	for _, listener := range s.http {
		out = append(out, "http "+listener.Addr().String())
	}
	return out
}

func (s sockets) close() {
	if s.control != nil {
		_ = s.control.Close()
	}
	for _, conn := range s.udp {
		_ = conn.Close()
	}
	for _, listener := range s.tcp {
		_ = listener.Close()
	}
	for _, listener := range s.http {
		_ = listener.Close()
	}
}

// acquire takes the sockets over from a running edge, or makes them. old is the connection on
// which the older one waits to hear that we are ready.
func acquire(ctx context.Context, opts Options) (s sockets, old *net.UnixConn, err error) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", opts.Socket)
	if err != nil {
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return s, nil, fmt.Errorf("edge: looking for an older edge: %w", err)
		}
		s, err = listenAll(ctx, opts, sockets{})
		return s, nil, err
	}
	old, ok := conn.(*net.UnixConn)
	if !ok {
		return s, nil, fmt.Errorf("edge: the control socket is a %T", conn)
	}
	got, err := takeOver(old)
	if err == nil {
		s, err = listenAll(ctx, opts, got)
	}
	if err != nil {
		_ = old.Close()
		return s, nil, fmt.Errorf("edge: taking over: %w", err)
	}
	return s, old, nil
}

// takeOver asks the older edge for its sockets.
func takeOver(old *net.UnixConn) (sockets, error) {
	if err := old.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return sockets{}, err
	}
	var hello feed.Hello
	if err := feed.Expect(old, feed.KindHello, &hello); err != nil {
		return sockets{}, err
	}
	if err := feed.Write(old, feed.KindTakeover, nil); err != nil {
		return sockets{}, err
	}
	return receive(old)
}

// listenAll makes those of the wanted sockets that have does not hold and closes what is not
// wanted any more.
func listenAll(ctx context.Context, opts Options, have sockets) (out sockets, err error) {
	defer func() {
		if err != nil {
			out.close()
			have.close()
		}
	}()
	if out.control, have.control = have.control, nil; out.control == nil {
		_ = os.Remove(opts.Socket) // nobody answers on it
		if out.control, err = net.ListenUnix("unix", &net.UnixAddr{Name: opts.Socket, Net: "unix"}); err != nil {
			return out, fmt.Errorf("edge: %w", err)
		}
		if err := os.Chmod(opts.Socket, 0o600); err != nil {
			return out, fmt.Errorf("edge: %w", err)
		}
	}
	out.http, have.http = have.http, nil
	out.control.SetUnlinkOnClose(false) // it may live on in a newer edge
	// The address may come to the node later.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var setErr error
		err := raw.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(err, setErr)
	}}
	for _, at := range opts.Listen {
		udp := take(&have.udp, func(c *net.UDPConn) bool { return c.LocalAddr().String() == at.String() })
		if udp == nil {
			conn, err := config.ListenPacket(ctx, "udp4", at.String())
			if err != nil {
				return out, fmt.Errorf("edge: %w", err)
			}
			udp = conn.(*net.UDPConn)
		}
		out.udp = append(out.udp, udp)
		tcp := take(&have.tcp, func(l *net.TCPListener) bool { return l.Addr().String() == at.String() })
		if tcp == nil {
			listener, err := config.Listen(ctx, "tcp4", at.String())
			if err != nil {
				return out, fmt.Errorf("edge: %w", err)
			}
			tcp = listener.(*net.TCPListener)
		}
		out.tcp = append(out.tcp, tcp)
	}
	have.close()
	return out, nil
}

// take removes and returns the first that fits, or nil.
func take[T any](list *[]*T, fits func(*T) bool) *T {
	for i, item := range *list {
		if fits(item) {
			*list = append((*list)[:i:i], (*list)[i+1:]...)
			return item
		}
	}
	return nil
}

// send passes all sockets to the peer in one message.
func (s sockets) send(conn *net.UnixConn) error {
	raws := []syscall.Conn{s.control}
	for _, c := range s.udp {
		raws = append(raws, c)
	}
	for _, l := range s.tcp {
		raws = append(raws, l)
	}
	for _, l := range s.http {
		raws = append(raws, l)
	}
	return withFDs(raws, nil, func(fds []int) error {
		frame, err := feed.Encode(feed.KindSockets, feed.Sockets{Names: s.names()})
		if err != nil {
			return err
		}
		_, _, err = conn.WriteMsgUnix(frame, unix.UnixRights(fds...), nil)
		return err
	})
}

// withFDs calls do with the sockets' descriptors, which stay theirs: a copy by File would
// need its blocking mode watched, for the peer shares it.
func withFDs(conns []syscall.Conn, fds []int, do func([]int) error) error {
	if len(conns) == 0 {
		return do(fds)
	}
	raw, err := conns[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = withFDs(conns[1:], append(fds, int(fd)), do) }); err != nil {
		return err
	}
	return inner
}

// receive reads the message of send.
func receive(conn *net.UnixConn) (s sockets, err error) {
	frame, rights := make([]byte, 64<<10), make([]byte, 4096)
	n, rightsN, _, _, err := conn.ReadMsgUnix(frame, rights)
	if err != nil {
		return s, fmt.Errorf("receiving sockets: %w", err)
	}
	var names feed.Sockets
	if err := feed.Expect(strings.NewReader(string(frame[:n])), feed.KindSockets, &names); err != nil {
		return s, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rightsN])
	if err != nil || len(messages) != 1 {
		return s, fmt.Errorf("receiving sockets: %d messages, %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return s, fmt.Errorf("receiving sockets: %w", err)
	}
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "taken over")
		if err == nil && i < len(names.Names) {
			err = s.add(names.Names[i], file)
		}
		_ = file.Close() // add made a copy
	}
	if err != nil {
		s.close()
		return sockets{}, fmt.Errorf("receiving sockets: %w", err)
	}
	return s, nil
}

// add keeps a copy of a socket that was received under a name.
func (s *sockets) add(name string, file *os.File) error {
	if strings.HasPrefix(name, "udp ") {
		conn, err := net.FilePacketConn(file)
		if err != nil {
			return err
		}
		if udp, ok := conn.(*net.UDPConn); ok {
			s.udp = append(s.udp, udp)
			return nil
		}
		return errors.Join(fmt.Errorf("%s is a %T", name, conn), conn.Close())
	}
	listener, err := net.FileListener(file)
	if err != nil {
		return err
	}
	switch l := listener.(type) {
	case *net.UnixListener:
		s.control = l
	case *net.TCPListener:
		if strings.HasPrefix(name, "http ") {
			s.http = append(s.http, l)
		} else {
			s.tcp = append(s.tcp, l)
		}
	}
	return nil
}
