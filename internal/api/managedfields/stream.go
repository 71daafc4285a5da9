package managedfields

import (
	"encoding/binary"
	"errors"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"
)

// errStream is a broken invariant: streams are only read where they were written.
var errStream = errors.New("malformed stream of differences")

// readStream makes of what a walker wrote the three sets that upstream's comparison gives.
func readStream(root *node, stream []byte) (*typed.Comparison, error) {
	c := &typed.Comparison{Removed: fieldpath.NewSet(), Modified: fieldpath.NewSet(), Added: fieldpath.NewSet()}
	r := streamReader{rest: stream}
	path := make(fieldpath.Path, 0, 16)
	nodes := append(make([]*node, 0, 16), root)
	plus, minus, other := newBranch(c.Added), newBranch(c.Removed), newBranch(c.Modified)
	for len(r.rest) > 0 && !r.failed {
		n := nodes[len(nodes)-1]
		switch r.token() {
		case stepField:
			i := r.number()
			if r.failed || i >= uint64(len(n.fields)) {
				return nil, errStream
			}
			path, nodes = append(path, n.fields[i].elem), append(nodes, n.fields[i].node)
		case stepKey:
			path, nodes = append(path, fieldpath.FieldNameElement(string(r.bytes()))), append(nodes, n.elem)
		case stepItem:
			path, nodes = append(path, itemElement(n, r.bytes())), append(nodes, n.elem)
		case up:
			if len(path) == 0 {
				return nil, errStream
			}
			path, nodes = path[:len(path)-1], nodes[:len(nodes)-1]
			plus.leave(len(path))
			minus.leave(len(path))
			other.leave(len(path))
		case added:
			plus.insert(path)
		case removed:
			minus.insert(path)
		case modified:
			other.insert(path)
		default:
			return nil, errStream
		}
	}
	if r.failed || len(path) > 0 {
		return nil, errStream
	}
	return c, nil
}

// branch is where in a set the path of the last insert is, so that the next one, which is
// near, need not search from the root.
type branch struct{ sets []*fieldpath.Set } // sets[i] has the children of a path of i elements

func newBranch(root *fieldpath.Set) branch {
	return branch{append(make([]*fieldpath.Set, 0, 16), root)}
}

// insert adds path, whose first len(b.sets)-1 elements are those of the last insert.
func (b *branch) insert(path fieldpath.Path) {
	if len(path) == 0 {
		return // nobody owns the whole object
	}
	for len(b.sets) < len(path) {
		last := b.sets[len(b.sets)-1]
		b.sets = append(b.sets, last.Children.Descend(path[len(b.sets)-1]))
	}
	b.sets[len(path)-1].Members.Insert(path[len(path)-1])
}

// leave forgets what is below a path of depth elements that is being left for a sibling.
func (b *branch) leave(depth int) {
	b.sets = b.sets[:min(len(b.sets), depth+1)]
}

// itemElement is the path element of a list item from its name.
func itemElement(n *node, name []byte) fieldpath.PathElement {
	r := streamReader{rest: name}
	if n.shape == set {
		return fieldpath.ValueElement(r.value())
	}
	keys := make([]value.Field, 0, len(n.keys))
	for i := range n.keys {
		if v := r.value(); v != nil {
			keys = append(keys, value.Field{Name: n.keys[i].name, Value: v})
		}
	}
	return fieldpath.KeyElement(keys...)
}

type streamReader struct {
	rest   []byte
	failed bool
}

func (r *streamReader) token() byte {
	if len(r.rest) == 0 {
		r.failed = true
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *streamReader) number() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.failed = true
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

func (r *streamReader) bytes() []byte {
	n := r.number()
	if n > uint64(len(r.rest)) {
		r.failed = true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

// value is one part of an item's name; nil if that key is missing.
func (r *streamReader) value() value.Value {
	switch r.token() {
	case partText:
		return value.NewValueInterface(string(r.bytes()))
	case partNumber:
		n, size := binary.Varint(r.rest)
		if size <= 0 {
			r.failed = true
			return nil
		}
		r.rest = r.rest[size:]
		return value.NewValueInterface(n)
	}
	return nil
}
