package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

// mergePatch applies a JSON merge patch (RFC 7386) to the encoded object doc. It gives what
// evanphx/json-patch gives, which upstream uses, but reads and writes only the objects that the
// patch names; everything else is passed on as bytes. Its errors are that library's.
func mergePatch(doc, patch []byte) ([]byte, error) {
	changes, ok := members(patch)
	if !ok {
		return jsonpatch.MergePatch(doc, patch)
	}
	object, ok := members(doc)
	if !ok {
		return jsonpatch.MergePatch(doc, patch)
	}
	if err := mergeMembers(object, changes); err != nil {
		return nil, err
	}
	return appendMembers(make([]byte, 0, len(doc)+len(patch)), object)
}

// members splits an object into its members; ok is false if data is none.
func members(data []byte) (object map[string]json.RawMessage, ok bool) {
	if data = bytes.TrimLeft(data, " \t\r\n"); len(data) == 0 || data[0] != '{' {
		return nil, false
	}
	return object, json.Unmarshal(data, &object) == nil
}

func isNull(raw json.RawMessage) bool { return string(bytes.TrimSpace(raw)) == "null" }

func mergeMembers(object, changes map[string]json.RawMessage) (err error) {
	for name, change := range changes {
		current, there := object[name]
		switch {
		case isNull(change):
			delete(object, name)
		case !there || isNull(current):
			object[name], err = withoutNulls(change)
		default:
			object[name], err = mergeValue(current, change)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func mergeValue(current, change json.RawMessage) (json.RawMessage, error) {
	object, ok := members(current)
	if !ok {
		return withoutNulls(change)
	}
	changes, ok := members(change)
	if !ok {
		return change, nil
	}
	if err := mergeMembers(object, changes); err != nil {
		return nil, err
	}
	return appendMembers(make([]byte, 0, len(current)+len(change)), object)
}

// withoutNulls drops members that are null from a value that a patch adds.
func withoutNulls(value json.RawMessage) (json.RawMessage, error) {
	if !bytes.Contains(value, []byte("null")) {
		return value, nil
	}
	pruned, err := jsonpatch.MergePatch([]byte("{}"), slices.Concat([]byte(`{"v":`), value, []byte("}")))
	if err != nil {
		return nil, err
	}
	object, ok := members(pruned)
	if !ok {
		return nil, fmt.Errorf("a merge patch made %q of %q", pruned, value)
	}
	return object["v"], nil
}

// appendMembers writes an object with its members in order of their names.
func appendMembers(dst []byte, object map[string]json.RawMessage) ([]byte, error) {
	dst = append(dst, '{')
	for i, name := range slices.Sorted(maps.Keys(object)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		quoted, err := json.Marshal(name)
		if err != nil {
			return nil, err
		}
		dst = append(append(append(dst, quoted...), ':'), object[name]...)
	}
	return append(dst, '}'), nil
}
