package appfile

import (
	"encoding/json"
	"fmt"
	"strings"
)

// SchemaURL is where the schema is published.
const SchemaURL = "https://gantry.dev/schema/v1.json"

// Schema returns the JSON schema (draft 7) of gantry.yaml, for editors. What no schema can say, such as what must not stand beside
// what, only Parse says.
func Schema() ([]byte, error) {
	schema := file().schema()
	schema["$schema"] = "http://json-schema.org/draft-07/schema#"
	schema["$id"] = SchemaURL
	schema["title"] = "gantry.yaml"
	out, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("make the schema: %w", err)
	}
	return append(out, '\n'), nil
}

func (s *shape) schema() map[string]any {
	switch {
	case s.scalar != nil:
		out := map[string]any{}
		for k, v := range s.scalar.schema {
			out[k] = v
		}
		return out
	case s.items != nil:
		return map[string]any{"type": "array", "items": s.items.schema()}
	case s.values != nil:
		return map[string]any{"type": "object", "propertyNames": s.names.schema, "additionalProperties": s.values.schema()}
	}
	properties := map[string]any{}
	var required []any
	for _, k := range s.keys {
		property := k.shape.schema()
		property["description"] = k.description()
		properties[k.name] = property
		if k.required {
			required = append(required, k.name)
		}
	}
	out := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if required != nil {
		out["required"] = required
	}
	if s.short == "" {
		return out
	}
	k, _ := s.find(s.short)
	return map[string]any{"anyOf": []any{k.shape.schema(), out}}
}

func (k key) description() string {
	if k.fallback == "" {
		return k.doc
	}
	return strings.TrimSuffix(k.doc, ".") + ". Default: " + k.fallback + "."
}

// Reference returns the table of all keys as Markdown.
func Reference() string {
	var b strings.Builder
	b.WriteString("| key | what stands there | meaning | default |\n|---|---|---|---|\n")
	writeRows(&b, file(), "")
	return b.String()
}

func writeRows(b *strings.Builder, s *shape, path string) {
	for _, k := range s.keys {
		full := join(path, k.name)
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", full, k.shape.words(), escape(k.doc), escape(k.fallback))
		if _, top := findKey(topProcessKeys(), full); top || full == "stages" {
			continue // said elsewhere in full
		}
		inner := k.shape
		switch {
		case inner.values != nil:
			inner, full = inner.values, full+".NAME"
		case inner.items != nil:
			inner, full = inner.items, full+"[]"
		}
		writeRows(b, inner, full)
	}
}

// words says in a few words what may stand in a shape's place.
func (s *shape) words() string {
	switch {
	case s.scalar != nil:
		return escape(s.scalar.what)
	case s.items != nil:
		return "a list of: " + s.items.words()
	case s.values != nil:
		return "a map of: " + s.values.words()
	case s.short != "":
		k, _ := s.find(s.short)
		return fmt.Sprintf("a map, or short: %s (`%s`)", k.shape.words(), s.short)
	}
	return "a map"
}

func escape(s string) string { return strings.ReplaceAll(s, "|", "\\|") }
