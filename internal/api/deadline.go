package api

import (
	"net/http"
	"sync"
	"time"
)

// writeLimit ends writes to a client that does not read. A write that waits for such a client sees no context; only
// a deadline of its connection or stream wakes it. It is safe for concurrent use.
type writeLimit struct {
	set func(time.Time) error // a deadline for writes

	mu      sync.Mutex // guards the fields below
	limited bool
	over    bool // the handler is about to return: the connection is no longer ours
}

func newWriteLimit(w http.ResponseWriter) *writeLimit {
	return &writeLimit{set: http.NewResponseController(w).SetWriteDeadline}
}

// within ends writes that are not done after the given time.
func (l *writeLimit) within(limit time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.limited = l.set(time.Now().Add(limit)) == nil
	}
}

// release lifts the limit; nothing is set afterwards.
func (l *writeLimit) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over = true; l.limited {
		_ = l.set(time.Time{}) // a connection that is gone needs none
	}
}

// lastWrite is how long a watch that has ended may take to hand over what it still has.
const lastWrite = 5 * time.Second

// slowestReader is how many bytes a second a client must take of a large answer, beyond a minute for everyone.
const slowestReader = 64 << 10

// answerLimit is how long a client may take to read an answer of that size.
func answerLimit(size int) time.Duration {
	return time.Minute + time.Duration(size/slowestReader)*time.Second
}
