package events

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Options tunes a Writer. The zero value suits production.
type Options struct {
	QueueSize    int           // events waiting to be written; default 8192
	Workers      int           // events written at once; default 4
	WriteTimeout time.Duration // limit for one write; default 10s
	Log          *slog.Logger  // default: discard
}

// Source names the component an event comes from.
type Source struct {
	Component string // "replicaset-controller"
	Host      string // the node the component runs on; may be empty
	// Actions maps a reason to an action. A component that sets it writes events in the
	// shape of the events.k8s.io API (eventTime, action, reportingInstance), as the
	// scheduler does; others write the older shape (source, firstTimestamp, count).
	Actions map[string]string
}

// Writer joins and writes events. Make one with New and start it with Run.
type Writer struct {
	client  client.Client
	opts    Options
	dropped atomic.Int64
	written atomic.Int64
	failed  atomic.Int64

	mu      sync.Mutex // guards the fields below
	queue   []pending  // ring of opts.QueueSize
	head    int
	length  int
	waiting chan struct{} // capacity 1: there is something in the queue
}

// pending is an event as its recorder saw it.
type pending struct {
	source *Source
	ref    corev1.ObjectReference
	kind   string // event type: Normal or Warning
	reason string
	note   string
	at     time.Time
}

// New checks opts and returns a Writer that has started nothing; call Run.
func New(c client.Client, opts Options) (*Writer, error) {
	if c == nil {
		return nil, errors.New("events: no client")
	}
	opts.QueueSize = cmp.Or(opts.QueueSize, 8192)
	opts.Workers = cmp.Or(opts.Workers, 4)
	opts.WriteTimeout = cmp.Or(opts.WriteTimeout, 10*time.Second)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.QueueSize < 1 || opts.Workers < 1 || opts.Workers > 64 {
		return nil, fmt.Errorf("events: QueueSize is %d and Workers is %d, want at least 1 and 1 to 64", opts.QueueSize, opts.Workers)
	}
	return &Writer{client: c, opts: opts, queue: make([]pending, opts.QueueSize), waiting: make(chan struct{}, 1)}, nil
}

// Recorder records events of one component.
type Recorder struct {
	writer *Writer
	source *Source
}

// Recorder returns a recorder for the component that src names.
func (w *Writer) Recorder(src Source) *Recorder { return &Recorder{writer: w, source: &src} }

// Event records that something happened to obj. It never blocks; obj may also be a
// *corev1.ObjectReference, whose FieldPath is then kept. eventType is "Normal" or
// "Warning", reason a CamelCase word, note a sentence of at most 1024 bytes.
func (r *Recorder) Event(obj runtime.Object, eventType, reason, note string) {
	ref, err := reference(obj, r.writer.client.Scheme())
	if err != nil {
		r.writer.opts.Log.Warn("event for an unknown object is dropped", "reason", reason, "error", err)
		return
	}
	r.writer.add(pending{source: r.source, ref: ref, kind: eventType, reason: reason, note: note, at: time.Now()})
}

// Stats counts events since the start.
type Stats struct {
	Written int64 // created or counted up in the API
	Dropped int64 // pushed out of a full queue
	Failed  int64 // refused by the API
}

// Stats returns the counts so far.
func (w *Writer) Stats() Stats {
	return Stats{Written: w.written.Load(), Dropped: w.dropped.Load(), Failed: w.failed.Load()}
}

// add queues p, pushing out the oldest when the queue is full.
func (w *Writer) add(p pending) {
	w.mu.Lock()
	if w.length == len(w.queue) {
		w.head = (w.head + 1) % len(w.queue)
		w.length--
		w.dropped.Add(1)
	}
	w.queue[(w.head+w.length)%len(w.queue)] = p
	w.length++
	w.mu.Unlock()
	select {
	case w.waiting <- struct{}{}:
	default:
	}
}

// take returns the oldest waiting event.
func (w *Writer) take() (pending, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.length == 0 {
		return pending{}, false
	}
	p := w.queue[w.head]
	w.queue[w.head] = pending{}
	w.head = (w.head + 1) % len(w.queue)
	w.length--
	return p, true
}

