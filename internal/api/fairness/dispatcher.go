package fairness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
)

// Why a request is refused.
var (
	ErrQueueFull = errors.New("fairness: the queue is full")
	ErrTimeout   = errors.New("fairness: waited too long")
	ErrNoSeats   = errors.New("fairness: all seats are taken")
)

// Options tunes a Dispatcher. The zero value suits production.
type Options struct {
	Seats   int           // of all levels together, default 600
	MaxWait time.Duration // in a queue, default 15s
	Log     *slog.Logger  // default: discards
}

// Dispatcher gives requests their seats. It is safe for concurrent use.
type Dispatcher struct {
	opts    Options
	schemas atomic.Pointer[schemas]

	mu        sync.Mutex // guards the fields below and everything in levels
	levels    map[string]*level
	limited   []*level // those that have seats
	turn      int      // where in limited to look first
	executing int      // seats taken of all levels
	waiting   int      // requests in all queues
}

// Ticket is a request's right to its seats. Its zero value is none.
type Ticket struct {
	schema *schema
	level  *level
	width  int
	waited *waiter // nil if it did not wait
}

// New checks opts and returns a Dispatcher with upstream's configuration of a new cluster.
func New(opts Options) (*Dispatcher, error) {
	opts.Seats = cmp.Or(opts.Seats, 600)
	opts.MaxWait = cmp.Or(opts.MaxWait, 15*time.Second)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Seats < 1 || opts.MaxWait < 0 {
		return nil, fmt.Errorf("fairness: Seats is %d and MaxWait %v", opts.Seats, opts.MaxWait)
	}
	d := &Dispatcher{opts: opts, levels: map[string]*level{}}
	d.Configure(slices.Concat(bootstrap.MandatoryFlowSchemas, bootstrap.SuggestedFlowSchemas),
		slices.Concat(bootstrap.MandatoryPriorityLevelConfigurations, bootstrap.SuggestedPriorityLevelConfigurations))
	return d, nil
}

