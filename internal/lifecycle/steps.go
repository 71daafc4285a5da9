package lifecycle

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Steps prints what a start or stop does, one short line a step with the time it took. A nil *Steps
// prints nothing. It is safe for use by many goroutines.
type Steps struct {
	mu  sync.Mutex // guards out
	out io.Writer
}

// NewSteps prints to out.
func NewSteps(out io.Writer) *Steps { return &Steps{out: out} }

// Begin starts the clock of one step. The function it returns prints "NAME DONE 120ms", or
// "NAME failed after 120ms" for an error; only its first call prints.
func (s *Steps) Begin(name, done string) func(error) {
	start := time.Now()
	var once sync.Once
	return func(err error) {
		once.Do(func() {
			took := round(time.Since(start))
			if err != nil {
				s.Say("%s failed after %s", name, took)
				return
			}
			s.Say("%s %s %s", name, done, took)
		})
	}
}

// Say prints one line.
func (s *Steps) Say(format string, args ...any) {
	if s == nil || s.out == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = fmt.Fprintf(s.out, format+"\n", args...) // a closed terminal does not stop the work
}

// round keeps three digits at most: nobody reads nanoseconds.
func round(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	case d >= time.Millisecond:
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Microsecond)
}
