package surface

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The answers that are asked for.
const (
	acceptJSON      = "application/json"
	acceptTable     = "application/json;as=Table;v=v1;g=meta.k8s.io"
	acceptDiscovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
)

// Get answers one GET request with the body of a 200.
type Get func(path, accept string) ([]byte, error)

// GroupsFile is the name of the file that lists the groups in their order.
const GroupsFile = "groups.txt"

// Collect asks an API server for everything that it says of itself. The result is one text a
// group version, by file name ("apps.v1.txt"), and GroupsFile.
func Collect(get Get) (map[string]string, error) {
	files := map[string]string{}
	var order []string
	for _, root := range []string{"/api", "/apis"} {
		var list apidiscovery.APIGroupDiscoveryList
		if err := fetch(get, root, acceptDiscovery, &list); err != nil {
			return nil, err
		}
		for _, group := range list.Items {
			for _, version := range group.Versions {
				order = append(order, "aggregated "+strings.TrimPrefix(group.Name+"/"+version.Version, "/"))
				lines, err := describe(get, group.Name, version)
				if err != nil {
					return nil, err
				}
				files[fileName(group.Name, version.Version)] = strings.Join(lines, "\n") + "\n"
			}
		}
	}
	var groups metav1.APIGroupList
	if err := fetch(get, "/apis", acceptJSON, &groups); err != nil {
		return nil, err
	}
	for _, group := range groups.Groups {
		line := "group " + group.Name + " preferred=" + group.PreferredVersion.Version
		for _, version := range group.Versions {
			line += " " + version.Version
		}
		order = append(order, line)
	}
	others, err := otherDocuments(get)
	if err != nil {
		return nil, err
	}
	files[GroupsFile] = strings.Join(append(order, others...), "\n") + "\n"
	return files, nil
}

// otherDocuments lists the OpenAPI documents and what is in those that are not of a group version.
func otherDocuments(get Get) ([]string, error) {
	var index struct {
		Paths map[string]struct{} `json:"paths"`
	}
	if err := fetch(get, "/openapi/v3", acceptJSON, &index); err != nil {
		return nil, err
	}
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(index.Paths)) {
		lines = append(lines, "openapi "+name)
		if name == "api/v1" || strings.Count(name, "/") == 2 && strings.HasPrefix(name, "apis/") {
			continue
		}
		operations, err := operationLines(get, "/"+name)
		if err != nil {
			return nil, err
		}
		lines = append(lines, operations...)
	}
	return lines, nil
}

func fileName(group, version string) string {
	if group == "" {
		group = "core"
	}
	return group + "." + version + ".txt"
}

