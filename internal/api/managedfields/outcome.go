package managedfields

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// fieldSet is a decoded set of fields with its encoding. It is shared and does not change.
type fieldSet struct {
	id  uint64 // never used twice
	raw *metav1.FieldsV1
	set *fieldpath.Set
}

// bytes is about what the set takes in memory. A member is a path element of four pointers
// in a slice, mostly in a node of its own.
func (s *fieldSet) bytes() int { return 128 + 3*len(s.raw.GetRawBytes()) + 96*s.set.Size() }

// sets keeps decoded field sets by kind and encoding.
type sets struct {
	cache  *cache[*fieldSet]
	nextID atomic.Uint64
}

// decode gives the set that raw encodes for a kind; nil where upstream has to look: what does
// not decode, and what a change of the schema would make upstream rewrite. scratch is memory
// for the key.
func (s *sets) decode(k *kind, raw []byte, scratch *[]byte) *fieldSet {
	key := append(k.key((*scratch)[:0]), raw...)
	*scratch = key
	if known, ok := s.cache.get(key); ok {
		return known
	}
	if !json.Valid(raw) {
		return nil
	}
	set := fieldpath.NewSet()
	if err := set.FromJSON(bytes.NewReader(raw)); err != nil {
		return nil
	}
	if rewritten, err := typed.ReconcileFieldSetWithSchema(set, k.empty); err != nil || rewritten != nil {
		return nil
	}
	canonical := s.encode(k, set)
	if canonical == nil || bytes.Equal(canonical.raw.GetRawBytes(), raw) {
		return canonical
	}
	return s.cache.put(key, canonical, 0)
}

// encode gives set with its encoding, as the one that is kept if it is known already.
func (s *sets) encode(k *kind, set *fieldpath.Set) *fieldSet {
	raw, err := set.ToJSON()
	if err != nil {
		return nil
	}
	key := append(k.key(nil), raw...)
	if known, ok := s.cache.get(key); ok {
		return known
	}
	fields := &metav1.FieldsV1{}
	fields.SetRawBytes(raw)
	made := &fieldSet{id: s.nextID.Add(1), raw: fields, set: set}
	return s.cache.put(key, made, made.bytes())
}

// outcome is what a write makes of the entries there were.
type outcome struct {
	others []*fieldSet // by index of the entry; nil where nothing is left of it
	own    *fieldSet   // what the writer owns then; nil if it changed nothing that can be owned
}

func (o *outcome) bytes() int {
	size := 64 + 8*len(o.others)
	for _, s := range o.others {
		if s != nil {
			size += s.bytes()
		}
	}
	if o.own != nil {
		size += o.own.bytes()
	}
	return size
}

// outcomeKey is all that an outcome depends on: the view, which of the entries is the
// writer's own (-1 if none), the entries, and the differences between the objects.
func (v *View) outcomeKey(buf []byte, own int, before []*fieldSet, stream []byte) []byte {
	buf = binary.AppendUvarint(buf, v.id)
	buf = append(buf, byte(own+1), byte(len(before)))
	for _, s := range before {
		buf = binary.LittleEndian.AppendUint64(buf, s.id)
	}
	return append(buf, stream...)
}

// outcome is compute, remembered from the second time on.
func (v *View) outcome(w *work, own int) (*outcome, error) {
	w.key = v.outcomeKey(w.key[:0], own, w.before, w.stream)
	if known, ok := v.tracker.outcomes.get(w.key); ok {
		return known, nil
	}
	made, err := v.compute(w.before, own, w.stream)
	if err == nil && v.tracker.doorkeeper.again(w.key) {
		made = v.tracker.outcomes.put(w.key, made, made.bytes())
	}
	return made, err
}

// compute does what structured-merge-diff's Updater does on an update and what the managers
// around it do with its result (apimachinery, managedfields/internal).
func (v *View) compute(before []*fieldSet, own int, stream []byte) (*outcome, error) {
	diff, err := readStream(v.kind.root, stream)
	if err != nil {
		return nil, err
	}
	if v.filter != nil {
		diff = diff.FilterFields(v.filter)
	}
	changed := diff.Modified.Union(diff.Added)
	result := &outcome{others: make([]*fieldSet, len(before))}
	for i, s := range before {
		left := s.set
		if taken := left.Intersection(changed); !taken.Empty() {
			left = left.Difference(taken)
		}
		if !diff.Removed.Empty() {
			left = left.Difference(diff.Removed)
		}
		switch left.Size() {
		case 0:
		case s.set.Size(): // nothing was taken from it
			result.others[i] = s
		default:
			if result.others[i] = v.tracker.sets.encode(v.kind, left); result.others[i] == nil {
				return nil, errEncode
			}
		}
	}
	if v.filter != nil {
		changed = v.filter.Filter(changed)
	}
	mine := changed.Difference(v.tracker.stripped)
	if mine.Empty() {
		return result, nil
	}
	if own >= 0 && result.others[own] != nil {
		mine = mine.Union(result.others[own].set)
		if before[own].set.Equals(mine) { // the values of its fields changed, as in any heartbeat
			result.own = before[own]
			return result, nil
		}
	}
	if result.own = v.tracker.sets.encode(v.kind, mine); result.own == nil {
		return nil, errEncode
	}
	return result, nil
}

// strippedFields are fields that never belong to who wrote them (apimachinery, stripmeta.go).
func strippedFields() *fieldpath.Set {
	set := fieldpath.NewSet(fieldpath.MakePathOrDie("apiVersion"), fieldpath.MakePathOrDie("kind"), fieldpath.MakePathOrDie("metadata"))
	for _, name := range []string{
		"name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields", "resourceVersion",
	} {
		set.Insert(fieldpath.MakePathOrDie("metadata", name))
	}
	return set
}
