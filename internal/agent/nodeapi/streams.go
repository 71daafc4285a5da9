package nodeapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"

	"gantry.dev/gantry/internal/container"
)

// session is an exec or attach that waits for its streams.
type session func(ctx context.Context, s container.Streams) (exitCode int, err error)

func (h *Handler) exec(w http.ResponseWriter, r *http.Request) {
	h.serve(w, r, func(id string) session {
		cmd := r.URL.Query()["command"]
		return func(ctx context.Context, s container.Streams) (int, error) { return h.runtime.Exec(ctx, id, cmd, s) }
	})
}

func (h *Handler) attach(w http.ResponseWriter, r *http.Request) {
	h.serve(w, r, func(id string) session {
		return func(ctx context.Context, s container.Streams) (int, error) { return 0, h.runtime.Attach(ctx, id, s) }
	})
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, begin func(id string) session) {
	pod, status, ok := h.target(w, r)
	if !ok {
		return
	}
	id, ok := runningID(status)
	if !ok {
		http.Error(w, fmt.Sprintf("container not found (%q)", r.PathValue("container")), http.StatusNotFound)
		return
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	run := begin(id)
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		h.serveV5(w, r, options, run)
		return
	}
	remotecommand.ServeExec(w, r, executor{run}, pod.Name, string(pod.UID), r.PathValue("container"), nil, options,
		h.opts.IdleTimeout, h.opts.StreamsWait, remotecommand.SupportedStreamingProtocols)
}

// executor runs a session for the streaming library, which serves SPDY and the older
// WebSocket protocols.
type executor struct{ run session }

// ExecInContainer implements remotecommand.Executor.
func (e executor) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := container.Streams{Stdin: in, TTY: tty}
	if out != nil {
		s.Stdout = out
	}
	if errOut != nil && !tty {
		s.Stderr = errOut
	}
	if tty && resize != nil {
		s.Resize = sizes(ctx, resize)
	}
	return exitError(e.run(ctx, s))
}

func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan container.Size {
	out := make(chan container.Size)
	go func() { // ends with the session
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- container.Size{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

func exitError(code int, err error) error {
	if err == nil && code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return err
}

// serveV5 serves the WebSocket protocol v5.channel.k8s.io, which can close stdin. The
// connection itself, close signals included, is the library's.
func (h *Handler) serveV5(w http.ResponseWriter, r *http.Request, options *remotecommand.Options, run session) {
	kind := func(on bool, k wsstream.ChannelType) wsstream.ChannelType {
		if on {
			return k
		}
		return wsstream.IgnoreChannel
	}
	channels := []wsstream.ChannelType{
		remotecommand.StreamStdIn:  kind(options.Stdin, wsstream.ReadChannel),
		remotecommand.StreamStdOut: kind(options.Stdout, wsstream.WriteChannel),
		remotecommand.StreamStdErr: kind(options.Stderr, wsstream.WriteChannel),
		remotecommand.StreamErr:    wsstream.WriteChannel,
		remotecommand.StreamResize: wsstream.ReadChannel,
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels},
	})
	conn.SetIdleTimeout(h.opts.IdleTimeout)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		h.opts.Logger.Debug("cannot open a WebSocket", "error", err)
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	s := container.Streams{TTY: options.TTY}
	if options.Stdin {
		s.Stdin = streams[remotecommand.StreamStdIn]
	}
	if options.Stdout {
		s.Stdout = streams[remotecommand.StreamStdOut]
		_, _ = s.Stdout.Write(nil) // tells the client that it is connected
	}
	if options.Stderr && !options.TTY {
		s.Stderr = streams[remotecommand.StreamStdErr]
	}
	if options.TTY {
		s.Resize = decodeSizes(ctx, streams[remotecommand.StreamResize])
	} else {
		go func() { _, _ = io.Copy(io.Discard, streams[remotecommand.StreamResize]) }() // ends when the connection is closed
	}
	data, err := json.Marshal(sessionStatus(exitError(run(ctx, s))))
	if err != nil {
		h.opts.Logger.Warn("cannot encode a session's status", "error", err)
		return
	}
	_, _ = streams[remotecommand.StreamErr].Write(data)
}

func decodeSizes(ctx context.Context, in io.Reader) <-chan container.Size {
	out := make(chan container.Size)
	go func() { // ends when the connection is closed
		defer close(out)
		decoder := json.NewDecoder(in)
		for {
			var size container.Size
			if err := decoder.Decode(&size); err != nil {
				return
			}
			select {
			case out <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// sessionStatus is how the end of a session is told to clients since protocol v4.
func sessionStatus(err error) metav1.Status {
	if err == nil {
		return metav1.Status{Status: metav1.StatusSuccess}
	}
	if exit, ok := errors.AsType[utilexec.CodeExitError](err); ok {
		return metav1.Status{
			Status:  metav1.StatusFailure,
			Reason:  remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit.Err),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{
				{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.Code)},
			}},
		}
	}
	return metav1.Status{
		Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError,
		Message: fmt.Sprintf("Internal error occurred: error executing command in container: %v", err),
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Message: err.Error()}}},
	}
}

