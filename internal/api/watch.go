package api

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"gantry.dev/gantry/internal/store"
)

// Event types of a watch.
const (
	eventAdded    = "ADDED"
	eventModified = "MODIFIED"
	eventDeleted  = "DELETED"
	eventBookmark = "BOOKMARK"
	eventError    = "ERROR"
)

// watchBatchBytes is how much is gathered before it is handed to the connection.
const watchBatchBytes = 256 << 10

// watch streams changes until the client leaves, the time is over or the client is too slow.
func (s *Server) watch(q *query, ep *endpoint) int {
	out, ok := s.accepts.negotiate(q.accept(), ep.class)
	if !ok || out.format == formatYAML {
		return s.fail(q, notAcceptable(ep.class))
	}
	if q.listErr != nil {
		return s.fail(q, q.listErr)
	}
	if q.path.Name != "" {
		if err := q.list.named(q.path.Name); err != nil {
			return s.fail(q, err)
		}
	}
	stream := watchStream{server: s, q: q, ep: ep, out: out}
	if err := stream.prepare(); err != nil {
		return s.fail(q, err)
	}
	source, err := ep.Watch(q.r.Context(), q.namespace(), q.list.ListOptions)
	if err != nil {
		if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			return s.fail(q, err)
		}
		return stream.failed(err) // upstream's watch cache says so inside the stream
	}
	defer source.Close()
	s.fairness.Release(&q.seat)
	gauge := s.metrics.inflight.WithLabelValues("WATCH", q.path.Resource)
	gauge.Inc()
	defer gauge.Dec()
	return stream.serve(func() { stream.run(source, s.watchTimeout(q.list.timeout)) })
}

// watchTimeout is how long a watch lives: as asked, else a random time so that not all watches end at once.
func (s *Server) watchTimeout(asked time.Duration) time.Duration {
	if asked > 0 {
		return asked
	}
	return s.opts.WatchTimeout + rand.N(s.opts.WatchTimeout)
}

// watchStream writes one watch.
type watchStream struct {
	server *Server
	q      *query
	ep     *endpoint
	out    output
	table  *tableMaker // for shapeTable
	buffer []byte
	limit  *ioLimit
	socket *websocket.Conn // events go here, a message each; nil for plain HTTP
	gone   bool            // the WebSocket's client is
}

// serve sends the head and then what body writes.
func (w *watchStream) serve(body func()) int {
	if wsstream.IsWebSocketRequest(w.q.r) {
		return w.serveSocket(body)
	}
	w.limit = limitWrites(w.q.w)
	defer w.limit.release()
	w.begin()
	body()
	return http.StatusOK
}

// prepare reads what the transformation needs.
func (w *watchStream) prepare() error {
	if w.out.shape != shapeTable {
		return nil
	}
	table, err := w.server.tables.maker(w.q, w.out, &w.ep.kindFrame)
	w.table = table
	return err
}

// begin sends the head, so that the client knows that it watches.
func (w *watchStream) begin() {
	header := w.q.w.Header()
	header.Set("Content-Type", w.out.mediaType())
	if w.out.format == formatProto {
		header.Set("Content-Type", typeProto+";stream=watch")
	}
	w.q.w.WriteHeader(http.StatusOK)
	w.flush()
}

// failed answers with a stream of one error.
func (w *watchStream) failed(err error) int {
	return w.serve(func() {
		w.appendError(err)
		w.flush()
	})
}

// run writes events until the end.
func (w *watchStream) run(source *store.Watch, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(w.q.r.Context(), timeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { w.limit.within(lastWrite) })()
	source.OnSlow(func() { w.limit.within(lastWrite) })
	initial, announced := source.InitialCount(), !w.announces()
	nextBookmark := time.Now().Add(w.server.opts.BookmarkPeriod)
	for {
		if initial == 0 && !announced {
			announced = true
			w.appendBookmark(max(source.Start(), 0), true)
			if !w.flush() {
				return
			}
		}
		wait, stop := ctx, context.CancelFunc(func() {})
		if w.q.list.Bookmarks {
			wait, stop = context.WithDeadline(ctx, nextBookmark)
		}
		events, reached, err := source.Next(wait)
		stop()
		switch {
		case err == nil:
			for i := range events {
				if !w.event(&events[i]) {
					return
				}
				if initial > 0 {
					if initial--; initial == 0 && !announced {
						announced = true
						w.appendBookmark(source.Start(), true)
					}
				}
			}
		case ctx.Err() != nil && w.q.r.Context().Err() == nil && w.q.list.Bookmarks && errors.Is(err, context.DeadlineExceeded):
			w.appendBookmark(reached, false) // a last one, so that the next watch starts here
			w.flush()
			return
		case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			w.appendBookmark(reached, false)
			nextBookmark = time.Now().Add(w.server.opts.BookmarkPeriod)
		default:
			return
		}
		if !w.flush() {
			return
		}
	}
}

// announces reports whether the client wants to hear where the initial state ends.
func (w *watchStream) announces() bool {
	initial := w.q.list.SendInitialEvents
	return initial != nil && *initial && w.q.list.Bookmarks
}

