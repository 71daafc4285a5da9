package node

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/heartbeat"
)

// HeartbeatOptions tunes Heartbeats. The zero value suits production.
type HeartbeatOptions struct {
	Suspect time.Duration // silence from which a node counts as perhaps dead; default 1s
	Dead    time.Duration // silence that makes a node dead; default 1.5s
	First   time.Duration // the same for a node of which this server has heard nothing yet; default 5s
	Hold    time.Duration // the same while most nodes are silent at once; default 10s
	Margin  time.Duration // between the deadline of fenced pods and the loss of their identity; default 5s
	Steady  time.Duration // how long a node must be heard after its second death, doubled with each; default 4s
	Unrest  time.Duration // for how long a death counts against a node; default 10m
}

// The bounds of the time between two ticks, how late a tick may be without counting as a pause of this server's own,
// the longest time for which a node that keeps dying gets no pods, and how old what a former follower heard may be: an agent takes
// deadlines away when leaders have known for 10 s that it does not fence any more, the beat that was heard may have been half a
// second on its way, and a former leader that is cut off may go on answering for two seconds.
const (
	shortTick   = 20 * time.Millisecond
	longTick    = 250 * time.Millisecond
	tickSlack   = 50 * time.Millisecond
	maxSteady   = 5 * time.Minute
	freshEnough = 6 * time.Second
)

// Heartbeats is what this server has heard of nodes. It is pure: callers say what time it is. Its own time stands still
// while the server did, as far as ticks that came late tell, so that a pause of the server is not taken for the nodes'.
type Heartbeats struct {
	opts HeartbeatOptions
	news chan struct{} // capacity 1: a node came back

	mu      sync.Mutex // guards the fields below
	zero    time.Time
	lost    time.Duration // in pauses of this server
	due     time.Time     // of the next tick; zero: there was none yet
	calm    time.Duration // when enough nodes were heard for long enough, in the server's own time
	leads   bool
	nodes   map[string]*heard
	takers  int // nodes that could take pods over
	changed []string
}

// heard is what is known of one node. Times are in the server's own time.
type heard struct {
	known   bool // the API has the node
	beats   bool // it sends beats, or has said that it would
	first   bool // nothing was heard since this server leads
	at      time.Duration
	bootID  string
	leaving bool
	fence   time.Duration // 0: its pods may run on for ever
	dead    bool
	deaths  []time.Duration
	back    time.Duration // when it was heard again after the last death
	ready   corev1.ConditionStatus
	takes   bool
}

// NewHeartbeats checks opts and returns what is empty and follows.
func NewHeartbeats(opts HeartbeatOptions) (*Heartbeats, error) {
	opts.Suspect = cmp.Or(opts.Suspect, time.Second)
	opts.Dead = cmp.Or(opts.Dead, 1500*time.Millisecond)
	opts.First = cmp.Or(opts.First, 5*time.Second)
	opts.Hold = cmp.Or(opts.Hold, 10*time.Second)
	opts.Margin = cmp.Or(opts.Margin, 5*time.Second)
	opts.Steady = cmp.Or(opts.Steady, 4*time.Second)
	opts.Unrest = cmp.Or(opts.Unrest, 10*time.Minute)
	if opts.Suspect < 0 || opts.Suspect > opts.Dead || opts.Dead > opts.First || opts.Dead > opts.Hold || opts.Margin < 0 || opts.Steady < 0 || opts.Unrest < 0 {
		return nil, errors.New("node: heartbeats want 0 < Suspect <= Dead <= First and Hold, and nothing negative")
	}
	return &Heartbeats{opts: opts, news: make(chan struct{}, 1), nodes: map[string]*heard{}}, nil
}

// awakeLocked is now in the server's own time.
func (h *Heartbeats) awakeLocked(now time.Time) time.Duration {
	if h.zero.IsZero() {
		h.zero = now
	}
	return now.Sub(h.zero) - h.lost
}

// Beat takes in what a node says and answers it.
func (h *Heartbeats) Beat(now time.Time, beat heartbeat.Beat) heartbeat.Answer {
	h.mu.Lock()
	defer h.mu.Unlock()
	awake := h.awakeLocked(now)
	n := h.nodes[beat.Name]
	if n == nil {
		n = &heard{}
		h.nodes[beat.Name] = n
	}
	n.beats, n.first, n.at, n.bootID = true, false, max(n.at, awake), beat.BootID
	n.leaving = beat.Leaving == heartbeat.LeavingRestart
	n.fence = beat.Fence()
	if n.dead {
		n.dead, n.back = false, awake
		h.changed = append(h.changed, beat.Name)
		select {
		case h.news <- struct{}{}:
		default:
		}
	}
	// A server that was paused a moment ago may not know yet that another one leads.
	paused := !h.due.IsZero() && now.Sub(h.due) > tickSlack+h.opts.Suspect
	if !h.leads || paused {
		return heartbeat.Answer{}
	}
	others := h.takers
	if n.takes {
		others--
	}
	return heartbeat.Answer{Leads: true, Takeover: others > 0, Report: n.known && n.ready == corev1.ConditionUnknown}
}

