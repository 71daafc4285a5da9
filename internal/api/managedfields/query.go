package managedfields

import (
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// class says why a path is in a query.
type class uint8

const (
	mine  class = iota // changed, and the writer's from now on
	bare               // changed, and of a kind that nobody owns
	taken              // removed
	classes
)

// query asks of an encoded set which paths are members, without decoding it. Encoded sets
// are compact, so more of them can be kept than of decoded ones. Both sides are encoded by
// structured-merge-diff, so equal path elements are equal bytes.
type query struct {
	root  queryNode
	total [classes]int
}

type queryNode struct {
	key      string // the JSON key with its quotes
	member   [classes]bool
	children []*queryNode
}

// counts is how many paths of each class are members of a set.
type counts [classes]int

// add takes all paths of set into the query.
func (q *query) add(c class, set *fieldpath.Set) error {
	raw, err := set.ToJSON()
	if err != nil {
		return err
	}
	s := scanner{rest: raw}
	s.build(&q.root, c)
	q.total[c] = set.Size()
	return nil
}

// ask counts the paths of q in an encoded set, which must be as ToJSON writes it.
func (q *query) ask(raw []byte) counts {
	s := scanner{rest: raw}
	s.match(&q.root)
	return s.found
}

func (n *queryNode) child(key []byte) *queryNode {
	for _, c := range n.children {
		if c.key == string(key) {
			return c
		}
	}
	return nil
}

// scanner reads an encoded set: objects in objects, without white space. An empty object is
// a member; one that is a member and has children has the key ".".
type scanner struct {
	rest  []byte
	found counts
}

const selfKey = `"."`

// key reads a key and the colon after it.
func (s *scanner) key() []byte {
	end := 1
	for s.rest[end] != '"' {
		if s.rest[end] == '\\' {
			end++
		}
		end++
	}
	key := s.rest[:end+1]
	s.rest = s.rest[end+2:]
	return key
}

// enter reads the start of an object; empty says that the whole of it is read.
func (s *scanner) enter() (empty bool) {
	empty = s.rest[1] == '}'
	s.rest = s.rest[1:]
	if empty {
		s.rest = s.rest[1:]
	}
	return empty
}

// more reads what follows an item of an object.
func (s *scanner) more() bool {
	more := s.rest[0] == ','
	s.rest = s.rest[1:]
	return more
}

// skip reads an object without looking at it.
func (s *scanner) skip() {
	depth := 0
	for i := 0; ; i++ {
		switch s.rest[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				s.rest = s.rest[i+1:]
				return
			}
		case '"':
			for i++; s.rest[i] != '"'; i++ {
				if s.rest[i] == '\\' {
					i++
				}
			}
		}
	}
}

func (s *scanner) match(n *queryNode) {
	if s.enter() {
		s.count(n)
		return
	}
	for {
		key := s.key()
		if c := n.child(key); c != nil {
			s.match(c)
		} else {
			if string(key) == selfKey {
				s.count(n)
			}
			s.skip()
		}
		if !s.more() {
			return
		}
	}
}

func (s *scanner) count(n *queryNode) {
	for c, member := range n.member {
		if member {
			s.found[c]++
		}
	}
}

func (s *scanner) build(n *queryNode, c class) {
	if s.enter() {
		n.member[c] = true
		return
	}
	for {
		key := s.key()
		if string(key) == selfKey {
			n.member[c] = true
			s.skip()
		} else {
			child := n.child(key)
			if child == nil {
				child = &queryNode{key: string(key)}
				n.children = append(n.children, child)
			}
			s.build(child, c)
		}
		if !s.more() {
			return
		}
	}
}
