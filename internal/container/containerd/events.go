package containerd

import (
	"context"
	"sync"

	"gantry.dev/gantry/internal/container"
)

// eventQueue passes events on in order. It holds each event at most once, so that it is
// bounded by the number of containers however slow the reader is.
type eventQueue struct {
	out  chan container.Event
	wake chan struct{}

	mu      sync.Mutex // guards the fields below
	pending []container.Event
	queued  map[container.Event]bool
}

func newEventQueue() *eventQueue {
	return &eventQueue{
		out:    make(chan container.Event),
		wake:   make(chan struct{}, 1),
		queued: map[container.Event]bool{},
	}
}

// add queues an event.
func (q *eventQueue) add(event container.Event) {
	q.mu.Lock()
	if !q.queued[event] {
		q.queued[event] = true
		q.pending = append(q.pending, event)
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run sends events until ctx ends.
func (q *eventQueue) run(ctx context.Context) {
	for {
		event, ok := q.next()
		if !ok {
			select {
			case <-q.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case q.out <- event:
		case <-ctx.Done():
			return
		}
	}
}

// next takes the oldest event.
func (q *eventQueue) next() (container.Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 {
		return container.Event{}, false
	}
	event := q.pending[0]
	q.pending = q.pending[1:]
	delete(q.queued, event)
	return event, true
}