// Configure takes over schemas and levels as they are now; both are shared: read-only. What upstream calls mandatory is
// there even if it is not among them.
func (d *Dispatcher) Configure(flowSchemas []*flowcontrolv1.FlowSchema, levels []*flowcontrolv1.PriorityLevelConfiguration) {
	flowSchemas = withMandatory(flowSchemas, bootstrap.MandatoryFlowSchemas, func(o *flowcontrolv1.FlowSchema) string { return o.Name })
	levels = withMandatory(levels, bootstrap.MandatoryPriorityLevelConfigurations, func(o *flowcontrolv1.PriorityLevelConfiguration) string { return o.Name })
	all := int32(0)
	for _, object := range levels {
		all += sharesOf(object)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	next := map[string]*level{}
	d.limited = nil
	for _, object := range levels {
		l := d.levels[object.Name]
		if exempt := object.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt; l == nil || l.exempt != exempt {
			l = &level{name: object.Name, exempt: exempt}
		}
		if err := l.configure(object, d.opts.Seats, all); err != nil {
			d.opts.Log.Warn("a priority level cannot be used", "name", object.Name, "error", err)
			continue
		}
		next[object.Name] = l
		if !l.exempt {
			d.limited = append(d.limited, l)
		}
	}
	for name, l := range d.levels {
		if next[name] != l && l.waiting > 0 { // a level that is going away serves out who waits in it
			d.limited = append(d.limited, l)
		}
	}
	d.levels = next
	d.schemas.Store(compileSchemas(flowSchemas, next))
	d.dispatchLocked()
}

// withMandatory adds those of mandatory that objects has not.
func withMandatory[T any](objects, mandatory []*T, name func(*T) string) []*T {
	out := make([]*T, 0, len(objects)+len(mandatory))
	there := map[string]bool{}
	for _, object := range objects {
		there[name(object)] = true
		out = append(out, object)
	}
	for _, object := range mandatory {
		if !there[name(object)] {
			out = append(out, object)
		}
	}
	return out
}

// Acquire gives a request its seats, after waiting for them if need be. The ticket names the request's schema even when
// err tells that there are no seats: the queue is full, the wait was too long, or ctx ended. Who gets a ticket without
// an error calls Release.
func (d *Dispatcher) Acquire(ctx context.Context, r *Request) (Ticket, error) {
	found := d.schemas.Load().find(r)
	l := found.level
	ticket := Ticket{schema: found}
	if l.exempt {
		return ticket, nil
	}
	d.mu.Lock()
	width := 1
	if r.Width > 1 {
		width = l.widest(r.Width)
	}
	if l.waiting == 0 && d.fitsLocked(l, width) {
		l.executing += width
		d.executing += width
		d.mu.Unlock()
		ticket.level, ticket.width = l, width
		return ticket, nil
	}
	if l.rejects {
		d.mu.Unlock()
		return ticket, ErrNoSeats
	}
	w := l.enqueueLocked(found.flow(r), width)
	if w == nil {
		d.mu.Unlock()
		return ticket, ErrQueueFull
	}
	d.waiting++
	d.dispatchLocked() // it may be the first that fits
	d.mu.Unlock()
	if err := d.wait(ctx, w); err != nil {
		return ticket, err
	}
	ticket.level, ticket.width, ticket.waited = l, width, w
	return ticket, nil
}

// wait blocks until w has its seats.
func (d *Dispatcher) wait(ctx context.Context, w *waiter) error {
	timer := time.NewTimer(d.opts.MaxWait)
	defer timer.Stop()
	var err error
	select {
	case <-w.granted:
		return nil
	case <-timer.C:
		err = ErrTimeout
	case <-ctx.Done():
		err = ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if w.done { // granted just now
		return nil
	}
	w.level.giveUpLocked(w)
	d.waiting--
	return err
}

// Release gives the seats back. A ticket without seats, and one that was released, has none to give.
func (d *Dispatcher) Release(t *Ticket) {
	l := t.level
	if l == nil {
		return
	}
	t.level = nil
	d.mu.Lock()
	defer d.mu.Unlock()
	l.executing -= t.width
	d.executing -= t.width
	if t.waited != nil {
		l.settleLocked(t.waited, time.Now())
	}
	if d.waiting > 0 {
		d.dispatchLocked()
	}
}

// fitsLocked reports whether l may have width more seats: its own always, others' while they are not needed.
func (d *Dispatcher) fitsLocked(l *level, width int) bool {
	taken := l.executing + width
	if taken <= l.nominal || l.executing == 0 {
		return true
	}
	if taken > l.most {
		return false
	}
	free := d.opts.Seats - d.executing
	for _, other := range d.limited {
		if other != l {
			free -= max(0, other.kept-other.executing)
		}
	}
	return width <= free
}

// dispatchLocked gives seats to all who wait and fit, level after level in turn.
func (d *Dispatcher) dispatchLocked() {
	var now time.Time
	for d.waiting > 0 {
		granted := false
		for range d.limited {
			d.turn = (d.turn + 1) % len(d.limited)
			l := d.limited[d.turn]
			if l.waiting == 0 {
				continue
			}
			w := l.nextLocked()
			if w == nil || !d.fitsLocked(l, w.width) {
				continue
			}
			if now.IsZero() {
				now = time.Now()
			}
			l.grantLocked(w, now)
			d.executing += w.width
			d.waiting--
			granted = true
		}
		if !granted {
			return
		}
	}
}

// Headers of an answer that name what its request was counted under.
const (
	SchemaHeader = "X-Kubernetes-Pf-Flowschema-Uid"
	LevelHeader  = "X-Kubernetes-Pf-Prioritylevel-Uid"
)

// UIDs are the values of those headers, nil where an object has no UID yet. They are shared: read-only.
func (t *Ticket) UIDs() (flowSchema, priorityLevel []string) {
	if t.schema == nil {
		return nil, nil
	}
	return t.schema.uid, t.schema.levelUID
}

// Schema is the name of the FlowSchema and of its level.
func (t *Ticket) Schema() (flowSchema, priorityLevel string) {
	if t.schema == nil {
		return "", ""
	}
	return t.schema.name, t.schema.level.name
}
