package managedfields

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/value"
)

// shape says how a value is compared.
type shape uint8

const (
	opaque  shape = iota // not understood: any difference is for upstream
	entries              // the object's own managedFields: gone from the new object
	object               // a struct, field by field
	dict                 // a map, key by key
	keyed                // a list whose items have keys
	set                  // a list of scalars in which each is there once
	leaf                 // all or nothing; the shapes from here on are leaves
	leafString
	leafInt
	leafBool
	leafBytes
	leafTime
	leafMicroTime
	leafQuantity
	leafIntOrString
)

// node is the plan of one Go type as seen through one schema type. Nodes do not change once
// compiled.
type node struct {
	shape  shape
	typ    reflect.Type // never a pointer
	fields []field      // of an object, sorted by name
	elem   *node        // of a dict, keyed or set
	keys   []listKey    // of a keyed, sorted by name
	flat   flatMap      // of a dict
	meta   bool         // the object's own metadata
	unsure bool         // an item of the keyed may lack all keys, which upstream takes for an error
}

// flatMap says that a dict is of a type that is compared without reflection.
type flatMap uint8

const (
	flatNot flatMap = iota
	flatTexts
	flatQuantities
)

// field is one JSON field of a struct. Fields of inlined structs are their owner's.
type field struct {
	name  string
	index []int
	omit  omission
	zero  func(reflect.Value) bool // of omitZero
	node  *node
	elem  fieldpath.PathElement
}

// omission is when a field is not there in JSON.
type omission uint8

const (
	omitNever omission = iota
	omitEmptyText
	omitEmptyList // slices and maps
	omitNil
	omitFalse
	omitNumber
	omitZero
	omitZeroTime
)

// listKey is one of the fields that name an item of a list.
type listKey struct {
	field
	fallback string // the schema's default for a field that is not there
	defaults bool
}

// planner compiles plans. Types are shared between kinds.
type planner struct {
	mu     sync.Mutex // guards known
	known  map[nodeKey]*node
	schema *schema.Schema
}

type nodeKey struct {
	typ      reflect.Type
	named    string
	inlined  schema.Atom
	relation schema.ElementRelationship
}

// root compiles the plan of a kind. Its apiVersion and kind are not compared: upstream
// gives both objects the same before it compares them.
func (p *planner) root(typ reflect.Type, ref schema.TypeRef) *node {
	p.mu.Lock()
	defer p.mu.Unlock()
	root := *p.compileLocked(typ, ref)
	if root.shape != object {
		return &root
	}
	root.fields = slices.DeleteFunc(slices.Clone(root.fields), func(f field) bool { return f.name == "apiVersion" || f.name == "kind" })
	for i := range root.fields {
		f := &root.fields[i]
		if f.name != "metadata" {
			continue
		}
		meta := *f.node
		meta.fields = slices.Clone(meta.fields)
		meta.meta = true
		for j := range meta.fields {
			if meta.fields[j].name == "managedFields" {
				meta.fields[j].node = &node{shape: entries}
			}
		}
		f.node = &meta
	}
	return &root
}

// sound reports whether an error that upstream finds in an object of the kind is seen even in
// parts that are skipped because they are the same: lists that can be in error must be fields
// of the object itself.
func (n *node) sound() bool { return n.sureFrom(2) }

// certain reports whether upstream finds no such error in any object of the kind.
func (n *node) certain() bool { return n.sureFrom(0) }

// sureFrom reports whether no list that can be in error is at that depth or deeper.
func (n *node) sureFrom(least int) bool {
	seen := make(map[*node]bool)
	var visit func(n *node, depth int) bool
	visit = func(n *node, depth int) bool {
		if n == nil || seen[n] {
			return true
		}
		seen[n] = true
		if n.unsure && depth >= least || !visit(n.elem, depth+1) {
			return false
		}
		for i := range n.fields {
			if !visit(n.fields[i].node, depth+1) {
				return false
			}
		}
		return true
	}
	return visit(n, 0)
}

