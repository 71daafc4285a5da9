package events

import (
	"container/list"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Figures of client-go's event correlator (tools/record/events_cache.go) and of its
// series broadcaster (tools/events).
const (
	similarLimit    = 10               // distinct texts of one kind before they are combined
	similarInterval = 10 * time.Minute // how long a text counts as recent
	spamBurst       = 25               // events an object may send at once
	spamRefill      = 5 * time.Minute  // time to earn one more
	seriesInterval  = 6 * time.Minute  // a series that was quiet for longer starts anew
	cacheSize       = 4096             // objects, kinds and texts remembered
	combinedPrefix  = "(combined from similar events): "
)

// write is one change to make: create event, or patch it and create it if it is gone.
type write struct {
	event *corev1.Event
	patch map[string]any
}

// kindKey is what similar events share; textKey is what equal events share.
type kindKey struct {
	source                            string
	kind, namespace, name, uid, field string
	eventType, reason                 string
}

type textKey struct {
	kindKey
	note string
}

type spamKey struct{ source, kind, namespace, name, uid string }

// correlator decides what becomes of each event. It is used by one goroutine.
type correlator struct {
	buckets *recent[spamKey, bucket]
	similar *recent[kindKey, similarity]
	texts   *recent[textKey, corev1.Event]
}

type bucket struct {
	tokens float64
	filled time.Time
}

type similarity struct {
	notes map[string]struct{}
	last  time.Time
}

func newCorrelator() *correlator {
	return &correlator{
		buckets: newRecent[spamKey, bucket](), similar: newRecent[kindKey, similarity](), texts: newRecent[textKey, corev1.Event](),
	}
}

// observe returns the write that p leads to, or false if p is to be left out.
func (c *correlator) observe(p pending) (write, bool) {
	if p.source.Actions != nil {
		return c.observeSeries(p), true
	}
	kind := keyOf(p)
	text := textKey{kind, p.note}
	seen := c.similar.get(kind)
	if seen.notes == nil || p.at.Sub(seen.last) > similarInterval {
		*seen = similarity{notes: map[string]struct{}{}}
	}
	seen.last = p.at
	if len(seen.notes) <= similarLimit {
		seen.notes[p.note] = struct{}{}
	}
	if len(seen.notes) >= similarLimit {
		p.note = combinedPrefix + p.note
		text = textKey{kind, combinedPrefix}
	}
	if !c.allow(p) {
		return write{}, false
	}
	known := c.texts.get(text)
	if known.Count == 0 {
		*known = *newEvent(p)
		return write{event: known.DeepCopy()}, true
	}
	known.Count++
	known.LastTimestamp = metav1.NewTime(p.at)
	known.Message = truncate(p.note)
	return write{event: known.DeepCopy(), patch: map[string]any{
		"count": known.Count, "lastTimestamp": known.LastTimestamp, "message": known.Message,
	}}, true
}

// observeSeries joins equal events of the newer shape into a series.
func (c *correlator) observeSeries(p pending) write {
	known := c.texts.get(textKey{keyOf(p), p.note})
	last := known.EventTime.Time
	if known.Series != nil {
		last = known.Series.LastObservedTime.Time
	}
	if last.IsZero() || p.at.Sub(last) > seriesInterval {
		*known = *newEvent(p)
		return write{event: known.DeepCopy()}
	}
	if known.Series == nil {
		known.Series = &corev1.EventSeries{Count: 1}
	}
	known.Series.Count++
	known.Series.LastObservedTime = metav1.NewMicroTime(p.at)
	return write{event: known.DeepCopy(), patch: map[string]any{"series": known.Series}}
}

// allow takes a token from the bucket of the event's object.
func (c *correlator) allow(p pending) bool {
	b := c.buckets.get(spamKey{p.source.Component, p.ref.Kind, p.ref.Namespace, p.ref.Name, string(p.ref.UID)})
	if b.filled.IsZero() {
		*b = bucket{tokens: spamBurst, filled: p.at}
	}
	b.tokens = min(spamBurst, b.tokens+float64(p.at.Sub(b.filled))/float64(spamRefill))
	b.filled = p.at
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func keyOf(p pending) kindKey {
	return kindKey{
		source: p.source.Component, kind: p.ref.Kind, namespace: p.ref.Namespace, name: p.ref.Name,
		uid: string(p.ref.UID), field: p.ref.FieldPath, eventType: p.kind, reason: p.reason,
	}
}

// recent remembers the cacheSize most recently used values.
type recent[K comparable, V any] struct {
	byKey map[K]*list.Element
	order *list.List // front is the newest
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

func newRecent[K comparable, V any]() *recent[K, V] {
	return &recent[K, V]{byKey: map[K]*list.Element{}, order: list.New()}
}

// get returns the value of key, a zero one if it is new.
func (r *recent[K, V]) get(key K) *V {
	if element, ok := r.byKey[key]; ok {
		r.order.MoveToFront(element)
		return &element.Value.(*entry[K, V]).value
	}
	if r.order.Len() >= cacheSize {
		oldest := r.order.Back()
		r.order.Remove(oldest)
		delete(r.byKey, oldest.Value.(*entry[K, V]).key)
	}
	added := &entry[K, V]{key: key}
	r.byKey[key] = r.order.PushFront(added)
	return &added.value
}
