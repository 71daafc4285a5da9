package managedfields

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"slices"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/structured-merge-diff/v6/value"
)

// Apply merges an applied configuration into live, as manager, and returns the result with its managed fields. It does
// so only in the usual case, which is that manager applies again what it owns already, with other values: then nothing
// is to be added, pruned or moved. ok is false in all others, and for all errors; upstream's manager must be asked then.
// live and config stay as they are.
func (v *View) Apply(live Object, config map[string]any, manager string) (merged Object, ok bool) {
	if v.kind.unsure || reflect.TypeOf(live) != v.kind.typ || manager == "" || !utf8.ValidString(manager) || !v.isOfKind(config) {
		return nil, false
	}
	entries := live.GetManagedFields()
	own := slices.IndexFunc(entries, func(e metav1.ManagedFieldsEntry) bool {
		return e.Operation == metav1.ManagedFieldsOperationApply && e.Manager == manager && e.Subresource == v.sub
	})
	if own < 0 {
		return nil, false
	}
	w := v.tracker.scratch.Get().(*work)
	defer v.tracker.release(w)
	if _, ok := v.decode(w, entries, manager); !ok {
		return nil, false
	}
	merged, ok = live.DeepCopyObject().(Object)
	if !ok {
		return nil, false
	}
	a := applier{walker: &w.walker}
	a.object(v.kind.root, reflect.ValueOf(merged).Elem(), config, 0)
	if a.failed || w.failed || !v.ownsAll(w, own, a.shape, config) || v.touchesOthers(w, own) {
		return nil, false
	}
	if manager == "kubectl" && merged.GetAnnotations()[corev1.LastAppliedConfigAnnotation] != "" {
		return nil, false // upstream keeps the annotation up
	}
	after := make([]metav1.ManagedFieldsEntry, len(entries))
	for i := range entries {
		after[i] = entries[i]
		after[i].FieldsV1 = w.before[i].raw
	}
	if w.marks > 0 {
		after[own].Time = &metav1.Time{Time: time.Now().UTC()}
	}
	slices.SortFunc(after, compareEntries)
	merged.SetManagedFields(after)
	return merged, true
}

// isOfKind reports whether config is a whole document of the view's kind.
func (v *View) isOfKind(config map[string]any) bool {
	return config["kind"] == v.kind.gvk.Kind && config["apiVersion"] == v.apiVersion
}

// ownsAll reports whether the fields of config, whose shape is given, are just those that the writer owns.
func (v *View) ownsAll(w *work, own int, shape []byte, config map[string]any) bool {
	w.key = append(binary.AppendUvarint(w.key[:0], v.id), shape...)
	set, known := v.tracker.applied.get(w.key)
	if !known {
		if set = v.fieldsOf(config); set == nil {
			return false
		}
		if v.tracker.doorkeeper.again(w.key) {
			set = v.tracker.applied.put(w.key, set, set.bytes())
		}
	}
	return bytes.Equal(set.raw.GetRawBytes(), w.before[own].raw.GetRawBytes())
}

// fieldsOf is what upstream makes of config: the set that its applier owns. It is nil if there is none.
func (v *View) fieldsOf(config map[string]any) *fieldSet {
	typed, err := v.tracker.converter.ObjectToTyped(&unstructured.Unstructured{Object: config})
	if err != nil {
		return nil
	}
	set, err := typed.ToFieldSet()
	if err != nil {
		return nil
	}
	if v.filter != nil {
		set = v.filter.Filter(set)
	}
	if set = set.Difference(v.tracker.stripped); set.Empty() {
		return nil
	}
	encoded, err := v.tracker.sets.encode(v.kind, set)
	if err != nil {
		return nil
	}
	return encoded
}

// touchesOthers reports whether w.stream changes what another than the writer owns, or whether that cannot be told.
func (v *View) touchesOthers(w *work, own int) bool {
	for _, s := range w.before {
		if len(s.raw.GetRawBytes()) <= len("{}") {
			return true // upstream drops an empty set
		}
	}
	if w.marks == 0 || len(w.before) == 1 {
		return false
	}
	diff, err := v.difference(w)
	if err != nil {
		return true
	}
	q, err := diff.query()
	if err != nil {
		return true
	}
	for i, s := range w.before {
		if i != own && q.ask(s.raw.GetRawBytes()) != (counts{}) {
			return true
		}
	}
	return false
}

