package managedfields

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// The tokens of a stream. A path is opened step by step; what is marked within is closed
// again by up. Steps within which nothing is marked leave no trace.
const (
	stepField = 'f' // uvarint: index in the fields of the node
	stepKey   = 'k' // uvarint length, key of a map
	stepItem  = 'i' // uvarint length, name of an item: see name
	up        = 'u'
	added     = '+'
	removed   = '-'
	modified  = '~'
)

// walker compares two objects and writes the paths that differ.
type walker struct {
	stream []byte
	marks  int
	failed bool // only upstream can tell

	names  []string // keys of the maps being compared
	bytes  []byte   // names of the items being compared
	items  []listItem
	groups []listGroup
}

// side says whether a value is there. A null is there, and is nil in Go.
type side uint8

const (
	absent side = iota
	null
	there
)

func sideOf(v reflect.Value) (reflect.Value, side) {
	if !v.IsValid() {
		return v, absent
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return reflect.Value{}, null
		}
		return v.Elem(), there
	case reflect.Map, reflect.Slice:
		if v.IsNil() {
			return reflect.Value{}, null
		}
	}
	return v, there
}

// compare marks what differs between l and r, of which at least one is there.
func (w *walker) compare(n *node, l, r reflect.Value) {
	if n.shape >= leaf {
		w.leaf(n, l, r)
		return
	}
	if n.shape == entries {
		if l.IsValid() {
			w.mark(removed)
		}
		return
	}
	if l.IsValid() && r.IsValid() && l.Kind() == reflect.Pointer && l.UnsafePointer() == r.UnsafePointer() {
		return
	}
	l, lside := sideOf(l)
	r, rside := sideOf(r)
	var some bool // there is anything within
	switch n.shape {
	case object:
		some = w.object(n, l, r)
	case dict:
		some = w.dict(n, l, r)
	case keyed, set:
		some = w.list(n, l, r)
	default:
		if lside != there || rside != there || !alike(l, r) {
			w.failed = true
		}
		return
	}
	switch {
	case lside == absent:
		w.mark(added)
	case rside == absent:
		w.mark(removed)
	case !some && lside != rside:
		w.mark(modified) // null and empty are not the same
	}
}

func (w *walker) leaf(n *node, l, r reflect.Value) {
	switch {
	case !l.IsValid():
		w.mark(added)
	case !r.IsValid():
		w.mark(removed)
	case !n.same(l, r):
		w.mark(modified)
	}
}

func (w *walker) mark(m byte) {
	w.stream = append(w.stream, m)
	w.marks++
}

// leave ends the step that was written at start, when marks were made.
func (w *walker) leave(start, marks int) {
	if w.marks == marks {
		w.stream = w.stream[:start]
		return
	}
	w.stream = append(w.stream, up)
}

func (w *walker) object(n *node, l, r reflect.Value) (some bool) {
	for i := range n.fields {
		f := &n.fields[i]
		var lf, rf reflect.Value
		if l.IsValid() {
			lf = f.get(l)
		}
		if r.IsValid() {
			rf = f.get(r)
		}
		if !lf.IsValid() && !rf.IsValid() {
			continue
		}
		some = true
		start, marks := len(w.stream), w.marks
		if f.node.shape >= leaf && lf.IsValid() && rf.IsValid() && f.node.same(lf, rf) {
			continue
		}
		w.stream = binary.AppendUvarint(append(w.stream, stepField), uint64(i))
		if f.node.shape >= leaf && lf.IsValid() && rf.IsValid() {
			w.mark(modified)
		} else {
			w.compare(f.node, lf, rf)
		}
		w.leave(start, marks)
	}
	return some
}

