package shim

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/fifo"
	"golang.org/x/sys/unix"
)

// helloTimeout bounds the wait for a client's first line.
const helloTimeout = 5 * time.Second

// serveStreams answers clients of the stream socket until the listener is closed.
func serveStreams(ctx context.Context, listener net.Listener, t *tasks) {
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		clients.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			serveStream(ctx, conn, t)
		})
	}
}

// serveStream answers one client.
func serveStream(ctx context.Context, conn net.Conn, t *tasks) {
	_ = conn.SetReadDeadline(time.Now().Add(helloTimeout)) // a unix socket supports deadlines
	reader := bufio.NewReaderSize(conn, 4<<10)
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return
	}
	var greeting hello
	if err := json.Unmarshal(line, &greeting); err != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	switch greeting.Op {
	case "events":
		serveEvents(conn, t)
	case "fence":
		serveFence(conn, t, greeting)
	case "attach":
		serveAttach(ctx, conn, reader, t, greeting)
	}
}

// serveEvents sends events until the client goes.
func serveEvents(conn net.Conn, t *tasks) {
	now, watcher := t.watch()
	defer t.unwatch(watcher)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = conn.Read(make([]byte, 1)) // a client never sends more: this ends with the connection
	}()
	encoder := json.NewEncoder(conn)
	for _, event := range now {
		if encoder.Encode(event) != nil {
			return
		}
	}
	for {
		select {
		case <-gone:
			return
		case event, ok := <-watcher:
			if !ok || encoder.Encode(event) != nil {
				return
			}
		}
	}
}

// session is one attached client. Output waits in a bounded queue, so that a slow client
// never holds up the container's log.
type session struct {
	queue chan frame
	once  sync.Once
}

type frame struct {
	kind    byte
	payload []byte
}

func newSession() *session { return &session{queue: make(chan frame, 128)} }

// offer queues a copy of a piece of output; false when the queue is full. It is called
// by one goroutine at a time and never after end.
func (s *session) offer(kind byte, piece []byte) bool {
	select {
	case s.queue <- frame{kind, append([]byte(nil), piece...)}:
		return true
	default:
		return false
	}
}

// end lets the client read what is queued and then closes its connection.
func (s *session) end() { s.once.Do(func() { close(s.queue) }) }

// serveAttach runs one attach session.
func serveAttach(ctx context.Context, conn net.Conn, reader io.Reader, t *tasks, greeting hello) {
	c := t.get(greeting.Container)
	s := newSession()
	var answer reply
	switch {
	case c == nil || c.output == nil:
		answer.Error = fmt.Sprintf("container %s is not here", greeting.Container)
	case greeting.Stdin && c.output.stdin == "":
		answer.Error = "the container has no stdin"
	case !c.output.join(s):
		answer.Error = fmt.Sprintf("container %s has ended", greeting.Container)
	}
	line, _ := json.Marshal(answer) // a struct of one string cannot fail
	if _, err := conn.Write(append(line, '\n')); err != nil || answer.Error != "" {
		if c != nil && c.output != nil {
			c.output.leave(s)
		}
		return
	}
	defer c.output.leave(s)

	input := make(chan struct{})
	go func() {
		defer close(input)
		receiveInput(ctx, reader, t, greeting, c.output)
	}()
	for {
		select {
		case f, ok := <-s.queue:
			if !ok || writeFrame(conn, f.kind, f.payload) != nil {
				_ = conn.Close() // ends receiveInput
				<-input
				return
			}
		case <-input:
			return
		}
	}
}

// receiveInput handles the client's frames until it goes.
func receiveInput(ctx context.Context, reader io.Reader, t *tasks, greeting hello, out *output) {
	var stdin io.WriteCloser
	if greeting.Stdin {
		pipe, err := fifo.OpenFifo(ctx, out.stdin, unix.O_WRONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return
		}
		stdin = pipe
	}
	closeStdin := func() {
		if stdin == nil {
			return
		}
		_ = stdin.Close()
		stdin = nil
		if out.opts.StdinOnce {
			_, _ = t.CloseIO(ctx, &taskAPI.CloseIORequest{ID: greeting.Container, Stdin: true}) // gone: closed as well
		}
	}
	defer closeStdin()
	buf := make([]byte, maxFrame)
	for {
		kind, payload, err := readFrame(reader, buf)
		if err != nil {
			return
		}
		switch kind {
		case frameStdin:
			if stdin != nil {
				if _, err := stdin.Write(payload); err != nil {
					closeStdin()
				}
			}
		case frameCloseStdin:
			closeStdin()
		case frameResize:
			if len(payload) == 4 {
				_, _ = t.ResizePty(ctx, &taskAPI.ResizePtyRequest{ // a size that cannot be set is no reason to end
					ID:     greeting.Container,
					Width:  uint32(binary.BigEndian.Uint16(payload)),
					Height: uint32(binary.BigEndian.Uint16(payload[2:])),
				})
			}
		}
	}
}
