package heartbeat

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// maxAnswer bounds the body of an answer in bytes.
const maxAnswer = 4 << 10

// Remote is a server reached over TLS, on one connection that only beats use. It is for one goroutine at a time and
// reads and writes by itself, so that a beat takes no other goroutine's turn.
type Remote struct {
	address string
	config  func() *tls.Config
	conn    net.Conn
	reader  *bufio.Reader
}

// NewRemote returns the server at address ("192.0.2.1:6443"). config is asked before each connection, so that a renewed
// certificate takes effect; it must name the server and hold the node's own certificate.
func NewRemote(address string, config func() *tls.Config) *Remote {
	return &Remote{address: address, config: config}
}

// Name implements Server.
func (r *Remote) Name() string { return r.address }

// Close implements Server.
func (r *Remote) Close() {
	if r.conn != nil {
		_ = r.conn.Close()
		r.conn, r.reader = nil, nil
	}
}

// Beat implements Server.
func (r *Remote) Beat(ctx context.Context, beat Beat, timeout time.Duration) (Answer, error) {
	deadline := time.Now().Add(timeout)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	kept := r.conn != nil
	answer, err := r.exchange(ctx, beat, deadline)
	if err != nil && kept && ctx.Err() == nil && !isTimeout(err) {
		answer, err = r.exchange(ctx, beat, deadline) // the server has closed what was idle or has started anew
	}
	return answer, err
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// exchange sends one beat and reads its answer. After an error the connection is gone.
func (r *Remote) exchange(ctx context.Context, beat Beat, deadline time.Time) (answer Answer, err error) {
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if err := r.connect(ctx); err != nil {
		return Answer{}, fmt.Errorf("connecting: %w", err)
	}
	stop := context.AfterFunc(ctx, r.interrupter())
	defer stop()
	if err := r.conn.SetDeadline(deadline); err != nil {
		return Answer{}, fmt.Errorf("setting the time limit: %w", err)
	}
	body, err := json.Marshal(beat)
	if err != nil {
		return Answer{}, fmt.Errorf("encoding a heartbeat: %w", err)
	}
	var request bytes.Buffer
	fmt.Fprintf(&request, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", Path, r.address, len(body))
	request.Write(body)
	if _, err := r.conn.Write(request.Bytes()); err != nil {
		return Answer{}, fmt.Errorf("sending: %w", err)
	}
	response, err := http.ReadResponse(r.reader, nil)
	if err != nil {
		return Answer{}, fmt.Errorf("reading the answer: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil || len(text) > maxAnswer {
		return Answer{}, fmt.Errorf("reading the answer (%d bytes): %w", len(text), err)
	}
	if response.StatusCode != http.StatusOK {
		return Answer{}, fmt.Errorf("the server answers %s: %s", response.Status, bytes.TrimSpace(text))
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return Answer{}, fmt.Errorf("reading the answer: %w", err)
	}
	if response.Close {
		r.Close()
	}
	return answer, nil
}

// interrupter ends what the present connection waits for.
func (r *Remote) interrupter() func() {
	conn := r.conn
	return func() { _ = conn.SetDeadline(time.Unix(1, 0)) }
}

func (r *Remote) connect(ctx context.Context) error {
	if r.conn != nil {
		return nil
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{KeepAlive: -1}, Config: r.config()}
	conn, err := dialer.DialContext(ctx, "tcp", r.address)
	if err != nil {
		return err
	}
	r.conn, r.reader = conn, bufio.NewReaderSize(conn, maxAnswer)
	return nil
}
