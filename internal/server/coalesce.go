package server

import (
	"net"
	"runtime"
	"sync"
	"time"
)

// maxPending is how many bytes of a connection wait to be written before its writers wait too.
const maxPending = 128 << 10

// coalescingListener accepts connections whose small writes go to the kernel together.
type coalescingListener struct {
	net.Listener
	buffers *sync.Pool // of *[]byte, for connections that are sending
}

func newCoalescingListener(listener net.Listener) coalescingListener {
	return coalescingListener{listener, &sync.Pool{New: func() any { return new([]byte) }}}
}

// Accept implements net.Listener.
func (l coalescingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newCoalescingConn(conn, l.buffers), nil
}

// coalescingConn lets Write return before the bytes are sent: what is written while the last
// bytes are on their way to the kernel goes with one system call. net/http's HTTP/2 writes the
// head and the body of an answer, and the answers of concurrent requests, one by one; together
// they cost the server and the client a fraction. An error of sending is the error of the next
// Write, and Close sends what is left.
type coalescingConn struct {
	net.Conn
	buffers *sync.Pool

	mu      sync.Mutex // guards the fields below
	changed sync.Cond  // sent, failed or closed
	pending *[]byte    // accepted, not yet being sent; nil: nothing
	sending bool
	closed  bool
	err     error // of the connection; final
}

func newCoalescingConn(conn net.Conn, buffers *sync.Pool) *coalescingConn {
	c := &coalescingConn{Conn: conn, buffers: buffers}
	c.changed.L = &c.mu
	return c
}

// Write implements net.Conn. It blocks only while too much is pending.
func (c *coalescingConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && !c.closed && c.pending != nil && len(*c.pending) >= maxPending {
		c.changed.Wait()
	}
	if c.closed {
		return 0, net.ErrClosed
	}
	if c.err != nil {
		return 0, c.err
	}
	if c.pending == nil {
		c.pending = c.buffers.Get().(*[]byte)
	}
	*c.pending = append(*c.pending, p...)
	if !c.sending {
		c.sending = true
		go c.send()
	}
	return len(p), nil
}

// send writes what is pending until nothing is.
func (c *coalescingConn) send() {
	runtime.Gosched() // whoever is about to write more comes first
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.pending != nil && c.err == nil {
		batch := c.pending
		c.pending = nil
		c.changed.Broadcast()
		c.mu.Unlock()
		_, err := c.Conn.Write(*batch)
		if cap(*batch) <= 2*maxPending {
			*batch = (*batch)[:0]
			c.buffers.Put(batch)
		}
		c.mu.Lock()
		c.err = err
	}
	c.sending = false
	c.changed.Broadcast()
}

// Close implements net.Conn. What was written is sent before, within the write deadline.
func (c *coalescingConn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	c.changed.Broadcast()
	if c.sending {
		// Nobody waits for a peer that does not read: the rest must go within a moment.
		_ = c.Conn.SetWriteDeadline(time.Now().Add(closeGrace))
	}
	for c.sending {
		c.changed.Wait()
	}
	c.mu.Unlock()
	return c.Conn.Close()
}
