package appfile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"gantry.dev/gantry/internal/config"
)

// value is what stood at one place of a file, in its long form, and where.
type value struct {
	node   *yaml.Node
	key    *yaml.Node // before it, or nil
	fields map[string]*value
	items  []*value
	scalar any
	short  bool // a scalar stood for the object
}

// line is where the value's key, or the value, stands.
func (v *value) line() int32 {
	if v.key != nil {
		return int32(v.key.Line)
	}
	return int32(v.node.Line)
}

// at follows keys; it returns nil where one is missing.
func (v *value) at(path ...string) *value {
	for _, name := range path {
		if v == nil {
			return nil
		}
		v = v.fields[name]
	}
	return v
}

// str is the text at a path, or "".
func (v *value) str(path ...string) string {
	found := v.at(path...)
	if found == nil {
		return ""
	}
	s, _ := found.scalar.(string)
	return s
}

// names are the keys of an object or map, sorted.
func (v *value) names() []string {
	if v == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(v.fields))
}

// plain is the value as JSON knows it.
func (v *value) plain() any {
	switch {
	case v.fields != nil:
		out := make(map[string]any, len(v.fields))
		for name, field := range v.fields {
			out[name] = field.plain()
		}
		return out
	case v.items != nil:
		out := make([]any, len(v.items))
		for i, item := range v.items {
			out[i] = item.plain()
		}
		return out
	}
	return v.scalar
}

// merge lays over over base: objects and maps key by key, all else replaces. Neither is changed.
func merge(base, over *value) *value {
	if base == nil || base.fields == nil || over.fields == nil || over.short {
		return over
	}
	out := *base
	out.fields = maps.Clone(base.fields)
	for name, field := range over.fields {
		out.fields[name] = merge(base.fields[name], field)
	}
	return &out
}

// maxNodes bounds a file whose aliases name each other.
const maxNodes = 100_000

// reader reads a document by the table of keys and collects what is wrong.
type reader struct {
	file     string
	nodes    int
	depth    int
	problems Problems
}

func (r *reader) problem(at *yaml.Node, format string, args ...any) {
	r.problems = append(r.problems, Problem{File: r.file, Line: at.Line, Column: at.Column, Text: fmt.Sprintf(format, args...)})
}

// read returns what stands at a node, or nil if it is wrong. path is for messages: "processes.web".
func (r *reader) read(s *shape, node *yaml.Node, path string) *value {
	r.nodes++
	r.depth++
	defer func() { r.depth-- }()
	if r.nodes > maxNodes || r.depth > 50 {
		if r.nodes == maxNodes+1 || r.depth == 51 {
			r.problem(node, "is too deep or too large")
		}
		return nil
	}
	if node.Kind == yaml.AliasNode {
		return r.read(s, node.Alias, path)
	}
	if node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null" {
		r.problem(node, "%s has no value: it is %s", orFile(path), s.what())
		return nil
	}
	switch {
	case s.scalar != nil:
		return r.readScalar(s.scalar, node, path)
	case s.items != nil:
		return r.readList(s, node, path)
	case node.Kind == yaml.MappingNode:
		return r.readMap(s, node, path)
	case s.short != "" && node.Kind == yaml.ScalarNode:
		k, _ := s.find(s.short)
		v := r.read(k.shape, node, path)
		if v == nil {
			return nil
		}
		return &value{node: node, short: true, fields: map[string]*value{s.short: v}}
	}
	r.problem(node, "%s is %s, and should be %s", orFile(path), describe(node), s.what())
	return nil
}

func (r *reader) readScalar(s *scalar, node *yaml.Node, path string) *value {
	if node.Kind != yaml.ScalarNode {
		r.problem(node, "%s is %s, and should be %s", orFile(path), describe(node), s.what)
		return nil
	}
	if !slices.Contains(s.tags, node.ShortTag()) {
		hint := ""
		if slices.Contains(s.tags, tagString) && s.what == "text" {
			hint = fmt.Sprintf(": write %q", node.Value)
		}
		r.problem(node, "%s is %s, and should be %s%s", orFile(path), describe(node), s.what, hint)
		return nil
	}
	read, err := s.read(node.Value)
	if err != nil {
		r.problem(node, "%s: %q %v", orFile(path), node.Value, err)
		return nil
	}
	return &value{node: node, scalar: read}
}