// applier writes a configuration into a copy of an object whose fields are all there already. What it changes is
// marked in the walker's stream; shape has the paths of the configuration in the same form.
type applier struct {
	*walker
	shape  []byte
	failed bool // only upstream can tell
}

// maxAppliedItems bounds lists whose items are compared one with another.
const maxAppliedItems = 64

func (a *applier) fail() { a.failed = true }

// open begins a step in both streams; the result ends it.
func (a *applier) open(token []byte) (done func()) {
	start, marks := len(a.stream), a.marks
	a.stream, a.shape = append(a.stream, token...), append(a.shape, token...)
	return func() {
		a.leave(start, marks)
		a.shape = append(a.shape, up)
	}
}

// value merges config into v, which must be there.
func (a *applier) value(n *node, v reflect.Value, config any, depth int) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			a.fail()
			return
		}
		v = v.Elem()
	}
	switch n.shape {
	case object:
		fields, ok := config.(map[string]any)
		if !ok {
			a.fail()
			return
		}
		if len(fields) == 0 {
			a.shape = append(a.shape, added) // belongs to who says so
			return
		}
		a.object(n, v, fields, depth)
	case dict:
		a.dict(n, v, config, depth)
	case keyed, set:
		a.list(n, v, config, depth)
	case opaque, entries:
		a.fail()
	default:
		a.shape = append(a.shape, added)
		a.write(n, v, config)
	}
}

// object merges the fields of a struct.
func (a *applier) object(n *node, v reflect.Value, config map[string]any, depth int) {
	left := len(config)
	for i := 0; i < len(n.fields) && !a.failed; i++ {
		f := &n.fields[i]
		to, ok := config[f.name]
		if !ok {
			continue
		}
		left--
		there := f.get(v)
		if !there.IsValid() || to == nil {
			a.fail()
			return
		}
		if depth == 1 && f.node.shape >= leaf && f.node.typ != nil && n.meta && !unchanged(there, to) {
			a.fail() // another name or revision
			return
		}
		if f.omit != omitNever && there.Kind() != reflect.Pointer && isZero(to) {
			a.fail() // it would vanish
			return
		}
		var token [1 + binary.MaxVarintLen64]byte
		token[0] = stepField
		done := a.open(token[:1+binary.PutUvarint(token[1:], uint64(i))])
		a.value(f.node, there, to, depth+1)
		done()
	}
	if depth == 0 {
		left -= 2 // apiVersion and kind
	}
	if left != 0 {
		a.fail() // fields that the type does not have
	}
}

// unchanged compares a scalar; false if it is none.
func unchanged(v reflect.Value, config any) bool {
	text, ok := config.(string)
	return ok && v.Kind() == reflect.String && v.String() == text
}

// isZero reports whether a scalar is one that omitempty leaves out.
func isZero(config any) bool {
	switch c := config.(type) {
	case string:
		return c == ""
	case int64:
		return c == 0
	case bool:
		return !c
	}
	return false
}

// dict merges the keys of a map.
func (a *applier) dict(n *node, v reflect.Value, config any, depth int) {
	keys, ok := config.(map[string]any)
	if !ok || v.Len() == 0 {
		a.fail()
		return
	}
	if len(keys) == 0 {
		a.shape = append(a.shape, added)
		return
	}
	base := len(a.names)
	for key := range keys {
		a.names = append(a.names, key)
	}
	texts, _ := v.Interface().(map[string]string)
	for _, key := range a.sorted(base) {
		if a.failed {
			break
		}
		token := append(binary.AppendUvarint([]byte{stepKey}, uint64(len(key))), key...)
		done := a.open(token)
		if n.flat == flatTexts && texts != nil {
			a.text(texts, key, keys[key])
		} else if there := v.MapIndex(reflect.ValueOf(key).Convert(n.typ.Key())); there.IsValid() && n.elem.shape >= leaf {
			a.shape = append(a.shape, added)
			if there.Kind() == reflect.Pointer || !sameAsConfig(there, keys[key]) {
				a.fail() // an item of a map cannot be written in place
			}
		} else {
			a.fail()
		}
		done()
	}
	a.names = a.names[:base]
}

