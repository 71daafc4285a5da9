package surface

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// Answer is what a server answers.
type Answer struct {
	Code     int
	Body     []byte
	Warnings []string // the Warning headers
}

// Do sends one request that accepts JSON.
type Do func(method, path, contentType string, body []byte) (Answer, error)

// Subject is one object that is exercised.
type Subject struct {
	Name     string                 // of its file: GROUP.VERSION.RESOURCE, the nameless group being "core"
	Document []byte                 // YAML; its status is what is written through the subresource
	Stored   func() (string, error) // what is in etcd, asked for before the end; see DescribeStored
}

// exercise is a Subject on its way.
type exercise struct {
	do       Do
	object   map[string]any
	name     string
	list     string // path of its collection
	one      string // path of the object
	protocol strings.Builder
}

// Exercise takes an object through the verbs of its kind and writes down what the server makes of
// it: defaults, resets, managed fields, errors, warnings, the form in etcd.
func Exercise(do Do, subject Subject) (string, error) {
	e := &exercise{do: do}
	if err := yaml.Unmarshal(subject.Document, &e.object); err != nil {
		return "", fmt.Errorf("surface: read %s: %w", subject.Name, err)
	}
	metadata, ok := e.object["metadata"].(map[string]any)
	if !ok {
		return "", fmt.Errorf("surface: %s has no metadata", subject.Name)
	}
	e.name, _ = metadata["name"].(string)
	namespace, _ := metadata["namespace"].(string)
	e.list = collection(subject.Name, namespace)
	e.one = e.list + "/" + e.name
	if err := e.write(); err != nil {
		return "", err
	}
	if err := e.status(); err != nil {
		return "", err
	}
	stored, err := subject.Stored()
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&e.protocol, "== etcd\n%s\n", stored)
	if err := e.remove(); err != nil {
		return "", err
	}
	return e.protocol.String(), nil
}

// collection is the path of a collection.
func collection(name, namespace string) string {
	parts := strings.Split(name, ".")
	resource, version, group := parts[len(parts)-1], parts[len(parts)-2], strings.Join(parts[:len(parts)-2], ".")
	path := "/apis/" + group + "/" + version
	if group == "core" {
		path = "/api/" + version
	}
	if namespace != "" {
		path += "/namespaces/" + namespace
	}
	return path + "/" + resource
}

const (
	typeJSON  = "application/json"
	typeMerge = "application/merge-patch+json"
	typeApply = "application/apply-patch+yaml"
)

// write is everything up to the last change of the object itself.
func (e *exercise) write() error {
	invalid := runtime.DeepCopyJSON(e.object)
	invalid["metadata"].(map[string]any)["name"] = "Not Valid/"
	bare := map[string]any{"apiVersion": e.object["apiVersion"], "kind": e.object["kind"], "metadata": runtime.DeepCopyJSON(e.object)["metadata"]}
	unknown := runtime.DeepCopyJSON(e.object)
	unknown["nobodyKnowsThis"] = "x"
	labels := func(key string) map[string]any {
		return map[string]any{"metadata": map[string]any{"labels": map[string]any{key: "yes"}}}
	}
	applied := map[string]any{"apiVersion": e.object["apiVersion"], "kind": e.object["kind"],
		"metadata": map[string]any{"name": e.name, "annotations": map[string]any{"example.com/applied": "yes"}}}
	for _, step := range []struct {
		title, method, path, contentType string
		body                             map[string]any
		whole                            bool
	}{
		{"create with a bad name", http.MethodPost, e.list, typeJSON, invalid, false},
		{"create with metadata only", http.MethodPost, e.list + "?dryRun=All", typeJSON, bare, false},
		{"create with an unknown field", http.MethodPost, e.list + "?dryRun=All&fieldValidation=Strict", typeJSON, unknown, false},
		{"warn of an unknown field", http.MethodPost, e.list + "?dryRun=All&fieldValidation=Warn", typeJSON, unknown, false},
		{"create for show", http.MethodPost, e.list + "?dryRun=All&fieldManager=creator", typeJSON, e.object, false},
		{"get what is not there", http.MethodGet, e.one, "", nil, false},
		{"create", http.MethodPost, e.list + "?fieldManager=creator", typeJSON, e.object, true},
		{"create again", http.MethodPost, e.list + "?fieldManager=creator", typeJSON, e.object, false},
		{"merge patch", http.MethodPatch, e.one + "?fieldManager=patcher", typeMerge, labels("patched"), false},
		{"the same patch", http.MethodPatch, e.one + "?fieldManager=patcher", typeMerge, labels("patched"), false},
		{"apply", http.MethodPatch, e.one + "?fieldManager=applier", typeApply, applied, true},
		{"patch the status of the object", http.MethodPatch, e.one + "?fieldManager=patcher", typeMerge, map[string]any{"status": e.object["status"]}, false},
	} {
		if step.title == "patch the status of the object" && e.object["status"] == nil {
			continue
		}
		if _, err := e.step(step.title, step.method, step.path, step.contentType, step.body, step.whole); err != nil {
			return err
		}
	}
	return e.update()
}