func (p *planner) compileLocked(typ reflect.Type, ref schema.TypeRef) *node {
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	key := nodeKey{typ: typ, inlined: ref.Inlined}
	if ref.NamedType != nil {
		key.named = *ref.NamedType
	}
	if ref.ElementRelationship != nil {
		key.relation = *ref.ElementRelationship
	}
	if n := p.known[key]; n != nil {
		return n
	}
	n := &node{typ: typ}
	p.known[key] = n
	atom, ok := p.schema.Resolve(ref)
	if !ok || typ.Kind() == reflect.Pointer {
		return n
	}
	switch kinds := [...]bool{atom.Scalar != nil, atom.List != nil, atom.Map != nil}; kinds {
	case [...]bool{true, false, false}:
		n.shape = scalarShape(typ, *atom.Scalar)
	case [...]bool{false, true, false}:
		p.listLocked(n, atom.List)
	case [...]bool{false, false, true}:
		p.mapLocked(n, atom.Map)
	case [...]bool{true, true, true}:
		n.shape = anyShape(typ, atom)
	}
	return n
}

// anyShape is of types whose schema allows every kind of value, where each kind is a leaf.
func anyShape(typ reflect.Type, atom schema.Atom) shape {
	if *atom.Scalar != schema.Untyped {
		return opaque
	}
	switch typ {
	case reflect.TypeFor[intstr.IntOrString]():
		return leafIntOrString
	case reflect.TypeFor[runtime.RawExtension]():
		return pick(atom.List.ElementRelationship == schema.Atomic && atom.Map.ElementRelationship == schema.Atomic, leaf)
	}
	return opaque
}

// scalarShape is opaque where the Go type would not pass as the schema's scalar.
func scalarShape(typ reflect.Type, scalar schema.Scalar) shape {
	text := scalar == schema.String || scalar == schema.Untyped
	if value.TypeReflectEntryOf(typ).CanConvertToUnstructured() {
		switch typ {
		case reflect.TypeFor[metav1.Time]():
			return pick(text, leafTime)
		case reflect.TypeFor[metav1.MicroTime]():
			return pick(text, leafMicroTime)
		case reflect.TypeFor[resource.Quantity]():
			return pick(text, leafQuantity)
		case reflect.TypeFor[metav1.Duration]():
			return pick(text, leaf)
		case reflect.TypeFor[intstr.IntOrString]():
			return pick(scalar == schema.Untyped, leafIntOrString)
		}
		return opaque
	}
	number := scalar == schema.Numeric || scalar == schema.Untyped
	switch typ.Kind() {
	case reflect.String:
		return pick(text, leafString)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return pick(number, leafInt)
	case reflect.Float32, reflect.Float64:
		return pick(number, leaf)
	case reflect.Bool:
		return pick(scalar == schema.Boolean || scalar == schema.Untyped, leafBool)
	case reflect.Slice:
		return pick(text && typ.Elem().Kind() == reflect.Uint8, leafBytes)
	}
	return opaque
}

func pick(fits bool, s shape) shape {
	if fits {
		return s
	}
	return opaque
}

func converts(typ reflect.Type) bool { return value.TypeReflectEntryOf(typ).CanConvertToUnstructured() }

func (p *planner) mapLocked(n *node, m *schema.Map) {
	if converts(n.typ) {
		return
	}
	switch n.typ.Kind() {
	case reflect.Struct:
		fields, ok := p.fieldsLocked(n.typ, m)
		if !ok {
			return
		}
		n.fields, n.shape = fields, object
		if m.ElementRelationship == schema.Atomic {
			n.shape = leaf
		}
	case reflect.Map:
		if n.typ.Key().Kind() != reflect.String || len(m.Fields) > 0 || n.typ.Elem().Kind() == reflect.Pointer {
			return
		}
		n.elem = p.compileLocked(n.typ.Elem(), m.ElementType)
		switch {
		case n.typ == reflect.TypeFor[map[string]string]() && n.elem.shape == leafString:
			n.flat = flatTexts
		case n.typ == reflect.TypeFor[corev1.ResourceList]() && n.elem.shape == leafQuantity:
			n.flat = flatQuantities
		}
		n.shape = dict
		if m.ElementRelationship == schema.Atomic {
			n.shape = leaf
		}
	}
}

// fieldsLocked lists the fields of a struct as JSON knows them; ok is false where the schema does
// not know them all.
func (p *planner) fieldsLocked(typ reflect.Type, m *schema.Map) (list []field, ok bool) {
	byName := make(map[string]field)
	if !collectFields(typ, nil, byName) {
		return nil, false
	}
	for name, f := range byName {
		ref := m.ElementType
		if known, ok := m.FindField(name); ok {
			ref = known.Type
		}
		if ref == (schema.TypeRef{}) {
			return nil, false
		}
		f.node = p.compileLocked(typ.FieldByIndex(f.index).Type, ref)
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b field) int { return cmp.Compare(a.name, b.name) })
	return list, true
}