func fetch(get Get, path, accept string, into any) error {
	data, err := get(path, accept)
	if err != nil {
		return fmt.Errorf("surface: get %s: %w", path, err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("surface: decode %s: %w", path, err)
	}
	return nil
}

// describe lists one group version.
func describe(get Get, group string, version apidiscovery.APIVersionDiscovery) ([]string, error) {
	root := "/apis/" + group + "/" + version.Version
	if group == "" {
		root = "/api/" + version.Version
	}
	lines := aggregatedLines(version)
	var list metav1.APIResourceList
	if err := fetch(get, root, acceptJSON, &list); err != nil {
		return nil, err
	}
	var columns []string
	for _, r := range list.APIResources {
		lines = append(lines, resourceLine(r))
		if !slices.Contains(r.Verbs, "list") {
			continue
		}
		var table metav1.Table
		if err := fetch(get, root+"/"+r.Name+"?limit=1", acceptTable, &table); err != nil {
			return nil, err
		}
		for _, c := range table.ColumnDefinitions {
			columns = append(columns, fmt.Sprintf("column %s %q type=%s format=%s priority=%d", r.Name, c.Name, c.Type, c.Format, c.Priority))
		}
	}
	operations, err := operationLines(get, root)
	return slices.Concat(lines, columns, operations), err
}

func resourceLine(r metav1.APIResource) string {
	line := "resource " + r.Name + " kind=" + r.Kind + scopeOf(r.Namespaced)
	for _, part := range []struct{ key, value string }{
		{"singular", r.SingularName}, {"group", r.Group}, {"version", r.Version}, {"short", strings.Join(r.ShortNames, ",")},
		{"categories", strings.Join(r.Categories, ",")}, {"storage", r.StorageVersionHash}, {"verbs", strings.Join(r.Verbs, ",")},
	} {
		if part.value != "" {
			line += " " + part.key + "=" + part.value
		}
	}
	return line
}

func scopeOf(namespaced bool) string {
	if namespaced {
		return " namespaced"
	}
	return ""
}

func aggregatedLines(version apidiscovery.APIVersionDiscovery) []string {
	var lines []string
	for _, r := range version.Resources {
		lines = append(lines, fmt.Sprintf("aggregated %s kind=%s scope=%s singular=%s short=%s categories=%s verbs=%s", r.Resource, kindOf(r.ResponseKind),
			r.Scope, r.SingularResource, strings.Join(r.ShortNames, ","), strings.Join(r.Categories, ","), strings.Join(r.Verbs, ",")))
		for _, sub := range r.Subresources {
			lines = append(lines, fmt.Sprintf("aggregated %s/%s kind=%s verbs=%s", r.Resource, sub.Subresource, kindOf(sub.ResponseKind), strings.Join(sub.Verbs, ",")))
		}
	}
	return lines
}

func kindOf(kind *metav1.GroupVersionKind) string {
	if kind == nil {
		return ""
	}
	return kind.Group + "/" + kind.Version + "/" + kind.Kind
}

// document is the part of an OpenAPI v3 document that is compared.
type document struct {
	Paths      map[string]map[string]json.RawMessage `json:"paths"`
	Components struct {
		Schemas map[string]json.RawMessage `json:"schemas"`
	} `json:"components"`
}

type operation struct {
	ID        string                  `json:"operationId"`
	Action    string                  `json:"x-kubernetes-action"`
	Kind      metav1.GroupVersionKind `json:"x-kubernetes-group-version-kind"`
	Params    []parameter             `json:"parameters"`
	Body      message                 `json:"requestBody"`
	Responses map[string]message      `json:"responses"`
}

type parameter struct {
	Name   string `json:"name"`
	Schema struct {
		Type string `json:"type"`
	} `json:"schema"`
}

type message struct {
	Content map[string]struct {
		Schema struct {
			Ref string `json:"$ref"`
		} `json:"schema"`
	} `json:"content"`
}

// schema is what a body is made of, with the media types it comes in.
func (m message) schema() string {
	var types []string
	ref := ""
	for name, content := range m.Content {
		types = append(types, name)
		ref = content.Schema.Ref[strings.LastIndexByte(content.Schema.Ref, '/')+1:]
	}
	slices.Sort(types)
	return ref + "(" + strings.Join(types, ",") + ")"
}

// operationLines lists the operations and schemas of a group version's OpenAPI document.
func operationLines(get Get, root string) ([]string, error) {
	var doc document
	if err := fetch(get, "/openapi/v3"+root, acceptJSON, &doc); err != nil {
		return nil, err
	}
	var lines []string
	for path, item := range doc.Paths {
		shared, err := paramsOf(item["parameters"])
		if err != nil {
			return nil, err
		}
		for method, raw := range item {
			if method == "parameters" {
				continue
			}
			var op operation
			if err := json.Unmarshal(raw, &op); err != nil {
				return nil, fmt.Errorf("surface: decode %s of %s: %w", method, path, err)
			}
			lines = append(lines, operationLine(path, method, op, shared))
		}
	}
	for name := range doc.Components.Schemas {
		lines = append(lines, "schema "+name)
	}
	slices.Sort(lines)
	return lines, nil
}

func paramsOf(raw json.RawMessage) ([]parameter, error) {
	if raw == nil {
		return nil, nil
	}
	var params []parameter
	if err := json.Unmarshal(raw, &params); err != nil {
		return nil, fmt.Errorf("surface: decode parameters: %w", err)
	}
	return params, nil
}

func operationLine(path, method string, op operation, shared []parameter) string {
	var params, codes []string
	for _, p := range slices.Concat(shared, op.Params) {
		params = append(params, p.Name+":"+p.Schema.Type)
	}
	slices.Sort(params)
	answer := ""
	for code, response := range op.Responses {
		if strings.HasPrefix(code, "2") {
			answer = response.schema()
		}
		codes = append(codes, code)
	}
	slices.Sort(codes)
	line := fmt.Sprintf("operation %s %s id=%s action=%s kind=%s codes=%s answer=%s", path, strings.ToUpper(method), op.ID, op.Action,
		kindOf(&op.Kind), strings.Join(codes, ","), answer)
	if len(op.Body.Content) > 0 {
		line += " body=" + op.Body.schema()
	}
	return line + " params=" + strings.Join(params, ",")
}
