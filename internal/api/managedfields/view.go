package managedfields

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// maxUpdaters is how many entries of updates upstream keeps before it merges the oldest
// (apimachinery, DefaultMaxUpdateManagers).
const maxUpdaters = 10

// Options bounds what a Tracker remembers.
type Options struct {
	SetBytes     int // encoded field sets of objects, default 4 MiB; a quarter of it on top decoded
	OutcomeBytes int // results of writes, default 2 MiB; half of it on top for differences
}

// Tracker holds what all kinds share: plans of types and memories of results. Safe for
// concurrent use, as are its Views.
type Tracker struct {
	planner     planner
	sets        sets
	outcomes    *cache[*outcome]
	differences *cache[*difference]
	applied     *cache[*fieldSet] // of configurations, by their shape
	doorkeeper  doorkeeper
	stripped    *fieldpath.Set
	converter   managedfields.TypeConverter
	nextID      atomic.Uint64
	scratch     sync.Pool // of *work

	mu    sync.Mutex // guards kinds
	kinds map[schema.GroupVersionKind]*kind
}

// kind is what the views of one kind share.
type kind struct {
	id   uint64
	gvk  schema.GroupVersionKind
	typ  reflect.Type // a pointer; nil refuses every object
	root *node
	// empty has the type's schema and no value.
	empty *typed.TypedValue
	// unsure says that upstream may find an error anywhere in an object.
	unsure bool
}

func (k *kind) key(buf []byte) []byte { return binary.AppendUvarint(buf, k.id) }

// View keeps the managed fields of a kind as they are written through the object itself or
// one of its subresources.
type View struct {
	tracker    *Tracker
	kind       *kind
	id         uint64
	apiVersion string
	sub        string
	filter     fieldpath.Filter // nil keeps every field
}

// New returns a Tracker of the types that converter knows.
func New(converter managedfields.TypeConverter, opts Options) (*Tracker, error) {
	opts.SetBytes = cmp.Or(opts.SetBytes, 4<<20)
	opts.OutcomeBytes = cmp.Or(opts.OutcomeBytes, 2<<20)
	if opts.SetBytes < 0 || opts.OutcomeBytes < 0 {
		return nil, fmt.Errorf("managedfields: SetBytes is %d, OutcomeBytes is %d; want no less than 0", opts.SetBytes, opts.OutcomeBytes)
	}
	return &Tracker{
		planner:     planner{known: make(map[nodeKey]*node)},
		sets:        sets{cache: newCache[*fieldSet](opts.SetBytes), decoded: newCache[*fieldpath.Set](opts.SetBytes / 4)},
		outcomes:    newCache[*outcome](opts.OutcomeBytes),
		differences: newCache[*difference](opts.OutcomeBytes / 2),
		applied:     newCache[*fieldSet](opts.OutcomeBytes / 2),
		doorkeeper:  doorkeeper{seed: maphash.MakeSeed()},
		stripped:    strippedFields(),
		converter:   converter,
		scratch:     sync.Pool{New: func() any { return &work{} }},
		kinds:       make(map[schema.GroupVersionKind]*kind),
	}, nil
}

// View returns the view of a kind through the subresource sub ("" is the object itself).
// empty is an object of the kind. reset are the fields that cannot be owned through the view.
func (t *Tracker) View(gvk schema.GroupVersionKind, sub string, empty runtime.Object, reset map[fieldpath.APIVersion]fieldpath.Filter) (*View, error) {
	k, err := t.kind(gvk, empty)
	if err != nil {
		return nil, err
	}
	version := gvk.GroupVersion().String()
	return &View{
		tracker: t, kind: k, id: t.nextID.Add(1), apiVersion: version, sub: sub,
		filter: reset[fieldpath.APIVersion(version)],
	}, nil
}

func (t *Tracker) kind(gvk schema.GroupVersionKind, empty runtime.Object) (*kind, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k := t.kinds[gvk]; k != nil {
		return k, nil
	}
	obj := empty.DeepCopyObject()
	obj.GetObjectKind().SetGroupVersionKind(gvk)
	value, err := t.converter.ObjectToTyped(obj)
	if err != nil {
		return nil, fmt.Errorf("finding the schema of %s: %w", gvk.Kind, err)
	}
	t.planner.schema = value.Schema()
	k := &kind{
		id:    t.nextID.Add(1),
		gvk:   gvk,
		typ:   reflect.TypeOf(empty),
		root:  t.planner.root(reflect.TypeOf(empty), value.TypeRef()),
		empty: value.Empty(),
	}
	if k.root.shape != object || !k.root.sound() {
		k.typ = nil // upstream has to do all of it
	}
	k.unsure = !k.root.certain()
	t.kinds[gvk] = k
	return k, nil
}

// Object is what has managed fields.
type Object interface {
	metav1.Object
	runtime.Object
}

// work is the memory of one Update.
type work struct {
	walker
	before []*fieldSet
	key    []byte
	same   outcome // of a write that moves no field
}

// maxScratch is the size above which the memory of an Update is not used again.
const maxScratch = 64 << 10