// collectFields reads the JSON tags as structured-merge-diff does.
func collectFields(typ reflect.Type, prefix []int, byName map[string]field) bool {
	for i := range typ.NumField() {
		sf := typ.Field(i)
		tag := sf.Tag.Get("json")
		if tag == "-" {
			continue
		}
		name, opts, _ := strings.Cut(tag, ",")
		name = cmp.Or(name, sf.Name)
		options := strings.Split(opts, ",")
		index := append(slices.Clone(prefix), i)
		if slices.Contains(options, "inline") {
			if sf.Type.Kind() != reflect.Struct || !collectFields(sf.Type, index, byName) {
				return false
			}
			continue
		}
		if !sf.IsExported() {
			return false
		}
		f := field{name: name, index: index, elem: fieldpath.FieldNameElement(name)}
		if slices.Contains(options, "omitempty") {
			f.omit = omitEmpty(sf.Type.Kind())
		}
		if slices.Contains(options, "omitzero") && f.omit == omitNever {
			f.omit, f.zero = omitZero, value.OmitZeroFunc(sf.Type)
			if sf.Type == reflect.TypeFor[metav1.Time]() {
				f.omit = omitZeroTime
			}
		} else if slices.Contains(options, "omitzero") {
			return false // both tags together do not occur on these types
		}
		byName[name] = f
	}
	return true
}

func omitEmpty(kind reflect.Kind) omission {
	switch kind {
	case reflect.String:
		return omitEmptyText
	case reflect.Slice, reflect.Map:
		return omitEmptyList
	case reflect.Pointer, reflect.Interface:
		return omitNil
	case reflect.Bool:
		return omitFalse
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return omitNumber
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return omitZero
	}
	return omitNever
}

func (p *planner) listLocked(n *node, l *schema.List) {
	if converts(n.typ) || n.typ.Kind() != reflect.Slice || n.typ.Elem().Kind() == reflect.Uint8 {
		return
	}
	if l.ElementRelationship == schema.Atomic {
		n.elem, n.shape = p.compileLocked(n.typ.Elem(), l.ElementType), leaf
		return
	}
	if l.ElementRelationship != schema.Associative || n.typ.Elem().Kind() == reflect.Pointer {
		return
	}
	n.elem = p.compileLocked(n.typ.Elem(), l.ElementType)
	if len(l.Keys) == 0 {
		if n.elem.shape == leafString || n.elem.shape == leafInt {
			n.shape = set
		}
		return
	}
	item, ok := p.schema.Resolve(l.ElementType)
	if !ok || item.Map == nil || n.typ.Elem().Kind() != reflect.Struct || converts(n.typ.Elem()) {
		return
	}
	fields, ok := p.fieldsLocked(n.typ.Elem(), item.Map)
	if !ok {
		return
	}
	n.unsure = true
	for _, name := range slices.Sorted(slices.Values(l.Keys)) {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		if i < 0 || fields[i].node.shape != leafString && fields[i].node.shape != leafInt {
			return
		}
		key := listKey{field: fields[i]}
		known, _ := item.Map.FindField(name)
		if known.Default != nil && key.omit != omitNever {
			if key.fallback, key.defaults = known.Default.(string); !key.defaults {
				return
			}
		}
		if key.omit == omitNever || key.defaults {
			n.unsure = false
		}
		n.keys = append(n.keys, key)
	}
	n.shape = keyed
}

// get is the field of a struct, or the zero Value where JSON has none.
func (f *field) get(v reflect.Value) reflect.Value {
	for _, i := range f.index { // mostly one
		v = v.Field(i)
	}
	switch f.omit {
	case omitEmptyText, omitEmptyList:
		if v.Len() == 0 {
			return reflect.Value{}
		}
	case omitNil:
		if v.IsNil() {
			return reflect.Value{}
		}
	case omitFalse:
		if !v.Bool() {
			return reflect.Value{}
		}
	case omitNumber:
		if v.Int() == 0 {
			return reflect.Value{}
		}
	case omitZeroTime:
		if t, ok := pointer(v).(*metav1.Time); ok && t.IsZero() {
			return reflect.Value{}
		}
	case omitZero:
		if f.zero == nil && v.IsZero() || f.zero != nil && f.zero(v) {
			return reflect.Value{}
		}
	}
	return v
}
