package robustness

import (
	"fmt"
	"maps"
	"slices"
)

// Event is what a watch told.
type Event struct {
	Type  string // ADDED, MODIFIED, DELETED
	Key   string
	Value string // of a deleted object: the last one
	RV    int64
	At    int64 // when it was heard, since the start
}

// Stretch is what a watcher heard without a gap, over any number of connections: all that happened after From up to To.
type Stretch struct {
	Watcher string
	From    int64
	To      int64              // the last event's or bookmark's revision
	Begin   map[string]Version // what was there at From, when it was listed
	Events  []Event
}

// Streams is the result of comparing all watchers with each other, with the lists and with the answers.
type Streams struct {
	Stretches, Events, Lists int
	Broken                   []string
	Seen                     map[string]Sighting // by value
	All                      []Event             // in order
}

// CheckStreams checks order, completeness and truth of what watchers heard: each stretch has every event of its span, as all
// others heard it; each acknowledged write of the watched keys is told once with its revision; nothing is told that nobody
// asked for; a list is what the events up to its revision make.
func CheckStreams(stretches []Stretch, ops []Op, lists []Listing) Streams {
	c := &checker{byRV: map[int64]Event{}}
	c.out.Stretches, c.out.Lists, c.out.Seen = len(stretches), len(lists), map[string]Sighting{}
	for _, s := range stretches {
		c.order(s)
	}
	revisions := slices.Sorted(maps.Keys(c.byRV))
	for _, rv := range revisions {
		c.out.All = append(c.out.All, c.byRV[rv])
	}
	c.out.Events = len(revisions)
	for _, s := range stretches {
		c.complete(s)
	}
	spans := covered(stretches)
	c.keys(spans)
	c.truth(ops, spans)
	c.listings(stretches, lists)
	return c.out
}

type checker struct {
	byRV map[int64]Event
	out  Streams
}

const maxBroken = 20

func (c *checker) broken(format string, args ...any) {
	if len(c.out.Broken) < maxBroken {
		c.out.Broken = append(c.out.Broken, fmt.Sprintf(format, args...))
	}
}

// order checks one stretch by itself and gathers what it tells.
func (c *checker) order(s Stretch) {
	last := s.From
	for _, e := range s.Events {
		if e.RV <= last {
			c.broken("%s heard revision %d (%s %s) after %d", s.Watcher, e.RV, e.Type, e.Key, last)
		}
		last = e.RV
		if was, ok := c.byRV[e.RV]; ok && (was.Type != e.Type || was.Key != e.Key || was.Value != e.Value) {
			c.broken("revision %d is %s %s %q for %s, and %s %s %q for another", e.RV, e.Type, e.Key, e.Value, s.Watcher, was.Type, was.Key, was.Value)
		} else if ok {
			e.At = min(e.At, was.At)
		}
		c.byRV[e.RV] = e
		if at, ok := c.out.Seen[e.Value]; e.Type != "DELETED" && (!ok || e.At < at.First) {
			c.out.Seen[e.Value] = Sighting{RV: e.RV, First: e.At}
		}
	}
	if last > s.To {
		c.broken("%s heard revision %d in a stretch that ends at %d", s.Watcher, last, s.To)
	}
}

// complete checks that a stretch has all that anybody heard in its span.
func (c *checker) complete(s Stretch) {
	at := 0
	for _, e := range c.out.All {
		if e.RV <= s.From || e.RV > s.To {
			continue
		}
		for at < len(s.Events) && s.Events[at].RV < e.RV {
			at++
		}
		if at == len(s.Events) || s.Events[at].RV != e.RV {
			c.broken("%s missed %s %s at revision %d, though it heard all from %d to %d", s.Watcher, e.Type, e.Key, e.RV, s.From, s.To)
		}
	}
}

// keys checks that the events of each key can follow each other.
func (c *checker) keys(spans []span) {
	there, first := map[string]bool{}, map[string]bool{}
	in := -1
	for _, e := range c.out.All {
		if now := spanOf(spans, e.RV); now != in { // nobody knows what happened in between
			clear(there)
			clear(first)
			in = now
		}
		if known := first[e.Key]; known && (e.Type == "ADDED") == there[e.Key] {
			c.broken("%s of %s at revision %d, which was there: %v", e.Type, e.Key, e.RV, there[e.Key])
		}
		first[e.Key], there[e.Key] = true, e.Type != "DELETED"
	}
}

type span struct{ from, to int64 }

