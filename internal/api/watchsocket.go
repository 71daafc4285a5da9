package api

import (
	"context"
	"errors"
	"net/http"

	"golang.org/x/net/websocket"
)

// serveSocket takes the connection over as a WebSocket and runs body, whose events become messages: text for JSON,
// binary for protobuf. A page in a browser can watch that way.
func (w *watchStream) serveSocket(body func()) int {
	request := w.q.r
	websocket.Handler(func(socket *websocket.Conn) {
		ctx, cancel := context.WithCancel(request.Context())
		w.q.r = request.WithContext(ctx)
		read := make(chan struct{})
		go func() {
			defer close(read)
			defer cancel()
			ignoreMessages(socket)
		}()
		w.socket = socket
		w.limit = &ioLimit{set: socket.SetWriteDeadline}
		body()
		w.limit.release()
		_ = socket.Close() // also ends the reader
		<-read
	}).ServeHTTP(w.q.w, request)
	return http.StatusSwitchingProtocols
}

// ignoreMessages reads until the client is gone, so that its going is noticed. It answers pings; whatever else it
// says has no meaning; long messages are skipped without being kept.
func ignoreMessages(socket *websocket.Conn) {
	socket.MaxPayloadBytes = 1 << 10
	for {
		var nothing []byte
		if err := websocket.Message.Receive(socket, &nothing); err != nil && !errors.Is(err, websocket.ErrFrameTooLarge) {
			return
		}
	}
}

// message sends what was appended as one message.
func (w *watchStream) message(kind byte) {
	w.socket.PayloadType = kind
	if _, err := w.socket.Write(w.buffer); err != nil {
		w.gone = true
	}
	w.buffer = w.buffer[:0]
}
