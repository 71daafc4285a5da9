package shim

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"gantry.dev/gantry/internal/container"
)

// greet sends the first line of a connection to the stream socket.
func greet(conn net.Conn, greeting hello) error {
	line, err := json.Marshal(greeting)
	if err == nil {
		_, err = conn.Write(append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("greet the shim: %w", err)
	}
	return nil
}

// Events calls fn for each event of the shim behind socket, beginning with what is already
// so, until ctx ends (nil) or the shim is gone (an error).
func Events(ctx context.Context, socket string, fn func(Event)) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("reach the shim: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := greet(conn, hello{Op: "events"}); err != nil {
		return err
	}
	decoder := json.NewDecoder(conn)
	for {
		var event Event
		if err := decoder.Decode(&event); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read the shim's events: %w", err)
		}
		fn(event)
	}
}

// Attach connects streams to a running container until the container ends, ctx ends or
// the output cannot be written. The end of Stdin does not end the session.
func Attach(ctx context.Context, socket, id string, streams container.Streams) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("reach the shim: %w", err)
	}
	defer conn.Close()
	return attach(ctx, conn, hello{Op: "attach", Container: id, Stdin: streams.Stdin != nil}, streams)
}

// attach runs an attach session on a connection.
func attach(ctx context.Context, conn net.Conn, greeting hello, streams container.Streams) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := greet(conn, greeting); err != nil {
		return err
	}
	reader := bufio.NewReader(conn)
	line, err := reader.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the shim's answer: %w", err)
	}
	var answer reply
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("read the shim's answer: %w", err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	// Reads of Stdin cannot be interrupted from here; the goroutine ends with the caller's
	// stream, as in every program that copies a terminal.
	if streams.Stdin != nil {
		go sendStdin(conn, streams.Stdin)
	}
	done := make(chan struct{})
	defer close(done)
	if streams.Resize != nil {
		go sendSizes(conn, streams.Resize, done)
	}
	return receiveOutput(ctx, reader, streams)
}

// sendStdin sends what src gives as frames, and its end.
func sendStdin(conn net.Conn, src io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if writeFrame(conn, frameStdin, buf[:n]) != nil {
				return
			}
		}
		if err != nil {
			_ = writeFrame(conn, frameCloseStdin, nil) // a dead connection shows in the reader
			return
		}
	}
}

// sendSizes sends terminal sizes until the channel is closed or the session is done.
func sendSizes(conn net.Conn, sizes <-chan container.Size, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			var payload [4]byte
			binary.BigEndian.PutUint16(payload[0:], size.Width)
			binary.BigEndian.PutUint16(payload[2:], size.Height)
			if writeFrame(conn, frameResize, payload[:]) != nil {
				return
			}
		}
	}
}

// receiveOutput copies output frames to the streams until the shim closes the connection.
func receiveOutput(ctx context.Context, reader io.Reader, streams container.Streams) error {
	buf := make([]byte, maxFrame)
	for {
		kind, payload, err := readFrame(reader, buf)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("read output: %w", err)
		}
		dst := streams.Stdout
		if kind == frameStderr {
			dst = streams.Stderr
		}
		if dst == nil {
			continue
		}
		if _, err := dst.Write(payload); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
}
