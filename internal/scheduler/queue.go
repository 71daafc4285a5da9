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
	priority int32
	number   uint64 // order of arrival
	attempts int    // failed binds in a row
	message  string // why it fitted nowhere, as last reported

	in    where
	index int       // in its heap
	due   time.Time // when in is backingOff
}

// where a waiting pod is.
type where uint8

const (
	nowhere    where = iota // being placed or bound
	active                  // to be placed
	backingOff              // to be placed later
	unplaced                // fits nowhere, waits for an event that helps
)

// Back-off after a failed bind (kube-scheduler's podInitialBackoffSeconds and podMaxBackoffSeconds).
const (
	firstBackoff = time.Second
	maxBackoff   = 10 * time.Second
)

// queue orders the pods that wait: by priority, then by arrival.
type queue struct {
	pods    map[types.UID]*waiting
	active  podHeap
	later   podHeap
	misfits map[*template]map[*waiting]struct{}
	arrived uint64
}

func newQueue() *queue {
	return &queue{
		pods:    map[types.UID]*waiting{},
		active:  podHeap{before: func(a, b *waiting) bool { return sooner(a, b) }},
		later:   podHeap{before: func(a, b *waiting) bool { return a.due.Before(b.due) }},
		misfits: map[*template]map[*waiting]struct{}{},
	}
}

func sooner(a, b *waiting) bool {
	if a.priority != b.priority {
		return a.priority > b.priority
	}
	return a.number < b.number
}

// add takes in a new pod.
func (q *queue) add(pod *corev1.Pod, t *template) {
	q.arrived++
	w := &waiting{pod: pod, template: t, priority: priorityOf(pod), number: q.arrived}
	q.pods[pod.UID] = w
	q.activate(w)
}

// activate puts a pod among those to be placed now.
func (q *queue) activate(w *waiting) {
	q.leave(w)
	w.in = active
	heap.Push(&q.active, w)
}

// backOff puts a pod aside after a failure that is not about room.
func (q *queue) backOff(w *waiting, now time.Time) {
	q.leave(w)
	wait := firstBackoff << min(w.attempts, 10)
	w.attempts++
	w.due, w.in = now.Add(min(wait, maxBackoff)), backingOff
	heap.Push(&q.later, w)
}

// misfit puts a pod aside until room is made for it.
func (q *queue) misfit(w *waiting) {
	q.leave(w)
	w.in = unplaced
	same := q.misfits[w.template]
	if same == nil {
		same = map[*waiting]struct{}{}
		q.misfits[w.template] = same
	}
	same[w] = struct{}{}
}

// leave takes a pod out of where it is.
func (q *queue) leave(w *waiting) {
	switch w.in {
	case active:
		heap.Remove(&q.active, w.index)
	case backingOff:
		heap.Remove(&q.later, w.index)
	case unplaced:
		delete(q.misfits[w.template], w)
		if len(q.misfits[w.template]) == 0 {
			delete(q.misfits, w.template)
		}
	}
	w.in = nowhere
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

// pop returns the next pod to place; if there is none now, the time of the next one, or zero.
func (q *queue) pop(now time.Time) (*waiting, time.Time) {
	for len(q.later.items) > 0 && !q.later.items[0].due.After(now) {
		q.activate(q.later.items[0])
	}
	if len(q.active.items) > 0 {
		w := q.active.items[0]
		q.leave(w)
		return w, time.Time{}
	}
	if len(q.later.items) > 0 {
		return nil, q.later.items[0].due
	}
	return nil, time.Time{}
}

// podHeap is a heap of waiting pods that know their places.
type podHeap struct {
	items  []*waiting
	before func(a, b *waiting) bool
}

// Len implements heap.Interface.
func (h *podHeap) Len() int { return len(h.items) }

// Less implements heap.Interface.
func (h *podHeap) Less(i, j int) bool { return h.before(h.items[i], h.items[j]) }

// Swap implements heap.Interface.
func (h *podHeap) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].index, h.items[j].index = i, j
}

// Push implements heap.Interface.
func (h *podHeap) Push(x any) {
	w := x.(*waiting)
	w.index = len(h.items)
	h.items = append(h.items, w)
}

// Pop implements heap.Interface.
func (h *podHeap) Pop() any {
	last := len(h.items) - 1
	w := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	return w
}
