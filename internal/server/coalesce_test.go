package server

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// gatedConn counts the writes that reach it and holds each back until it is let through.
type gatedConn struct {
	net.Conn
	gate chan error // one value a write

	mu     sync.Mutex
	writes [][]byte
}

func (c *gatedConn) Write(p []byte) (int, error) {
	if err := <-c.gate; err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes = append(c.writes, bytes.Clone(p))
	return len(p), nil
}

func (c *gatedConn) SetWriteDeadline(time.Time) error { return nil }
func (c *gatedConn) Close() error                     { return nil }

func newBuffers() *sync.Pool { return &sync.Pool{New: func() any { return new([]byte) }} }

func TestWritesWhileSendingGoTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gated := &gatedConn{gate: make(chan error)}
		conn := newCoalescingConn(gated, newBuffers())
		write := func(text string) {
			t.Helper()
			if n, err := conn.Write([]byte(text)); n != len(text) || err != nil {
				t.Fatalf("Write(%q) = %d, %v", text, n, err)
			}
		}
		write("a")
		synctest.Wait() // the first write is at the gate
		for _, text := range []string{"b", "c", "d"} {
			write(text)
		}
		gated.gate <- nil
		gated.gate <- nil
		synctest.Wait()
		if len(gated.writes) != 2 || string(gated.writes[0]) != "a" || string(gated.writes[1]) != "bcd" {
			t.Fatalf("the connection was written %q, want [a bcd]", gated.writes)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWriterWaitsForASlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gated := &gatedConn{gate: make(chan error)}
		conn := newCoalescingConn(gated, newBuffers())
		chunk := make([]byte, maxPending)
		written := 0
		done := make(chan error)
		go func() {
			for range 4 {
				if _, err := conn.Write(chunk); err != nil {
					done <- err
					return
				}
				written++
			}
			done <- nil
		}()
		synctest.Wait()
		if written != 2 { // one on its way, one pending
			t.Fatalf("%d chunks were taken from a writer whose reader does not read, want 2", written)
		}
		for range 4 {
			gated.gate <- nil
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestErrorOfSendingEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gated := &gatedConn{gate: make(chan error, 1)}
		conn := newCoalescingConn(gated, newBuffers())
		lost := errors.New("connection lost")
		gated.gate <- lost
		if _, err := conn.Write([]byte("a")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := conn.Write([]byte("b")); !errors.Is(err, lost) {
			t.Fatalf("Write after a failed sending = %v, want %v", err, lost)
		}
	})
}

func TestCloseSendsTheRestAndFreesWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gated := &gatedConn{gate: make(chan error)}
		conn := newCoalescingConn(gated, newBuffers())
		if _, err := conn.Write(make([]byte, maxPending)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := conn.Write(make([]byte, maxPending)); err != nil {
			t.Fatal(err)
		}
		blocked := make(chan error)
		go func() {
			_, err := conn.Write([]byte("late"))
			blocked <- err
		}()
		synctest.Wait()
		closed := make(chan error)
		go func() { closed <- conn.Close() }()
		if err := <-blocked; !errors.Is(err, net.ErrClosed) {
			t.Fatalf("a writer waiting at Close got %v, want %v", err, net.ErrClosed)
		}
		gated.gate <- nil
		gated.gate <- nil
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		if len(gated.writes) != 2 {
			t.Fatalf("%d batches were sent before the end, want 2", len(gated.writes))
		}
		if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("second Close = %v, want %v", err, net.ErrClosed)
		}
	})
}

func TestCoalescedBytesKeepTheirOrder(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	want := make([]byte, 4<<20)
	for i := range want {
		want[i] = byte(i * 7 >> 3)
	}
	go func() {
		conn, err := newCoalescingListener(listener).Accept()
		if err != nil {
			return
		}
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+len(rest)%9000)
			if _, err := conn.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
		_ = conn.Close()
	}()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	got, err := io.ReadAll(client)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes arrived, want the %d that were written", len(got), len(want))
	}
}
