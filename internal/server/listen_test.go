package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipeListener gives a server the far ends of pipes, so that its timeouts pass in virtual time.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *pipeListener) dial() net.Conn {
	near, far := net.Pipe()
	l.conns <- far
	return near
}

// TestSlowHeaders: connections whose headers trickle in are closed after a while, and keep nobody else waiting.
func TestSlowHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
		go func() { ended <- serveAll(ctx, handler, nil, []net.Listener{listener}, slog.New(slog.DiscardHandler)) }()
		began := time.Now()
		var group sync.WaitGroup
		for range 500 {
			conn := listener.dial()
			group.Go(func() {
				defer func() { _ = conn.Close() }()
				fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n")
				for i := 0; ; i++ { // a header every two seconds
					time.Sleep(2 * time.Second)
					if _, err := fmt.Fprintf(conn, "X-%d: y\r\n", i); err != nil {
						return
					}
				}
			})
		}
		time.Sleep(10 * time.Second)
		conn := listener.dial()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(response.Body); string(body) != "ok" || time.Since(began) > 11*time.Second {
			t.Errorf("an honest client got %q after %v", body, time.Since(began)-10*time.Second)
		}
		_ = response.Body.Close()
		group.Wait()
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("the slow connections stood for %v", took)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
