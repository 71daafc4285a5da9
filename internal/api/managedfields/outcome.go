package managedfields

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// fieldSet is an encoded set of fields that is known to decode and to be encoded as
// structured-merge-diff does. It is shared and does not change.
type fieldSet struct {
	id  uint64 // never used twice
	raw *metav1.FieldsV1
}

func (s *fieldSet) bytes() int { return 96 + len(s.raw.GetRawBytes()) }

// sets keeps field sets by kind and encoding, and a few of them decoded.
type sets struct {
	cache   *cache[*fieldSet]
	decoded *cache[*fieldpath.Set] // by id
	nextID  atomic.Uint64
}

// set decodes s.
func (s *sets) set(f *fieldSet) (*fieldpath.Set, error) {
	key := binary.LittleEndian.AppendUint64(nil, f.id)
	if known, ok := s.decoded.get(key); ok {
		return known, nil
	}
	set := fieldpath.NewSet()
	if err := set.FromJSON(bytes.NewReader(f.raw.GetRawBytes())); err != nil {
		return nil, fmt.Errorf("decoding a field set: %w", err)
	}
	return s.decoded.put(key, set, setBytes(set)), nil
}

// setBytes is about what a decoded set takes. A member is a path element of four pointers in
// a slice, what they point to, and mostly a node of its own.
func setBytes(set *fieldpath.Set) int { return 128 + 160*set.Size() }

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
	canonical, err := s.encode(k, set)
	if err != nil {
		return nil
	}
	if bytes.Equal(canonical.raw.GetRawBytes(), raw) {
		return canonical
	}
	return s.cache.put(key, canonical, 0)
}

// encode gives set with its encoding, as the one that is kept if it is known already.
func (s *sets) encode(k *kind, set *fieldpath.Set) (*fieldSet, error) {
	raw, err := set.ToJSON()
	if err != nil {
		return nil, fmt.Errorf("encoding a field set: %w", err)
	}
	key := append(k.key(nil), raw...)
	if known, ok := s.cache.get(key); ok {
		return known, nil
	}
	fields := &metav1.FieldsV1{}
	fields.SetRawBytes(raw)
	made := &fieldSet{id: s.nextID.Add(1), raw: fields}
	return s.cache.put(key, made, made.bytes()), nil
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

// outcome finds what the differences in w.stream make of the entries in w.before. The result
// is valid until w is released.
func (v *View) outcome(w *work, own int) (*outcome, error) {
	w.key = v.outcomeKey(w.key[:0], own, w.before, w.stream)
	if known, ok := v.tracker.outcomes.get(w.key); ok {
		return known, nil
	}
	diff, err := v.difference(w)
	if err != nil {
		return nil, err
	}
	moves, err := diff.moves(w.before, own)
	if err != nil {
		return nil, err
	}
	if moves {
		made, err := v.compute(w.before, own, diff)
		w.key = v.outcomeKey(w.key[:0], own, w.before, w.stream)
		if err == nil && v.tracker.doorkeeper.again(w.key) {
			made = v.tracker.outcomes.put(w.key, made, made.bytes())
		}
		return made, err
	}
	w.same = outcome{others: w.before}
	if own >= 0 && !diff.mine.Empty() {
		w.same.own = w.before[own]
	}
	return &w.same, nil
}

// difference is what a stream says, without the fields that the view resets.
type difference struct {
	removed, changed, mine *fieldpath.Set
	query                  func() (*query, error) // made when first asked for
}

func (d *difference) makeQuery() (*query, error) {
	q := &query{}
	for c, set := range [classes]*fieldpath.Set{mine: d.mine, bare: d.changed.Difference(d.mine), taken: d.removed} {
		if err := q.add(class(c), set); err != nil {
			return nil, fmt.Errorf("encoding a field set: %w", err)
		}
	}
	return q, nil
}

// difference reads w.stream. What was read twice is remembered, for objects of one kind that
// often change in the same way.
func (v *View) difference(w *work) (*difference, error) {
	w.key = append(binary.AppendUvarint(w.key[:0], v.id), w.stream...)
	if known, ok := v.tracker.differences.get(w.key); ok {
		return known, nil
	}
	read, err := readStream(v.kind.root, w.stream)
	if err != nil {
		return nil, err
	}
	if v.filter != nil {
		read = read.FilterFields(v.filter)
	}
	d := &difference{removed: read.Removed, changed: read.Modified.Union(read.Added)}
	d.mine = d.changed
	if v.filter != nil {
		d.mine = v.filter.Filter(d.mine)
	}
	d.mine = d.mine.Difference(v.tracker.stripped)
	d.query = sync.OnceValues(d.makeQuery)
	if v.tracker.doorkeeper.again(w.key) {
		size := 3 * (setBytes(d.changed) + setBytes(d.removed))
		d = v.tracker.differences.put(w.key, d, size)
	}
	return d, nil
}

// moves reports whether the difference makes any of the sets another. It does not where the
// writer changes what is its own already, as in any heartbeat.
func (d *difference) moves(before []*fieldSet, own int) (bool, error) {
	if own < 0 && !d.mine.Empty() {
		return true, nil
	}
	q, err := d.query()
	if err != nil {
		return false, err
	}
	for i, s := range before {
		raw := s.raw.GetRawBytes()
		if len(raw) <= len("{}") {
			return true, nil // an empty set is dropped
		}
		want := counts{}
		if i == own {
			want[mine] = q.total[mine]
		}
		if q.ask(raw) != want {
			return true, nil
		}
	}
	return false, nil
}

// compute does what structured-merge-diff's Updater does on an update and what the managers
// around it do with its result (apimachinery, managedfields/internal).
func (v *View) compute(before []*fieldSet, own int, diff *difference) (*outcome, error) {
	result := &outcome{others: make([]*fieldSet, len(before))}
	var previous *fieldpath.Set // what is left of the writer's own
	for i, s := range before {
		set, err := v.tracker.sets.set(s)
		if err != nil {
			return nil, err
		}
		left := set
		if conflicts := left.Intersection(diff.changed); !conflicts.Empty() {
			left = left.Difference(conflicts)
		}
		if !diff.removed.Empty() {
			left = left.Difference(diff.removed)
		}
		if i == own {
			previous = left
		}
		switch left.Size() {
		case 0:
		case set.Size(): // nothing was taken from it
			result.others[i] = s
		default:
			if i == own && !diff.mine.Empty() {
				continue // it is encoded below
			}
			if result.others[i], err = v.tracker.sets.encode(v.kind, left); err != nil {
				return nil, err
			}
		}
	}
	if diff.mine.Empty() {
		return result, nil
	}
	now := diff.mine
	if previous != nil {
		now = now.Union(previous)
	}
	var err error
	result.own, err = v.tracker.sets.encode(v.kind, now)
	return result, err
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