func (w *walker) dict(n *node, l, r reflect.Value) (some bool) {
	if l.IsValid() && r.IsValid() && l.UnsafePointer() == r.UnsafePointer() {
		return l.Len() > 0
	}
	switch n.flat {
	case flatTexts:
		return flat(w, mapOf[map[string]string](l), mapOf[map[string]string](r), func(a, b string) bool { return a == b })
	case flatQuantities:
		return flat(w, mapOf[corev1.ResourceList](l), mapOf[corev1.ResourceList](r), sameQuantity)
	}
	base := len(w.names)
	w.collect(l)
	w.collect(r)
	names := w.sorted(base)
	for _, name := range names {
		key := reflect.ValueOf(name).Convert(n.typ.Key())
		var lv, rv reflect.Value
		if l.IsValid() {
			lv = l.MapIndex(key)
		}
		if r.IsValid() {
			rv = r.MapIndex(key)
		}
		start, marks := len(w.stream), w.marks
		w.step(stepKey, name)
		w.compare(n.elem, lv, rv)
		w.leave(start, marks)
	}
	w.names = w.names[:base]
	return len(names) > 0
}

func (w *walker) collect(v reflect.Value) {
	if !v.IsValid() {
		return
	}
	for it := v.MapRange(); it.Next(); {
		w.names = append(w.names, it.Key().String())
	}
}

// sorted orders the names from base on, so that equal maps give equal streams.
func (w *walker) sorted(base int) []string {
	slices.Sort(w.names[base:])
	return slices.Compact(w.names[base:])
}

func mapOf[M any](v reflect.Value) (m M) {
	if v.IsValid() {
		m, _ = v.Interface().(M)
	}
	return m
}

// flat is dict for maps that are common and have nothing but leaves.
func flat[K ~string, V any](w *walker, l, r map[K]V, same func(a, b V) bool) (some bool) {
	base := len(w.names)
	for key, was := range l {
		if is, ok := r[key]; !ok || !same(was, is) {
			w.names = append(w.names, string(key))
		}
	}
	for key := range r {
		if _, ok := l[key]; !ok {
			w.names = append(w.names, string(key))
		}
	}
	for _, name := range w.sorted(base) {
		w.step(stepKey, name)
		_, inL := l[K(name)]
		_, inR := r[K(name)]
		switch {
		case !inL:
			w.mark(added)
		case !inR:
			w.mark(removed)
		default:
			w.mark(modified)
		}
		w.stream = append(w.stream, up)
	}
	w.names = w.names[:base]
	return len(l)+len(r) > 0
}

func (w *walker) step(token byte, name string) {
	w.stream = binary.AppendUvarint(append(w.stream, token), uint64(len(name)))
	w.stream = append(w.stream, name...)
}

// listItem is one item of a list; its name is in walker.bytes.
type listItem struct{ start, end int }

// listGroup are the items of both lists that have one name.
type listGroup struct {
	name         listItem
	lFirst, lLen int
	rFirst, rLen int
}

// manyItems is where looking for a name one by one gets slower than a map.
const manyItems = 24

func (w *walker) list(n *node, l, r reflect.Value) (some bool) {
	lLen, rLen := 0, 0
	if l.IsValid() {
		lLen = l.Len()
	}
	if r.IsValid() {
		rLen = r.Len()
	}
	if lLen == rLen && lLen > 0 && !n.unsure && l.UnsafePointer() == r.UnsafePointer() {
		return true
	}
	baseBytes, baseItems, baseGroups := len(w.bytes), len(w.items), len(w.groups)
	w.nameItems(n, l, lLen)
	w.nameItems(n, r, rLen)
	if !w.failed {
		w.group(baseItems, lLen)
		for i := baseGroups; i < len(w.groups) && !w.failed; i++ {
			w.compareGroup(n, l, r, baseItems, lLen, w.groups[i])
		}
	}
	w.bytes, w.items, w.groups = w.bytes[:baseBytes], w.items[:baseItems], w.groups[:baseGroups]
	return lLen+rLen > 0
}

func (w *walker) nameItems(n *node, v reflect.Value, count int) {
	for i := range count {
		start := len(w.bytes)
		if n.shape == set {
			w.name(v.Index(i))
		} else {
			w.nameKeys(n, v.Index(i))
		}
		w.items = append(w.items, listItem{start, len(w.bytes)})
	}
}

// The parts of an item's name: text has a length before it, a number is a varint.
const (
	partText    = 's'
	partNumber  = 'n'
	partMissing = 'x'
)

func (w *walker) name(v reflect.Value) {
	if v.Kind() == reflect.String {
		w.nameText(v.String())
		return
	}
	w.bytes = binary.AppendVarint(append(w.bytes, partNumber), v.Int())
}

