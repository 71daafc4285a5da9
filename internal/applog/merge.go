package applog

import (
	"container/heap"
	"context"
	"errors"
	"io"
	"slices"
	"time"
)

// delayed is a source that has nothing before a time: it is opened when that is reached.
type delayed struct {
	began time.Time
	open  func() (Source, error)
}

// head is a source with its next line.
type head struct {
	line   Line
	source Source
	order  int // keeps lines of the same time in the order of their sources
}

type heads []*head

func (h heads) Len() int { return len(h) }
func (h heads) Less(i, j int) bool {
	if c := h[i].line.Time.Compare(h[j].line.Time); c != 0 {
		return c < 0
	}
	return h[i].order < h[j].order
}
func (h heads) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *heads) Push(x any) {
	if one, ok := x.(*head); ok {
		*h = append(*h, one)
	}
}

// Pop implements heap.Interface.
func (h *heads) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// merge is Merge with sources that are opened as late as can be, so that a week of pods is not open at once.
func merge(ctx context.Context, pending []delayed, tail int, emit func(Line) error) (err error) {
	slices.SortStableFunc(pending, func(a, b delayed) int { return a.began.Compare(b.began) })
	var open heads
	defer func() {
		for _, h := range open {
			err = errors.Join(err, h.source.Close())
		}
		for _, d := range pending {
			if d.began.IsZero() { // it is open already
				if s, openErr := d.open(); openErr == nil {
					err = errors.Join(err, s.Close())
				}
			}
		}
	}()
	out := &last{most: tail, emit: emit, seen: map[string]bool{}}
	for order := 0; ctx.Err() == nil; {
		for len(pending) > 0 && (len(open) == 0 || !pending[0].began.After(open[0].line.Time)) {
			source, err := pending[0].open()
			pending = pending[1:]
			if err != nil {
				return err
			}
			order++
			if err := advance(&open, &head{source: source, order: order}); err != nil {
				return err
			}
		}
		if len(open) == 0 {
			return out.flush()
		}
		next, ok := heap.Pop(&open).(*head)
		if !ok {
			break
		}
		line := next.line
		if err := advance(&open, next); err != nil {
			return err
		}
		if err := out.add(line); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// advance reads the next line of a source and puts it among the open ones, unless it has ended.
func advance(open *heads, h *head) error {
	line, err := h.source.Next()
	if errors.Is(err, io.EOF) {
		return h.source.Close()
	}
	if err != nil {
		return errors.Join(err, h.source.Close())
	}
	h.line = line
	heap.Push(open, h)
	return nil
}

// last passes lines on: all, or the last so many.
type last struct {
	most  int
	emit  func(Line) error
	seen  map[string]bool
	lines []Line // a ring, once it is full
	next  int
}

func (l *last) add(line Line) error {
	if line.ID != "" {
		if l.seen[line.ID] {
			return nil
		}
		if len(l.seen) > 10_000 {
			clear(l.seen)
		}
		l.seen[line.ID] = true
	}
	switch {
	case l.most <= 0:
		return l.emit(line)
	case len(l.lines) < l.most:
		l.lines = append(l.lines, line)
	default:
		l.lines[l.next] = line
		l.next = (l.next + 1) % l.most
	}
	return nil
}

func (l *last) flush() error {
	for i := range l.lines {
		if err := l.emit(l.lines[(l.next+i)%len(l.lines)]); err != nil {
			return err
		}
	}
	return nil
}