// Lead makes this server the one that decides. Every node counts as just heard.
func (h *Heartbeats) Lead(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	awake := h.awakeLocked(now)
	h.leads, h.due, h.calm = true, time.Time{}, 0
	for name, n := range h.nodes {
		if awake-n.at > freshEnough {
			n.fence = 0 // it may have been told otherwise since, by the former leader
		}
		if !n.known && awake-n.at > h.opts.Unrest {
			delete(h.nodes, name)
			continue
		}
		n.at, n.first, n.dead = awake, true, false
	}
}

// Follow makes this server one that only listens.
func (h *Heartbeats) Follow() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leads = false
	for _, n := range h.nodes {
		n.known, n.takes = false, false
	}
	h.takers = 0
}

// view is what the API says of a node.
type view struct {
	expected bool // its agent has said that it sends beats
	ready    corev1.ConditionStatus
	takes    bool // pods can be placed on it
}

// know takes in what the API says of a node. One that is new counts as just heard.
func (h *Heartbeats) know(now time.Time, name string, v view) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.nodes[name]
	if n == nil {
		n = &heard{at: h.awakeLocked(now), first: true}
		h.nodes[name] = n
	}
	n.known, n.beats, n.ready = true, n.beats || v.expected, v.ready
	if n.takes != v.takes {
		n.takes = v.takes
		if v.takes {
			h.takers++
		} else {
			h.takers--
		}
	}
}

// forget drops a node that is gone from the API.
func (h *Heartbeats) forget(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := h.nodes[name]; n != nil && n.takes {
		h.takers--
	}
	delete(h.nodes, name)
}

// limit is how long the node may be silent.
func (h *Heartbeats) limit(n *heard) time.Duration {
	switch {
	case n.leaving:
		return heartbeat.RestartGrace
	case n.first:
		return h.opts.First
	}
	return h.opts.Dead
}

// tick looks at all nodes. It returns those that died or came back since the last tick, and when to look again.
func (h *Heartbeats) tick(now time.Time) (changed []string, next time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if late := now.Sub(h.due); !h.due.IsZero() && late > tickSlack {
		h.lost += late
	}
	awake := h.awakeLocked(now)
	undecided, suspects := 0, 0
	for _, n := range h.nodes {
		if !n.known || !n.beats || n.dead || n.leaving {
			continue
		}
		undecided++
		if awake-n.at >= h.limit(n)-h.opts.Dead+h.opts.Suspect {
			suspects++
		}
	}
	// When most nodes fall silent at once, it is the network that is broken, or this server.
	if suspects > 1 && 2*suspects > undecided {
		h.calm = awake + h.opts.Dead // those that are heard again are not all heard at once
	}
	storm := awake < h.calm
	next = longTick
	for name, n := range h.nodes {
		if !n.known || !n.beats || n.dead {
			continue
		}
		limit := h.limit(n)
		if storm {
			limit = max(limit, h.opts.Hold)
		}
		if left := limit - (awake - n.at); left > 0 {
			next = min(next, left)
			continue
		}
		n.dead = true
		n.deaths = append(slices.DeleteFunc(n.deaths, func(at time.Duration) bool { return awake-at > h.opts.Unrest }), awake)
		h.changed = append(h.changed, name)
	}
	next = max(next, shortTick)
	h.due = now.Add(next)
	changed, h.changed = h.changed, nil
	slices.Sort(changed)
	return changed, next
}

// standing is how it is with a node.
type standing struct {
	beats    bool          // it sends beats: Leases say nothing about it
	dead     bool          // it was silent for too long
	settling time.Duration // it has died so often that it gets no pods for so long yet
	released bool          // what it has fenced is certainly stopped
	release  time.Duration // until released; 0 if that will never be
}

// of says how it is with a node.
func (h *Heartbeats) of(now time.Time, name string) standing {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.nodes[name]
	if n == nil || !n.beats {
		return standing{}
	}
	awake := h.awakeLocked(now)
	s := standing{beats: true, dead: n.dead}
	if !n.dead && len(n.deaths) > 1 && awake-n.deaths[len(n.deaths)-1] < h.opts.Unrest {
		steady := min(h.opts.Steady<<min(len(n.deaths)-2, 16), maxSteady)
		s.settling = max(0, steady-(awake-n.back))
	}
	if n.dead && n.fence > 0 {
		held := n.fence
		if n.leaving {
			held = max(held, heartbeat.RestartGrace) // it moves the deadline so far when it announces a restart
		}
		s.release = max(0, held+h.opts.Margin-(awake-n.at))
		s.released = s.release == 0
	}
	return s
}