// run runs a command without streams and answers what it wrote.
func (h *Handler) run(w http.ResponseWriter, r *http.Request) {
	_, status, ok := h.target(w, r)
	if !ok {
		return
	}
	id, ok := runningID(status)
	if !ok {
		http.Error(w, fmt.Sprintf("container not found (%q)", r.PathValue("container")), http.StatusNotFound)
		return
	}
	cmd := r.URL.Query()["cmd"]
	if len(cmd) == 0 {
		cmd = r.URL.Query()["command"]
	}
	out := &flusher{w: w}
	code, err := h.runtime.Exec(r.Context(), id, cmd, container.Streams{Stdout: out, Stderr: out})
	if err := exitError(code, err); err != nil && !out.wrote {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (h *Handler) portForward(w http.ResponseWriter, r *http.Request) {
	pod, ok := h.pods.Pod(r.PathValue("namespace"), r.PathValue("pod"))
	if uid := r.PathValue("uid"); !ok || uid != "" && string(pod.UID) != uid {
		http.Error(w, "pod does not exist", http.StatusNotFound)
		return
	}
	tunnel := wsstream.IsWebSocketRequestWithTunnelingProtocol(r)
	options := &portforward.V4Options{}
	if !tunnel {
		var err error
		if options, err = portforward.NewV4Options(r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if tunnel {
			w = &rawUpgrade{ResponseWriter: w, header: http.Header{}}
		}
		portforward.ServePortForward(w, r, forwarder{h, pod}, pod.Name, string(pod.UID), options,
			h.opts.IdleTimeout, h.opts.StreamsWait, portforward.SupportedProtocols)
	})
	if tunnel {
		handler = proxy.NewTunnelingHandler(handler)
	}
	handler.ServeHTTP(w, r)
}

// rawUpgrade answers an upgrade on the connection itself. The tunnel reads what a proxied
// server would send, so the answer must come after the connection was taken over.
type rawUpgrade struct {
	http.ResponseWriter
	header   http.Header
	upgraded bool
}

// Header implements http.ResponseWriter.
func (u *rawUpgrade) Header() http.Header { return u.header }

// WriteHeader implements http.ResponseWriter.
func (u *rawUpgrade) WriteHeader(code int) {
	if code == http.StatusSwitchingProtocols {
		u.upgraded = true
		return
	}
	maps.Copy(u.ResponseWriter.Header(), u.header)
	u.ResponseWriter.WriteHeader(code)
}

// Hijack implements http.Hijacker.
func (u *rawUpgrade) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	hijacker, ok := u.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the connection cannot be taken over")
	}
	conn, buffer, err := hijacker.Hijack()
	if err != nil || !u.upgraded {
		return conn, buffer, err
	}
	var answer bytes.Buffer
	answer.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	if err := u.header.Write(&answer); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	answer.WriteString("\r\n")
	if _, err := conn.Write(answer.Bytes()); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	if buffer == nil { // the tunnel has none
		buffer = bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	}
	return conn, buffer, nil
}

// forwarder connects forwarded streams to a pod.
type forwarder struct {
	h   *Handler
	pod *corev1.Pod
}

// PortForward implements portforward.PortForwarder.
func (f forwarder) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	conn, err := f.h.opts.DialPod(ctx, f.pod, port)
	if err != nil {
		return fmt.Errorf("failed to connect to localhost:%d inside namespace %q: %w", port, f.pod.UID, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	errs := make(chan error, 2)
	go func() { // ends when the client's side or the connection is closed
		_, err := io.Copy(conn, stream)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		if err != nil {
			errs <- err
		}
	}()
	go func() { // ends when the pod's side is closed
		_, err := io.Copy(stream, conn)
		errs <- err
	}()
	err = <-errs
	_ = stream.Close()
	return err
}