func (r *reader) readList(s *shape, node *yaml.Node, path string) *value {
	if node.Kind != yaml.SequenceNode {
		r.problem(node, "%s is %s, and should be a list, such as [%s]", orFile(path), describe(node), cutLong(node.Value))
		return nil
	}
	out := &value{node: node, items: []*value{}}
	for i, item := range node.Content {
		if v := r.read(s.items, item, fmt.Sprintf("%s[%d]", path, i)); v != nil {
			out.items = append(out.items, v)
		}
	}
	return out
}

func (r *reader) readMap(s *shape, node *yaml.Node, path string) *value {
	out := &value{node: node, fields: map[string]*value{}}
	lines := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, content := node.Content[i], node.Content[i+1]
		if name.Kind != yaml.ScalarNode || name.ShortTag() == "!!merge" {
			r.problem(name, "only plain keys can stand here; to share keys between stages, write them at the top")
			continue
		}
		if line, twice := lines[name.Value]; twice {
			r.problem(name, "%q is here twice, first in line %d", name.Value, line)
			continue
		}
		lines[name.Value] = name.Line
		inner := s.values
		if s.values == nil {
			k, found := s.find(name.Value)
			if !found {
				r.problem(name, "unknown key %q%s", name.Value, elsewhere(s, name.Value, path))
				continue
			}
			inner = k.shape
		}
		key := name.Value
		if s.names != nil {
			read, err := s.names.read(name.Value)
			if err != nil {
				r.problem(name, "%q %v", name.Value, err)
				continue
			}
			key, _ = read.(string)
		}
		if v := r.read(inner, content, join(path, name.Value)); v != nil {
			v.key = name
			out.fields[key] = v
		}
	}
	for _, k := range s.keys {
		if k.required && lines[k.name] == 0 {
			r.problem(node, "%s has no %q: %s", orFile(path), k.name, strings.ToLower(k.doc[:1])+k.doc[1:])
		}
	}
	return out
}

// elsewhere says which key was meant: one of this object by its spelling, or the same word where it belongs.
func elsewhere(s *shape, word, path string) string {
	places := map[string]string{}
	for _, k := range process().keys {
		places[k.name] = "processes.web." + k.name
	}
	for _, k := range build().keys {
		places[k.name] = "build." + k.name
	}
	for _, k := range rollout().keys {
		places[k.name] = "rollout." + k.name
	}
	for _, k := range file().keys {
		places[k.name] = k.name
	}
	if near := config.Nearest(word, s.keyNames()); near != "" {
		return fmt.Sprintf(": did you mean %q?", near)
	}
	if place, known := places[word]; known && place != join(path, word) {
		return fmt.Sprintf(": it belongs to %s", place)
	}
	return "; there is " + strings.Join(s.keyNames(), ", ")
}

// what names the shape for messages.
func (s *shape) what() string {
	switch {
	case s.scalar != nil:
		return s.scalar.what
	case s.items != nil:
		return "a list"
	case s.short != "":
		k, _ := s.find(s.short)
		return k.shape.what() + " or a map with " + strings.Join(s.keyNames(), ", ")
	case s.values != nil:
		return "a map from " + s.names.what + " to " + s.values.what()
	}
	return "a map with " + strings.Join(s.keyNames(), ", ")
}

// meant names the nearest of words, or says otherwise.
func meant(word string, words []string, otherwise string) string {
	if near := config.Nearest(word, words); near != "" {
		return fmt.Sprintf(": did you mean %q?", near)
	}
	return "; " + otherwise
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func orFile(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

func cutLong(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
