package scheduler

import (
	"container/heap"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// waiting is a pod without a node.
type waiting struct {
	pod      *corev1.Pod // read-only
	template *template
	number   uint64 // order of arrival
	since    time.Time
	attempts int    // searches for a node so far
	misses   int    // those in vain
	errors   int    // failed writes in a row
	message  string // why it fitted nowhere, as last reported

	line  *line // nil while it is being placed or bound
	index int   // in its heap
	tried bool  // it is in the line's tried heap
}

// line is the pods that wait for the same: those of one template. They are tried one after
// the other, and when one fits nowhere all that were told so wait together for an event.
// A pod that differs from its kin, since it has a nominated node or could not be bound,
// has a line of its own.
type line struct {
	template *template
	priority int32
	shared   bool
	fresh    podHeap // never tried
	tried    podHeap // did not fit, and their condition says so
	retry    bool    // an event may have made room for the tried ones
	held     bool    // others are being evicted for its pod; events wait until that is done
	missed   bool    // an event came while it was held

	plugins PluginSet // that rejected a node when a pod was tried last, or have when a node changed since
	company *company  // pods elsewhere that may make a difference; nil if none can

	in       where
	made     uint64    // order of making
	index    int       // in its heap
	due      time.Time // when it is tried again at the latest, if it backs off
	turn     uint64    // a line that has failed goes behind its equals
	failures int       // searches in vain in a row
	failed   time.Time // the last of them
}

// where a line is.
type where uint8

const (
	nowhere where = iota
	active        // to be tried
	misfits       // backs off since its pods fitted nowhere; tried at once when nothing is active
	faults        // backs off after a failed write
	parked        // has nothing to try: all its pods wait for an event that helps
)

// maxParked is how long a pod waits for an event before it is tried all the same
// (kube-scheduler's pod-max-in-unschedulable-pods-duration), flushEvery how often that is looked at.
const (
	maxParked  = 5 * time.Minute
	flushEvery = 30 * time.Second
)

// queue orders the pods that wait: by priority, then by time. All its work is per line, so
// that ten thousand pods of one template cost an event no more than one.
type queue struct {
	initial, limit time.Duration // of the back-off
	patience       time.Duration // how long a line waits for an event

	pods    map[types.UID]*waiting
	gated   map[types.UID]struct{}
	lines   map[*template]*line // the shared ones
	active  lineHeap
	misfits lineHeap
	faults  lineHeap
	// listening are the lines with pods that have been tried and wait for an event that helps. Most are
	// parked; one that is active for its fresh pods listens for the others.
	listening map[*template]map[*line]struct{}
	social    map[*line]struct{} // those of them with company
	turn      uint64
	made      uint64 // counts lines
}

func newQueue(initial, limit time.Duration) *queue {
	byDue := func(a, b *line) bool { return a.due.Before(b.due) || a.due.Equal(b.due) && a.made < b.made }
	return &queue{
		initial: initial, limit: limit, patience: maxParked,
		pods: map[types.UID]*waiting{}, gated: map[types.UID]struct{}{}, lines: map[*template]*line{},
		active: lineHeap{before: sooner}, misfits: lineHeap{before: byDue}, faults: lineHeap{before: byDue},
		listening: map[*template]map[*line]struct{}{}, social: map[*line]struct{}{},
	}
}

func (q *queue) newLine(t *template, shared bool) *line {
	q.made++
	return &line{template: t, priority: priorityOf(t.pod), shared: shared, made: q.made}
}

// sooner orders active lines: by priority, then by the time of the head's arrival or of the
// line's last failure, so that a line that fits nowhere does not stay ahead of its equals.
func sooner(a, b *line) bool {
	if a.priority != b.priority {
		return a.priority > b.priority
	}
	return max(a.turn, a.head().number) < max(b.turn, b.head().number)
}

// head is the pod of the line to try next, nil if there is none.
func (l *line) head() *waiting {
	switch {
	case !l.retry || len(l.tried) == 0:
		return l.fresh.first()
	case len(l.fresh) == 0 || l.tried[0].number < l.fresh[0].number:
		return l.tried[0]
	}
	return l.fresh[0]
}

// add takes in a new pod, or one that has changed and keeps its number.
func (q *queue) add(pod *corev1.Pod, t *template, number uint64, now time.Time) *waiting {
	if number == 0 {
		q.turn++
		number = q.turn
	}
	w := &waiting{pod: pod, template: t, number: number, since: now}
	q.pods[pod.UID] = w
	q.join(w, q.lineOf(t), false)
	return w
}

// lineOf returns the shared line of a template.
func (q *queue) lineOf(t *template) *line {
	l := q.lines[t]
	if l == nil {
		l = q.newLine(t, true)
		q.lines[t] = l
	}
	return l
}

// join puts a pod into a line and the line where it belongs then.
func (q *queue) join(w *waiting, l *line, tried bool) {
	w.line, w.tried = l, tried
	if tried {
		heap.Push(&l.tried, w)
	} else {
		heap.Push(&l.fresh, w)
	}
	q.settle(l)
}

// settle puts a line where its pods want it: among the active if there is one to try. A line
// that backs off after a failed write stays, unless it has company.
func (q *queue) settle(l *line) {
	defer q.listen(l)
	switch {
	case len(l.fresh)+len(l.tried) == 0:
		q.put(l, nowhere)
		if l.shared {
			delete(q.lines, l.template)
		}
	case l.head() == nil:
		if l.in != parked {
			q.put(l, parked)
		}
	case l.in == active:
		heap.Fix(&q.active, l.index)
	case l.in == misfits && len(l.fresh) == 0, l.in == faults:
	default:
		q.put(l, active)
	}
}

// listens says whether pods of the line wait for an event.
func (l *line) listens() bool { return len(l.tried) > 0 && !l.retry }

// listen has events come to a line, or not, as its pods want it.
func (q *queue) listen(l *line) {
	if !l.listens() {
		if delete(q.listening[l.template], l); len(q.listening[l.template]) == 0 {
			delete(q.listening, l.template)
		}
		delete(q.social, l)
		return
	}
	if q.listening[l.template] == nil {
		q.listening[l.template] = map[*line]struct{}{}
	}
	q.listening[l.template][l] = struct{}{}
	if l.company != nil {
		q.social[l] = struct{}{}
	} else {
		delete(q.social, l)
	}
}

// put moves a line.
func (q *queue) put(l *line, to where) {
	switch l.in {
	case active:
		heap.Remove(&q.active, l.index)
	case misfits:
		heap.Remove(&q.misfits, l.index)
	case faults:
		heap.Remove(&q.faults, l.index)
	}
	l.in = to
	switch to {
	case active:
		heap.Push(&q.active, l)
	case misfits:
		heap.Push(&q.misfits, l)
	case faults:
		heap.Push(&q.faults, l)
	}
}

// leave takes a pod out of its line.
func (q *queue) leave(w *waiting) {
	l := w.line
	if l == nil {
		return
	}
	if w.tried {
		heap.Remove(&l.tried, w.index)
	} else {
		heap.Remove(&l.fresh, w.index)
	}
	w.line = nil
	q.settle(l)
}

// remove forgets a pod.
func (q *queue) remove(uid types.UID) *waiting {
	w, ok := q.pods[uid]
	if !ok {
		return nil
	}
	q.leave(w)
	delete(q.pods, uid)
	return w
}

// pop takes the next pod out of its line; if there is none now, it returns the time of the
// next one, or zero. A line that backs off since its pods fitted nowhere is not waited for
// when nothing else is to do (kube-scheduler's SchedulerPopFromBackoffQ).
func (q *queue) pop(now time.Time) (*waiting, time.Time) {
	for _, later := range []*lineHeap{&q.misfits, &q.faults} {
		for len(later.items) > 0 && !later.items[0].due.After(now) {
			q.put(later.items[0], active)
		}
	}
	if len(q.active.items) == 0 && len(q.misfits.items) > 0 {
		q.put(q.misfits.items[0], active)
	}
	if len(q.active.items) > 0 {
		w := q.active.items[0].head()
		q.leave(w)
		return w, time.Time{}
	}
	if len(q.faults.items) > 0 {
		return nil, q.faults.items[0].due
	}
	return nil, time.Time{}
}

// misfit puts a pod that fits nowhere back into the line of its kin. What held for it holds
// for those that were told so earlier: they all wait for an event. A pod with a nominated
// node gets a line of its own.
func (q *queue) misfit(w *waiting, nominated bool, plugins PluginSet, now time.Time) *line {
	l := q.lines[w.template]
	if nominated || l == nil {
		l = q.newLine(w.template, !nominated)
	}
	if l.shared {
		q.lines[w.template] = l
	}
	if l.retry {
		l.failures++
	}
	w.misses++
	w.errors = 0
	l.failures = max(l.failures, w.misses)
	l.retry, l.failed = false, now
	q.turn++
	l.turn = q.turn
	q.object(l, plugins)
	q.join(w, l, true)
	return l
}

// object notes which plugins keep the pods of a line waiting.
func (q *queue) object(l *line, plugins PluginSet) {
	if l.plugins == plugins {
		return
	}
	l.plugins, l.company = plugins, companyOf(l.template.pod, plugins)
	q.listen(l)
}

// fault puts a pod aside after a failure that is not about room.
func (q *queue) fault(w *waiting, now time.Time) {
	q.leave(w)
	w.errors++
	l := q.newLine(w.template, false)
	l.due = now.Add(q.backoff(w.errors))
	w.line, w.tried = l, false
	heap.Push(&l.fresh, w)
	q.put(l, faults)
}

// backoff is how long a pod waits after so many failures in a row.
func (q *queue) backoff(failures int) time.Duration {
	if failures < 1 {
		return 0
	}
	return min(q.initial<<min(failures-1, 20), q.limit)
}

// placed notes that a pod of the template has found a node, which ends the back-off of its kin.
func (q *queue) placed(t *template) {
	if l := q.lines[t]; l != nil {
		l.failures = 0
	}
}

// help has the pods of a line that wait for an event tried again, after its back-off if there is other work.
func (q *queue) help(l *line, now time.Time) {
	if !l.listens() {
		return
	}
	if l.held {
		l.missed = true
		return
	}
	l.retry = true
	q.listen(l)
	if l.in == active { // for pods that have not been tried; those that wait for longer come first now
		heap.Fix(&q.active, l.index)
		return
	}
	if l.due = l.failed.Add(q.backoff(l.failures)); l.due.After(now) {
		q.put(l, misfits)
		return
	}
	q.put(l, active)
}

// flush has pods tried that have waited in vain for too long, each on its own. It says whether there are any.
func (q *queue) flush(now time.Time) bool {
	var stale []*line
	for _, lines := range q.listening {
		for l := range lines {
			if now.Sub(l.failed) >= q.patience && !l.held {
				stale = append(stale, l)
			}
		}
	}
	for _, l := range stale {
		for len(l.tried) > 0 {
			w := heap.Pop(&l.tried).(*waiting)
			w.tried = false
			heap.Push(&l.fresh, w)
		}
		q.settle(l)
	}
	return len(stale) > 0
}

// counts returns how many pods are in kube-scheduler's queues.
func (q *queue) counts() (inActive, inBackoff, unschedulable int) {
	for _, w := range q.pods {
		switch {
		case w.line == nil:
		case w.line.in == parked, w.tried && !w.line.retry:
			unschedulable++
		case w.line.in == active:
			inActive++
		default:
			inBackoff++
		}
	}
	return inActive, inBackoff, unschedulable
}

// lineHeap is a heap of lines that know their places.
type lineHeap struct {
	items  []*line
	before func(a, b *line) bool
}

// Len implements heap.Interface.
func (h *lineHeap) Len() int { return len(h.items) }

// Less implements heap.Interface.
func (h *lineHeap) Less(i, j int) bool { return h.before(h.items[i], h.items[j]) }

// Swap implements heap.Interface.
func (h *lineHeap) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].index, h.items[j].index = i, j
}

// Push implements heap.Interface.
func (h *lineHeap) Push(x any) {
	l := x.(*line)
	l.index = len(h.items)
	h.items = append(h.items, l)
}

// Pop implements heap.Interface.
func (h *lineHeap) Pop() any {
	last := len(h.items) - 1
	l := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	return l
}

// podHeap is a heap of waiting pods by arrival; they know their places.
type podHeap []*waiting

func (h podHeap) first() *waiting {
	if len(h) == 0 {
		return nil
	}
	return h[0]
}

// Len implements heap.Interface.
func (h podHeap) Len() int { return len(h) }

// Less implements heap.Interface.
func (h podHeap) Less(i, j int) bool { return h[i].number < h[j].number }

// Swap implements heap.Interface.
func (h podHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *podHeap) Push(x any) {
	w := x.(*waiting)
	w.index = len(*h)
	*h = append(*h, w)
}

// Pop implements heap.Interface.
func (h *podHeap) Pop() any {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return w
}