func (w *walker) nameText(s string) {
	w.bytes = binary.AppendUvarint(append(w.bytes, partText), uint64(len(s)))
	w.bytes = append(w.bytes, s...)
}

// nameKeys writes the keys of an item.
func (w *walker) nameKeys(n *node, item reflect.Value) {
	some := false
	for i := range n.keys {
		k := &n.keys[i]
		v := k.get(item)
		if v.IsValid() && v.Kind() == reflect.Pointer {
			if v.IsNil() {
				w.failed = true // a null is no key
				return
			}
			v = v.Elem()
		}
		switch {
		case v.IsValid():
			w.name(v)
		case k.defaults:
			w.nameText(k.fallback)
		default:
			w.bytes = append(w.bytes, partMissing)
			continue
		}
		some = true
	}
	w.failed = w.failed || !some
}

// group finds which of the items from base on have one name; the first lLen are of l.
func (w *walker) group(base, lLen int) {
	first := len(w.groups)
	var index map[string]int
	if len(w.items)-base > manyItems {
		index = make(map[string]int, len(w.items)-base)
	}
	next := first // in lists of the same order the group wanted is the next one
	for i, it := range w.items[base:] {
		name := w.bytes[it.start:it.end]
		g := -1
		if i == lLen {
			next = first
		}
		if next < len(w.groups) && bytes.Equal(w.nameOf(next), name) {
			g = next
		} else if index != nil {
			if found, ok := index[string(name)]; ok {
				g = found
			}
		} else {
			for j := first; j < len(w.groups); j++ {
				if bytes.Equal(w.nameOf(j), name) {
					g = j
					break
				}
			}
		}
		if g < 0 {
			g = len(w.groups)
			w.groups = append(w.groups, listGroup{name: it})
			if index != nil {
				index[string(name)] = g
			}
		}
		next = g + 1
		group := &w.groups[g]
		if i < lLen {
			if group.lLen == 0 {
				group.lFirst = i
			}
			group.lLen++
		} else {
			if group.rLen == 0 {
				group.rFirst = i - lLen
			}
			group.rLen++
		}
	}
}

func (w *walker) nameOf(group int) []byte {
	name := w.groups[group].name
	return w.bytes[name.start:name.end]
}

// compareGroup compares the items of one name. Items that are there twice are compared as
// one leaf, and their insides belong to nobody.
func (w *walker) compareGroup(n *node, l, r reflect.Value, base, lLen int, g listGroup) {
	start, marks := len(w.stream), w.marks
	w.stream = binary.AppendUvarint(append(w.stream, stepItem), uint64(g.name.end-g.name.start))
	w.stream = append(w.stream, w.bytes[g.name.start:g.name.end]...)
	var first, last reflect.Value
	if g.lLen > 0 {
		first = l.Index(g.lFirst)
	}
	if g.rLen > 0 {
		last = r.Index(g.rFirst)
	}
	switch {
	case g.lLen <= 1 && g.rLen <= 1:
		w.compare(n.elem, first, last)
	case g.lLen > 1 && g.rLen > 1:
		if !w.sameItems(l, r, base, lLen, g) {
			w.mark(modified)
		}
	case g.lLen > 1:
		if g.rLen > 0 {
			w.compare(n.elem, reflect.Value{}, last)
		}
		w.mark(removed)
	default:
		if g.lLen > 0 {
			w.compare(n.elem, first, reflect.Value{})
		}
		w.mark(added)
	}
	w.leave(start, marks)
}

// sameItems compares the items of a group one to one, in their order.
func (w *walker) sameItems(l, r reflect.Value, base, lLen int, g listGroup) bool {
	if g.lLen != g.rLen {
		return false
	}
	name := w.bytes[g.name.start:g.name.end]
	has := func(i int) bool { return bytes.Equal(w.bytes[w.items[base+i].start:w.items[base+i].end], name) }
	for i, j := g.lFirst, g.rFirst; i < lLen; i++ {
		if !has(i) {
			continue
		}
		for !has(lLen + j) {
			j++
		}
		if !sameSlowly(l.Index(i), r.Index(j)) {
			return false
		}
		j++
	}
	return true
}