// covered are the spans of revisions that some watcher heard all of.
func covered(stretches []Stretch) []span {
	var spans []span
	for _, s := range stretches {
		spans = append(spans, span{s.From, s.To})
	}
	slices.SortFunc(spans, func(a, b span) int { return int(min(1, max(-1, a.from-b.from))) })
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && s.from <= out[n-1].to {
			out[n-1].to = max(out[n-1].to, s.to)
		} else {
			out = append(out, s)
		}
	}
	return out
}

func spanOf(spans []span, rv int64) int {
	return slices.IndexFunc(spans, func(s span) bool { return rv > s.from && rv <= s.to })
}

// truth holds the events against what clients asked for and were told.
func (c *checker) truth(ops []Op, spans []span) {
	asked := map[string]Op{}
	deletes := map[string]bool{} // by key and revision of what was deleted
	for _, op := range ops {
		switch op.Verb {
		case Create, Update:
			asked[op.Value] = op
		case Delete:
			deletes[fmt.Sprint(op.Key, "@", op.RV)] = true
		case Get:
		}
		if op.Outcome != Done || op.Verb == Get || op.Verb == Delete || spanOf(spans, op.GotRV) < 0 {
			continue
		}
		if e, ok := c.byRV[op.GotRV]; !ok {
			c.broken("%s of %s %q was acknowledged with revision %d, and no watch told of it", op.Verb, op.Key, op.Value, op.GotRV)
		} else if e.Key != op.Key || e.Value != op.Value {
			c.broken("%s of %s %q was acknowledged with revision %d, which is %s %q for the watches", op.Verb, op.Key, op.Value, op.GotRV, e.Key, e.Value)
		}
	}
	current := map[string]int64{}
	in := -1
	for _, e := range c.out.All {
		if now := spanOf(spans, e.RV); now != in {
			clear(current)
			in = now
		}
		switch e.Type {
		case "DELETED":
			if rv := current[e.Key]; rv != 0 && !deletes[fmt.Sprint(e.Key, "@", rv)] {
				c.broken("phantom: %s at revision %d was deleted at %d, which nobody asked for", e.Key, rv, e.RV)
			}
			delete(current, e.Key)
			continue
		default:
		}
		current[e.Key] = e.RV
		op, ok := asked[e.Value]
		switch {
		case !ok || op.Key != e.Key:
			c.broken("phantom: %s %q at revision %d was never written", e.Key, e.Value, e.RV)
		case op.Outcome == Done && op.GotRV != e.RV:
			c.broken("phantom: %s %q was acknowledged with revision %d and is told again at %d", e.Key, e.Value, op.GotRV, e.RV)
		case op.Outcome != Done && op.Outcome != Unknown:
			c.broken("phantom: %s of %s %q was answered with %s, and is told at revision %d", op.Verb, e.Key, e.Value, op.Outcome, e.RV)
		}
	}
}

// listings replays the events and compares each list with what was there at its revision.
func (c *checker) listings(stretches []Stretch, lists []Listing) {
	if len(stretches) == 0 {
		return
	}
	// The replay begins at the earliest stretch, of which all is known.
	first := slices.MinFunc(stretches, func(a, b Stretch) int { return int(min(1, max(-1, a.From-b.From))) })
	end := covered(stretches)[0].to
	now := maps.Clone(first.Begin)
	if now == nil {
		now = map[string]Version{}
	}
	lists = slices.Clone(lists)
	slices.SortFunc(lists, func(a, b Listing) int { return int(min(1, max(-1, a.RV-b.RV))) })
	at := 0
	for _, l := range lists {
		if l.RV < first.From || l.RV > end {
			continue
		}
		for at < len(c.out.All) && c.out.All[at].RV <= l.RV {
			if e := c.out.All[at]; e.Type == "DELETED" {
				delete(now, e.Key)
			} else {
				now[e.Key] = Version{e.Value, e.RV}
			}
			at++
		}
		if !maps.Equal(now, l.Items) {
			c.broken("a list at server %d of revision %d differs from what the watches told: %s", l.Server, l.RV, differences(now, l.Items))
		}
	}
}

func differences(want, got map[string]Version) string {
	text := ""
	for key, v := range want {
		if got[key] != v {
			text += fmt.Sprintf(" %s is %v, want %v;", key, got[key], v)
		}
	}
	for key, v := range got {
		if _, ok := want[key]; !ok {
			text += fmt.Sprintf(" %s is %v, want none;", key, v)
		}
	}
	return text
}