// event appends one change; false ends the watch.
func (w *watchStream) event(event *store.Event) bool {
	name := eventModified
	switch event.Type {
	case store.Added:
		name = eventAdded
	case store.Deleted:
		name = eventDeleted
	case store.Skipped:
		return true
	case store.Modified:
	}
	if err := w.object(name, event.Entry); err != nil {
		w.server.opts.Log.Error("encoding a watch event", "path", w.q.path.Path, "error", err)
		return false
	}
	return len(w.buffer) < watchBatchBytes || w.flush()
}

// object appends an event with an object in the shape that the client wants.
func (w *watchStream) object(name string, entry *store.Entry) error {
	switch {
	case w.out.shape == shapeTable:
		data, err := w.table.one(entry.Object)
		if err != nil {
			return err
		}
		w.appendJSON(name, data)
		return nil
	case w.out.shape == shapePartial:
		return w.partial(name, entry)
	case w.out.format == formatProto:
		raw, err := entry.Proto()
		if err != nil {
			return err
		}
		w.appendProto(name, w.ep.protoHead, raw)
		return nil
	}
	data, err := entry.JSON()
	if err != nil {
		return err
	}
	w.appendJSON(name, data)
	return nil
}

func (w *watchStream) partial(name string, entry *store.Entry) error {
	object := partialOf(entry.Object, w.out.version)
	if w.out.format == formatProto {
		raw, err := object.Marshal()
		if err != nil {
			return err
		}
		w.appendProto(name, protoHead(object.GroupVersionKind()), raw)
		return nil
	}
	data, err := json.Marshal(object)
	if err != nil {
		return err
	}
	w.appendJSON(name, data)
	return nil
}

// appendBookmark appends an object that says only which revision has been reached.
func (w *watchStream) appendBookmark(revision int64, endsInitial bool) {
	object, ok := w.ep.New().(store.Object)
	if !ok {
		return
	}
	object.SetResourceVersion(strconv.FormatInt(revision, 10))
	if endsInitial {
		object.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	if err := w.object(eventBookmark, store.NewEntry(object, anyCodec{})); err != nil {
		w.server.opts.Log.Error("encoding a bookmark", "path", w.q.path.Path, "error", err)
	}
}

// appendError appends an error event.
func (w *watchStream) appendError(err error) {
	status := responsewriters.ErrorToAPIStatus(err)
	status.SetGroupVersionKind(statusKind())
	if w.out.format == formatProto {
		if raw, err := status.Marshal(); err == nil {
			w.appendProto(eventError, protoHead(statusKind()), raw)
		}
		return
	}
	if data, err := json.Marshal(status); err == nil {
		w.appendJSON(eventError, data)
	}
}

func (w *watchStream) appendJSON(name string, object []byte) {
	w.buffer = append(w.buffer, `{"type":"`...)
	w.buffer = append(w.buffer, name...)
	w.buffer = append(w.buffer, `","object":`...)
	w.buffer = append(w.buffer, object...)
	w.buffer = append(w.buffer, '}', '\n')
	if w.socket != nil {
		w.message(websocket.TextFrame)
	}
}

// appendProto appends a frame: its length, then a WatchEvent (type is field 1, object field 2 with the envelope as
// field 1 of a RawExtension).
func (w *watchStream) appendProto(name string, head, raw []byte) {
	inner := envelopeSize(head, raw)
	extension := 1 + uvarintSize(inner) + inner
	size := 1 + uvarintSize(len(name)) + len(name) + 1 + uvarintSize(extension) + extension
	if w.socket == nil { // its messages have a length of their own
		w.buffer = binary.BigEndian.AppendUint32(w.buffer, uint32(size))
	}
	w.buffer = appendField(w.buffer, tag1, []byte(name))
	w.buffer = appendTag(w.buffer, tag2, extension)
	w.buffer = appendTag(w.buffer, tag1, inner)
	w.buffer = appendEnvelope(w.buffer, head, raw)
	if w.socket != nil {
		w.message(websocket.BinaryFrame)
	}
}

// maxIdleWatchBuffer is how much memory an idle watch keeps.
const maxIdleWatchBuffer = 4 << 10

// flush sends what was appended; false if the client is gone.
func (w *watchStream) flush() bool {
	if w.socket != nil {
		return !w.gone
	}
	if len(w.buffer) > 0 {
		if _, err := w.q.w.Write(w.buffer); err != nil {
			return false
		}
		w.buffer = w.buffer[:0]
		if cap(w.buffer) > maxIdleWatchBuffer {
			w.buffer = nil
		}
	}
	return http.NewResponseController(w.q.w).Flush() == nil
}

// anyCodec encodes objects that are made for one answer.
type anyCodec struct{}

// Encode implements store.Codec; it always fails: nothing here is stored.
func (anyCodec) Encode(object store.Object) ([]byte, error) {
	return nil, fmt.Errorf("%T is not stored", object)
}

// Decode implements store.Codec; it always fails.
func (anyCodec) Decode([]byte) (store.Object, error) {
	return nil, errors.New("answers are not stored")
}

// JSON implements store.Codec.
func (anyCodec) JSON(object store.Object) ([]byte, error) { return json.Marshal(object) }

// Proto implements store.Codec.
func (anyCodec) Proto(object store.Object) ([]byte, error) {
	if m, ok := object.(marshaler); ok {
		return m.Marshal()
	}
	return nil, nil
}
