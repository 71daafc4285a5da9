package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// The ports of a server.
const (
	Port   = 8080 // TCP and UDP
	Closed = 8081 // TCP; the one that a NetworkPolicy closes
)

// Limits of one asking.
const (
	maxAtOnce   = 64
	tryTimeout  = time.Second
	patience    = 8 * time.Second // what is not there yet, such as a new service, may take so long
	pauseOfTry  = 100 * time.Millisecond
	maxDatagram = 65507
)

// Kinds of questions.
const (
	TCP    = "tcp"    // the server answers with its name
	UDP    = "udp"    // the same by UDP
	Name   = "name"   // a name leads to an address
	MTU    = "mtu"    // how large a packet arrives that must not be cut
	Denied = "denied" // a TCP connection is not possible
)

// Question is one thing to try.
type Question struct {
	Kind string `json:"kind"`
	At   string `json:"at"`   // address and port; of Name a name
	Want string `json:"want"` // the server's name; of Name the address
}

// Answer is what came of the question at the same place of the plan.
type Answer struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	Own   string `json:"own,omitempty"`  // the address that was asked from
	Peer  string `json:"peer,omitempty"` // the address that the server saw
	MTU   int    `json:"mtu,omitempty"`  // the largest packet that arrived
	Said  int    `json:"said,omitempty"` // what the path was said to carry
}

// Main runs the program and returns its exit code.
func Main(args []string, out, errOut io.Writer) int {
	var err error
	switch {
	case len(args) == 2 && args[0] == "serve":
		err = Serve(context.Background(), args[1])
	case len(args) == 2 && args[0] == "ask":
		var plan []Question
		if err = json.Unmarshal([]byte(args[1]), &plan); err == nil {
			err = json.NewEncoder(out).Encode(Ask(context.Background(), plan))
		}
	default:
		err = errors.New("usage: gantry-probe serve NAME | ask PLAN")
	}
	if err != nil {
		_, _ = fmt.Fprintln(errOut, "gantry-probe:", err)
		return 1
	}
	return 0
}

// Serve answers until ctx ends.
func Serve(ctx context.Context, name string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	failed := make(chan error, 3)
	for _, port := range []int{Port, Closed} {
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp4", fmt.Sprintf(":%d", port))
		if err != nil {
			cancel()
			return fmt.Errorf("listening: %w", err)
		}
		context.AfterFunc(ctx, func() { _ = listener.Close() })
		group.Go(func() { failed <- serveTCP(listener, name) })
	}
	packets, err := new(net.ListenConfig).ListenPacket(ctx, "udp4", fmt.Sprintf(":%d", Port))
	if err != nil {
		cancel()
		return fmt.Errorf("listening: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = packets.Close() })
	group.Go(func() { failed <- serveUDP(packets, name) })
	err = <-failed
	if ctx.Err() != nil {
		return nil
	}
	cancel()
	return err
}

func serveTCP(listener net.Listener, name string) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		_ = conn.SetDeadline(time.Now().Add(tryTimeout))
		_, _ = fmt.Fprintln(conn, name, host(conn.RemoteAddr()))
		_ = conn.Close()
	}
}

// serveUDP answers with as many bytes as it got, so that a path is tried both ways.
func serveUDP(packets net.PacketConn, name string) error {
	buf := make([]byte, maxDatagram)
	if err := neverCut(packets); err != nil {
		return err
	}
	for {
		n, peer, err := packets.ReadFrom(buf)
		if err != nil {
			return err
		}
		head := fmt.Sprintln(name, host(peer))
		answer := buf[:max(n, len(head))]
		clear(answer)
		copy(answer, head)
		_, _ = packets.WriteTo(answer, peer) // one that is too long: who asks sees no answer
	}
}

func host(addr net.Addr) string {
	h, _, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	return h
}

// Ask tries everything in the plan; the answers are in its order.
func Ask(ctx context.Context, plan []Question) []Answer {
	answers := make([]Answer, len(plan))
	slots := make(chan struct{}, maxAtOnce)
	var group sync.WaitGroup
	for i, q := range plan {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			answers[i] = try(ctx, q)
		})
	}
	group.Wait()
	return answers
}

// try asks until the answer is good, or patience ends.
func try(ctx context.Context, q Question) Answer {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		answer, err := once(ctx, q)
		if err == nil {
			answer.OK = true
			return answer
		}
		answer.Error = err.Error()
		select {
		case <-ctx.Done():
			return answer
		case <-time.After(pauseOfTry):
		}
	}
}

func once(ctx context.Context, q Question) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	switch q.Kind {
	case TCP:
		return askServer(ctx, "tcp4", q)
	case UDP:
		return askServer(ctx, "udp4", q)
	case Name:
		addrs, err := net.DefaultResolver.LookupHost(ctx, q.At)
		if err == nil && (len(addrs) != 1 || addrs[0] != q.Want) {
			err = fmt.Errorf("%s leads to %v, want %s", q.At, addrs, q.Want)
		}
		return Answer{}, err
	case MTU:
		return measure(ctx, q)
	case Denied:
		conn, err := new(net.Dialer).DialContext(ctx, "tcp4", q.At)
		if err != nil {
			return Answer{}, nil
		}
		_ = conn.Close()
		return Answer{}, errors.New("the connection was possible")
	}
	return Answer{}, fmt.Errorf("unknown question %q", q.Kind)
}

// askServer reads the name of the server and the address it saw.
func askServer(ctx context.Context, network string, q Question) (Answer, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, q.At)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if network == "udp4" {
		if _, err := conn.Write([]byte("?")); err != nil {
			return Answer{}, err
		}
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	if err != nil {
		return Answer{}, err
	}
	name, peer, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	if name != q.Want {
		return Answer{}, fmt.Errorf("%s answered, want %s", name, q.Want)
	}
	return Answer{Own: host(conn.LocalAddr()), Peer: strings.TrimRight(peer, "\x00\n")}, nil
}