// update replaces the object as it is, and as it was.
func (e *exercise) update() error {
	answer, err := e.do(http.MethodGet, e.one, "", nil)
	if err != nil {
		return err
	}
	var current map[string]any
	if err := json.Unmarshal(answer.Body, &current); err != nil {
		return fmt.Errorf("surface: decode %s: %w", e.one, err)
	}
	metadata := current["metadata"].(map[string]any)
	labels, _ := metadata["labels"].(map[string]any)
	if labels == nil {
		labels = map[string]any{}
	}
	labels["put"] = "yes"
	metadata["labels"] = labels
	if _, err := e.step("update", http.MethodPut, e.one+"?fieldManager=putter", typeJSON, current, true); err != nil {
		return err
	}
	labels["put"] = "again"
	if _, err := e.step("update of an old revision", http.MethodPut, e.one+"?fieldManager=putter", typeJSON, current, false); err != nil {
		return err
	}
	delete(metadata, "resourceVersion")
	if _, err := e.step("update of no revision", http.MethodPut, e.one+"?fieldManager=putter&dryRun=All", typeJSON, current, false); err != nil {
		return err
	}
	_, err = e.step("delete another's", http.MethodDelete, e.one, typeJSON,
		map[string]any{"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": map[string]any{"uid": "other"}}, false)
	return err
}

// status writes the status through its subresource, and what does not belong to it.
func (e *exercise) status() error {
	if e.object["status"] == nil {
		return nil
	}
	body := map[string]any{"status": e.object["status"], "metadata": map[string]any{"labels": map[string]any{"status": "yes"}}}
	_, err := e.step("patch status", http.MethodPatch, e.one+"/status?fieldManager=stat", typeMerge, body, true)
	if err == nil {
		_, err = e.step("get status", http.MethodGet, e.one+"/status", "", nil, false)
	}
	return err
}

func (e *exercise) remove() error {
	options := map[string]any{"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "propagationPolicy": "Background"}
	if _, err := e.step("delete for show", http.MethodDelete, e.one+"?dryRun=All", typeJSON, nil, false); err != nil {
		return err
	}
	_, err := e.step("delete", http.MethodDelete, e.one, typeJSON, options, false)
	return err
}

// step sends one request and writes down the answer: all of it if whole, else code, kind and what a
// Status says.
func (e *exercise) step(title, method, path, contentType string, body map[string]any, whole bool) (map[string]any, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("surface: encode %s: %w", title, err)
		}
	}
	answer, err := e.do(method, path, contentType, data)
	if err != nil {
		return nil, fmt.Errorf("surface: %s %s: %w", title, path, err)
	}
	var object map[string]any
	if err := json.Unmarshal(answer.Body, &object); err != nil {
		return nil, fmt.Errorf("surface: decode the answer to %s %s: %d %s: %w", title, path, answer.Code, answer.Body, err)
	}
	fmt.Fprintf(&e.protocol, "== %s: %d\n", title, answer.Code)
	for _, warning := range answer.Warnings {
		fmt.Fprintf(&e.protocol, "warning: %s\n", warning)
	}
	shown := scrub(object)
	if !whole && object["kind"] != "Status" {
		shown = map[string]any{"kind": object["kind"], "apiVersion": object["apiVersion"]}
	}
	text, err := yaml.Marshal(shown)
	if err != nil {
		return nil, fmt.Errorf("surface: encode the answer to %s: %w", title, err)
	}
	e.protocol.Write(text)
	return object, nil
}

// scrub takes out of an object what no two servers share.
func scrub(object map[string]any) map[string]any {
	object = runtime.DeepCopyJSON(object)
	if metadata, ok := object["metadata"].(map[string]any); ok {
		for _, field := range []string{"uid", "creationTimestamp", "resourceVersion", "deletionTimestamp"} {
			if metadata[field] != nil {
				metadata[field] = "SET"
			}
		}
		entries, _ := metadata["managedFields"].([]any)
		for _, entry := range entries {
			if m, ok := entry.(map[string]any); ok && m["time"] != nil {
				m["time"] = "SET"
			}
		}
	}
	if details, ok := object["details"].(map[string]any); ok && details["uid"] != nil {
		details["uid"] = "SET"
	}
	if message, ok := object["message"].(string); ok {
		object["message"] = uidPattern().ReplaceAllString(message, "UID")
	}
	forEach(object, func(parent map[string]any, field string) {
		if text, ok := parent[field].(string); ok {
			if at, err := time.Parse(time.RFC3339, text); err == nil && time.Since(at).Abs() < time.Hour {
				parent[field] = "NOW"
			}
		}
		if list, ok := parent[field].([]any); ok && len(list) == 1 && strings.HasPrefix(fmt.Sprint(list[0]), "X509SHA256=") {
			parent[field] = []any{"X509SHA256=SUM"}
		}
	})
	return object
}

func uidPattern() *regexp.Regexp {
	return regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
}

// forEach visits every field of a document.
func forEach(value any, visit func(parent map[string]any, field string)) {
	switch value := value.(type) {
	case map[string]any:
		for field, inner := range value {
			visit(value, field)
			forEach(inner, visit)
		}
	case []any:
		for _, inner := range value {
			forEach(inner, visit)
		}
	}
}

// DescribeStored says where in etcd a value is and of what form it is.
func DescribeStored(key string, value []byte) (string, error) {
	var kind struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	raw, isProto := bytes.CutPrefix(value, []byte("k8s\x00"))
	switch {
	case bytes.HasPrefix(value, []byte("k8s:enc:")):
		return key + " sealed", nil
	case isProto:
		var envelope runtime.Unknown
		if err := envelope.Unmarshal(raw); err != nil {
			return "", fmt.Errorf("surface: decode %s: %w", key, err)
		}
		return fmt.Sprintf("%s protobuf %s %s", key, envelope.APIVersion, envelope.Kind), nil
	}
	if err := json.Unmarshal(value, &kind); err != nil {
		return "", fmt.Errorf("surface: decode %s: %w", key, err)
	}
	return fmt.Sprintf("%s JSON %s %s, line end %v", key, kind.APIVersion, kind.Kind, bytes.HasSuffix(value, []byte("\n"))), nil
}