func (t *Tracker) release(w *work) {
	if cap(w.stream) > maxScratch || cap(w.key) > maxScratch || cap(w.bytes) > maxScratch || cap(w.names) > maxScratch/16 || cap(w.items) > maxScratch/16 {
		return
	}
	clear(w.names[:cap(w.names)])
	clear(w.before[:cap(w.before)])
	w.walker = walker{stream: w.stream[:0], names: w.names[:0], bytes: w.bytes[:0], items: w.items[:0], groups: w.groups[:0]}
	w.before, w.key, w.same = w.before[:0], w.key[:0], outcome{}
	t.scratch.Put(w)
}

// Update sets the managed fields of obj, which manager made of live, and reports whether it
// could. If not, obj is as it was, and upstream's manager must be asked. live has no UID if obj is
// being created.
//
// The entries share their encoded fields with other objects and must not be changed in place.
func (v *View) Update(live, obj Object, manager string) bool {
	if reflect.TypeOf(live) != v.kind.typ || reflect.TypeOf(obj) != v.kind.typ || !utf8.ValidString(manager) {
		return false
	}
	manager = cmp.Or(manager, "unknown")
	before, ok := v.entriesBefore(live, obj)
	if !ok {
		return false
	}
	if len(before) == 0 && live.GetUID() != "" {
		obj.SetManagedFields(nil) // nobody tracked it from the start
		return true
	}
	w := v.tracker.scratch.Get().(*work)
	defer v.tracker.release(w)
	own, ok := v.decode(w, before, manager)
	if !ok {
		return false
	}
	w.object(v.kind.root, reflect.ValueOf(live).Elem(), reflect.ValueOf(obj).Elem())
	if w.failed {
		return false
	}
	o, err := v.outcome(w, own)
	if err != nil {
		return false
	}
	after, ok := v.entriesAfter(before, own, o, manager)
	if ok {
		obj.SetManagedFields(after)
	}
	return ok
}

// entriesBefore chooses the entries that count: those of the new object, which a client may
// edit, unless it comes without any or through a subresource.
func (v *View) entriesBefore(live, obj metav1.Object) ([]metav1.ManagedFieldsEntry, bool) {
	if v.sub != "" {
		return live.GetManagedFields(), true
	}
	entries := obj.GetManagedFields()
	if entries == nil {
		return live.GetManagedFields(), true
	}
	return entries, len(entries) > 0 // empty but there is a reset
}

// decode finds the sets of the entries, and which entry is the manager's own. ok is false for entries
// that only upstream can judge.
func (v *View) decode(w *work, before []metav1.ManagedFieldsEntry, manager string) (own int, ok bool) {
	own = -1
	if len(before) > 2*maxUpdaters {
		return own, false
	}
	for i := range before {
		e := &before[i]
		known := e.Operation == metav1.ManagedFieldsOperationApply || e.Operation == metav1.ManagedFieldsOperationUpdate
		if !known || e.APIVersion != v.apiVersion || e.FieldsType != "FieldsV1" || e.FieldsV1 == nil ||
			!utf8.ValidString(e.Manager) || !utf8.ValidString(e.Subresource) {
			return own, false
		}
		for j := range before[:i] {
			if f := &before[j]; f.Manager == e.Manager && f.Operation == e.Operation && f.Subresource == e.Subresource {
				return own, false
			}
		}
		s := v.tracker.sets.decode(v.kind, e.FieldsV1.GetRawBytes(), &w.key)
		if s == nil {
			return own, false
		}
		w.before = append(w.before, s)
		if e.Operation == metav1.ManagedFieldsOperationUpdate && e.Manager == manager && e.Subresource == v.sub {
			own = i
		}
	}
	return own, true
}

// entriesAfter makes the entries of an outcome. ok is false if there are more than upstream
// leaves alone.
func (v *View) entriesAfter(before []metav1.ManagedFieldsEntry, own int, o *outcome, manager string) (after []metav1.ManagedFieldsEntry, ok bool) {
	after = make([]metav1.ManagedFieldsEntry, 0, len(before)+1)
	for i, left := range o.others {
		if left == nil || i == own && o.own != nil {
			continue
		}
		e := before[i]
		e.FieldsV1 = left.raw
		after = append(after, e)
	}
	if o.own != nil {
		after = append(after, metav1.ManagedFieldsEntry{
			Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: v.apiVersion, Subresource: v.sub,
			Time: &metav1.Time{Time: time.Now().UTC()}, FieldsType: "FieldsV1", FieldsV1: o.own.raw,
		})
	}
	updaters := 0
	for i := range after {
		if after[i].Operation == metav1.ManagedFieldsOperationUpdate {
			updaters++
		}
	}
	if updaters > maxUpdaters {
		return nil, false
	}
	if len(after) == 0 {
		return nil, true
	}
	slices.SortFunc(after, compareEntries)
	return after, true
}

// compareEntries is the order of managedFields (apimachinery, sortEncodedManagedFields).
func compareEntries(a, b metav1.ManagedFieldsEntry) int {
	seconds := func(t *metav1.Time) int64 {
		if t == nil {
			return 0
		}
		return t.Unix()
	}
	return cmp.Or(
		cmp.Compare(a.Operation, b.Operation),
		cmp.Compare(seconds(a.Time), seconds(b.Time)),
		cmp.Compare(a.Manager, b.Manager),
		cmp.Compare(a.APIVersion, b.APIVersion),
		cmp.Compare(a.Subresource, b.Subresource),
	)
}