// Run writes events until ctx ends and every write has returned.
func (w *Writer) Run(ctx context.Context) error {
	lanes := make([]chan write, w.opts.Workers)
	var workers sync.WaitGroup
	for i := range lanes {
		lanes[i] = make(chan write, 16)
		workers.Go(func() {
			for op := range lanes[i] {
				w.apply(ctx, op)
			}
		})
	}
	corr := newCorrelator()
	for ctx.Err() == nil {
		p, ok := w.take()
		if !ok {
			select {
			case <-ctx.Done():
			case <-w.waiting:
			}
			continue
		}
		op, ok := corr.observe(p)
		if !ok {
			continue
		}
		select {
		case lanes[lane(p.ref.UID, p.ref.Name, len(lanes))] <- op:
		case <-ctx.Done():
		}
	}
	for i := range lanes {
		close(lanes[i])
	}
	workers.Wait()
	return nil
}

// lane keeps all events of one object on one worker, so that a count never overtakes
// the creation it counts up.
func lane(uid types.UID, name string, lanes int) int {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(cmp.Or(string(uid), name)))
	return int(sum.Sum32() % uint32(lanes))
}

// apply writes one event. A failure is counted and logged: events are never retried
// for long, a newer one will tell the same story.
func (w *Writer) apply(ctx context.Context, op write) {
	ctx, cancel := context.WithTimeout(ctx, w.opts.WriteTimeout)
	defer cancel()
	var err error
	if op.patch != nil {
		var body []byte
		body, err = json.Marshal(op.patch)
		if err == nil {
			err = w.client.Patch(ctx, op.event.DeepCopy(), client.RawPatch(types.MergePatchType, body))
		}
	}
	if op.patch == nil || apierrors.IsNotFound(err) {
		err = w.client.Create(ctx, op.event.DeepCopy())
	}
	switch {
	case err == nil:
		w.written.Add(1)
	case ctx.Err() != nil, apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
	default:
		w.failed.Add(1)
		w.opts.Log.Warn("event not written", "namespace", op.event.Namespace, "name", op.event.Name, "reason", op.event.Reason, "error", err)
	}
}

// reference says which object an event is about.
func reference(obj runtime.Object, scheme *runtime.Scheme) (corev1.ObjectReference, error) {
	if ref, ok := obj.(*corev1.ObjectReference); ok {
		return *ref, nil
	}
	accessor, err := meta.Accessor(obj)
	if err != nil {
		return corev1.ObjectReference{}, fmt.Errorf("reading metadata of %T: %w", obj, err)
	}
	gvk := obj.GetObjectKind().GroupVersionKind()
	if gvk.Empty() {
		if gvk, err = apiutil.GVKForObject(obj, scheme); err != nil {
			return corev1.ObjectReference{}, fmt.Errorf("finding the kind of %T: %w", obj, err)
		}
	}
	return corev1.ObjectReference{
		APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind,
		Namespace: accessor.GetNamespace(), Name: accessor.GetName(),
		UID: accessor.GetUID(), ResourceVersion: accessor.GetResourceVersion(),
	}, nil
}

// newEvent is the event that p starts.
func newEvent(p pending) *corev1.Event {
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Name:      fmt.Sprintf("%v.%x", p.ref.Name, p.at.UnixNano()),
			Namespace: cmp.Or(p.ref.Namespace, metav1.NamespaceDefault),
		},
		InvolvedObject: p.ref, Type: p.kind, Reason: p.reason, Message: truncate(p.note),
		ReportingController: p.source.Component, ReportingInstance: p.source.Host,
	}
	if p.source.Actions != nil {
		event.EventTime = metav1.NewMicroTime(p.at)
		event.Action = cmp.Or(p.source.Actions[p.reason], p.reason)
		event.ReportingInstance = p.source.Component + "-" + p.source.Host
		return event
	}
	event.Source = corev1.EventSource{Component: p.source.Component, Host: p.source.Host}
	event.FirstTimestamp, event.LastTimestamp, event.Count = metav1.NewTime(p.at), metav1.NewTime(p.at), 1
	return event
}

// noteLimitBytes is what validation allows for a message of the newer shape.
const noteLimitBytes = 1024

func truncate(note string) string {
	if len(note) <= noteLimitBytes {
		return note
	}
	return note[:noteLimitBytes-len(" ...")] + " ..."
}