func (a *applier) text(texts map[string]string, key string, config any) {
	a.shape = append(a.shape, added)
	was, there := texts[key]
	is, ok := config.(string)
	switch {
	case !there || !ok:
		a.fail()
	case was != is:
		texts[key] = is
		a.mark(modified)
	}
}

// list merges the items of a list, which must all be there, once and in the same order.
func (a *applier) list(n *node, v reflect.Value, config any, depth int) {
	items, ok := config.([]any)
	if !ok || v.Len() == 0 || v.Len() > maxAppliedItems {
		a.fail()
		return
	}
	baseBytes, baseItems := len(a.bytes), len(a.items)
	defer func() { a.bytes, a.items = a.bytes[:baseBytes], a.items[:baseItems] }()
	a.nameItems(n, v, v.Len())
	names := a.items[baseItems:]
	name := func(i int) []byte { return a.bytes[names[i].start:names[i].end] }
	for i := range names {
		for j := range i {
			if bytes.Equal(name(i), name(j)) {
				a.fail()
				return
			}
		}
	}
	at := 0
	for _, item := range items {
		start := len(a.bytes)
		a.nameConfig(n, item)
		wanted := a.bytes[start:]
		for at < len(names) && !bytes.Equal(name(at), wanted) {
			at++
		}
		if a.failed || at == len(names) {
			a.fail()
			return
		}
		token := append(binary.AppendUvarint([]byte{stepItem}, uint64(len(wanted))), wanted...)
		done := a.open(token)
		if n.shape == set {
			a.shape = append(a.shape, added)
		} else {
			a.value(n.elem, v.Index(at), item, depth+1)
		}
		done()
		if a.failed {
			return
		}
		at++
	}
}

// nameConfig writes the name of an item as nameItems does.
func (a *applier) nameConfig(n *node, item any) {
	if n.shape == set {
		a.nameScalar(n.elem, item)
		return
	}
	fields, ok := item.(map[string]any)
	if !ok || len(fields) == 0 {
		a.fail()
		return
	}
	for i := range n.keys {
		k := &n.keys[i]
		switch to, there := fields[k.name]; {
		case there:
			a.nameScalar(k.node, to)
		case k.defaults:
			a.nameText(k.fallback)
		default:
			a.bytes = append(a.bytes, partMissing)
		}
	}
}

func (a *applier) nameScalar(n *node, config any) {
	switch c := config.(type) {
	case string:
		if n.shape == leafString {
			a.nameText(c)
			return
		}
	case int64:
		if n.shape == leafInt {
			a.bytes = binary.AppendVarint(append(a.bytes, partNumber), c)
			return
		}
	}
	a.fail()
}

// write sets a leaf.
func (a *applier) write(n *node, v reflect.Value, config any) {
	switch n.shape {
	case leafString:
		if to, ok := config.(string); !ok {
			a.fail()
		} else if v.String() != to {
			v.SetString(to)
			a.mark(modified)
		}
	case leafInt:
		if to, ok := config.(int64); !ok || v.OverflowInt(to) {
			a.fail()
		} else if v.Int() != to {
			v.SetInt(to)
			a.mark(modified)
		}
	case leafBool:
		if to, ok := config.(bool); !ok {
			a.fail()
		} else if v.Bool() != to {
			v.SetBool(to)
			a.mark(modified)
		}
	default:
		if !sameAsConfig(v, config) {
			a.fail()
		}
	}
}

// sameAsConfig compares as structured-merge-diff does.
func sameAsConfig(v reflect.Value, config any) bool {
	if config == nil {
		return false
	}
	there, err := generic(v)
	return err == nil && value.Equals(there, value.NewValueInterface(config))
}
