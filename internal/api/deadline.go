package api

import (
	"net/http"
	"sync"
	"time"
)

// ioLimit ends writes to a client that does not read, or reads from one that does not write. Whoever waits for such a
// client sees no context; only a deadline of its connection or stream wakes him. It is safe for concurrent use.
type ioLimit struct {
	set func(time.Time) error // the deadline

	mu      sync.Mutex // guards the fields below
	limited bool
	over    bool // the handler is about to return: the connection is no longer ours
}

func limitWrites(w http.ResponseWriter) *ioLimit {
	return &ioLimit{set: http.NewResponseController(w).SetWriteDeadline}
}

func limitReads(w http.ResponseWriter) *ioLimit {
	return &ioLimit{set: http.NewResponseController(w).SetReadDeadline}
}

// after ends what is not done when the time has passed. Most is, so the deadline is set only then. The result lifts the
// limit.
func (l *ioLimit) after(limit time.Duration) (done func()) {
	timer := time.AfterFunc(limit, func() { l.within(0) })
	return func() {
		timer.Stop()
		l.release()
	}
}

// within ends what is not done after the given time.
func (l *ioLimit) within(limit time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.limited = l.set(time.Now().Add(limit)) == nil
	}
}

// release lifts the limit; nothing is set afterwards.
func (l *ioLimit) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over = true; l.limited {
		_ = l.set(time.Time{}) // a connection that is gone needs none
	}
}

// lastWrite is how long a watch that has ended may take to hand over what it still has.
const lastWrite = 5 * time.Second

// slowestReader is how many bytes a second a client must take of a large answer, beyond RequestTimeout for everyone.
const slowestReader = 64 << 10

// bufferedAnswer is how much net/http takes of an answer without waiting for the client.
const bufferedAnswer = 4 << 10

// answerLimit is how long a client may take to read an answer of that size.
func (s *Server) answerLimit(size int) time.Duration {
	return s.opts.RequestTimeout + time.Duration(size/slowestReader)*time.Second
}
