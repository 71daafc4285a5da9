package api

import (
	"fmt"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/kube-openapi/pkg/common"
)

// route describes one path and method to the OpenAPI builders. It implements common.Route.
type route struct {
	method, path, operation, description string
	action                               string // x-kubernetes-action
	kind                                 schema.GroupVersionKind
	params                               []param
	consumes, produces                   []string
	body, answer                         any
	codes                                []int
}

func (r *route) Method() string             { return r.method }
func (r *route) Path() string               { return r.path }
func (r *route) OperationName() string      { return r.operation }
func (r *route) Description() string        { return r.description }
func (r *route) Consumes() []string         { return r.consumes }
func (r *route) Produces() []string         { return r.produces }
func (r *route) RequestPayloadSample() any  { return r.body }
func (r *route) ResponsePayloadSample() any { return r.answer }
func (r *route) Parameters() []common.Parameter {
	out := make([]common.Parameter, len(r.params))
	for i := range r.params {
		out[i] = &r.params[i]
	}
	return out
}

// Metadata implements common.Route: what kubectl looks for to know which kind an operation is about.
func (r *route) Metadata() map[string]any {
	return map[string]any{
		"x-kubernetes-action":             r.action,
		"x-kubernetes-group-version-kind": metav1.GroupVersionKind{Group: r.kind.Group, Version: r.kind.Version, Kind: r.kind.Kind},
	}
}

// StatusCodeResponses implements common.Route.
func (r *route) StatusCodeResponses() []common.StatusCodeResponse {
	out := make([]common.StatusCodeResponse, len(r.codes))
	for i, code := range r.codes {
		out[i] = codeAnswer{code, r.answer}
	}
	return out
}

// codeAnswer implements common.StatusCodeResponse.
type codeAnswer struct {
	code  int
	model any
}

func (c codeAnswer) Code() int       { return c.code }
func (c codeAnswer) Message() string { return http.StatusText(c.code) }
func (c codeAnswer) Model() any      { return c.model }

// param implements common.Parameter.
type param struct {
	name, description, dataType string
	kind                        common.ParameterKind
	required                    bool
}

func (p *param) Name() string               { return p.name }
func (p *param) Description() string        { return p.description }
func (p *param) Required() bool             { return p.required }
func (p *param) Kind() common.ParameterKind { return p.kind }
func (p *param) DataType() string           { return p.dataType }
func (p *param) AllowMultiple() bool        { return false }

// container is the routes below one root. It implements common.RouteContainer.
type container struct {
	root   string
	routes []common.Route
}

func (c *container) RootPath() string                   { return c.root }
func (c *container) PathParameters() []common.Parameter { return nil }
func (c *container) Routes() []common.Route             { return c.routes }

func queryParam(name, dataType, description string) param {
	return param{name: name, dataType: dataType, description: description, kind: common.QueryParameterKind}
}

// Parameters by verb; the texts say what each does in a few words.
func writeParams() []param {
	return []param{
		queryParam("dryRun", "string", "All: run every step but do not store the change."),
		queryParam("fieldManager", "string", "Name of who makes the change, for managed fields."),
		queryParam("fieldValidation", "string", "Ignore, Warn or Strict: what unknown and duplicate fields lead to."),
	}
}

func listParams() []param {
	return []param{
		queryParam("allowWatchBookmarks", "boolean", "Send bookmarks in a watch."),
		queryParam("continue", "string", "Where the next page starts, as the last page said."),
		queryParam("fieldSelector", "string", "Restrict to objects whose fields match."),
		queryParam("labelSelector", "string", "Restrict to objects whose labels match."),
		queryParam("limit", "integer", "Most objects in a page."),
		queryParam("resourceVersion", "string", "How new the answer must be."),
		queryParam("resourceVersionMatch", "string", "How resourceVersion is applied."),
		queryParam("sendInitialEvents", "boolean", "Begin a watch with what exists."),
		queryParam("timeoutSeconds", "integer", "How long a list or watch may take."),
		queryParam("watch", "boolean", "Stream changes."),
	}
}

func deleteParams() []param {
	return []param{
		queryParam("dryRun", "string", "All: run every step but do not store the change."),
		queryParam("gracePeriodSeconds", "integer", "Seconds until the object goes; 0 is at once."),
		queryParam("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
		queryParam("propagationPolicy", "string", "Orphan, Background or Foreground: what happens to dependents."),
	}
}

// routesOf describes every path of the resources of gv.
func (s *Server) routesOf(gv schema.GroupVersion) *container {
	root := "/apis/" + gv.String()
	if gv.Group == "" {
		root = "/api/" + gv.Version
	}
	c := &container{root: root}
	for _, ep := range s.endpoints {
		if ep.Info.Resource.GroupVersion() == gv {
			c.addResource(s, ep)
		}
	}
	for _, r := range s.reviews {
		if r.resource.GroupVersion() == gv {
			path := root + "/" + r.resource.Resource
			if r.namespaced {
				path = root + "/namespaces/{namespace}/" + r.resource.Resource
			}
			c.add(&route{method: "POST", path: path, operation: "create" + r.kind.Kind, action: "post", kind: r.kind, params: writeParams(),
				body: r.newObj(), answer: r.newObj(), codes: []int{200, 201, 202}})
		}
	}
	return c
}

// add completes a route and appends it.
func (c *container) add(r *route) {
	for _, segment := range strings.Split(r.path, "/") {
		if name, ok := strings.CutPrefix(segment, "{"); ok {
			r.params = append(r.params, param{name: strings.TrimSuffix(name, "}"), dataType: "string", kind: common.PathParameterKind,
				required: true, description: "Name in the path."})
		}
	}
	if r.body != nil {
		r.params = append(r.params, param{name: "body", kind: common.BodyParameterKind, required: true})
		if r.consumes == nil {
			r.consumes = []string{"*/*"}
		}
	}
	if r.produces == nil {
		r.produces = []string{typeJSON, typeYAML, typeProto}
	}
	r.params = append(r.params, queryParam("pretty", "string", "If 'true', then the output is pretty printed."))
	r.description = fmt.Sprintf("%s %s", r.action, r.kind.Kind)
	c.routes = append(c.routes, r)
}

func (c *container) addResource(s *Server, ep *endpoint) {
	scope, list := "", c.root+"/"+ep.Info.Resource.Resource
	if ep.Namespaced {
		scope, list = "Namespaced", c.root+"/namespaces/{namespace}/"+ep.Info.Resource.Resource
	}
	one := list + "/{name}"
	object, page := ep.New(), newOf(s, ep.listKind)
	verb := func(method, path, name, action string, params []param, body, answer any, codes ...int) {
		c.add(&route{method: method, path: path, operation: name, action: action, kind: ep.Kind, params: params, body: body, answer: answer, codes: codes})
	}
	kind := scope + ep.Kind.Kind
	if ep.verbs["list"] {
		verb("GET", list, "list"+kind, "list", listParams(), nil, page, 200)
		if ep.Namespaced {
			verb("GET", c.root+"/"+ep.Info.Resource.Resource, "list"+ep.Kind.Kind+"ForAllNamespaces", "list", listParams(), nil, page, 200)
		}
	}
	if ep.verbs["create"] {
		verb("POST", list, "create"+kind, "post", writeParams(), object, object, 200, 201, 202)
	}
	if ep.verbs["deletecollection"] {
		verb("DELETE", list, "deleteCollection"+kind, "deletecollection", append(deleteParams(), listParams()[1:9]...), &metav1.DeleteOptions{}, &metav1.Status{}, 200)
	}
	if ep.verbs["get"] {
		verb("GET", one, "read"+kind, "get", nil, nil, object, 200)
	}
	if ep.verbs["update"] {
		verb("PUT", one, "replace"+kind, "put", writeParams(), object, object, 200, 201)
	}
	if ep.verbs["patch"] {
		c.addPatch(one, "patch"+kind, ep.Kind, object)
	}
	if ep.verbs["delete"] {
		verb("DELETE", one, "delete"+kind, "delete", deleteParams(), &metav1.DeleteOptions{}, &metav1.Status{}, 200, 202)
	}
	for _, sub := range ep.Subresources {
		c.addSub(s, ep, sub.Name, one+"/"+sub.Name, kind)
	}
}

func (c *container) addPatch(path, operation string, kind schema.GroupVersionKind, object any) {
	params := append(writeParams(), queryParam("force", "boolean", "Take over fields that other managers own, in an apply."))
	c.add(&route{method: "PATCH", path: path, operation: operation, action: "patch", kind: kind, params: params,
		body: &metav1.Patch{}, answer: object, codes: []int{200, 201}, consumes: patchTypes()})
}

// addSub describes one subresource; streams have no body of their own.
func (c *container) addSub(s *Server, ep *endpoint, name, path, kind string) {
	sub := ep.subs[name]
	suffix := strings.ToUpper(name[:1]) + name[1:]
	if s.streams.serves(ep.Info.Resource.Resource, name) {
		for _, verb := range sub.Verbs {
			method := map[string]string{"get": "GET", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}[verb]
			operation, action := "connect"+method+kind+suffix, "connect"
			if name == "log" {
				operation, action = "read"+kind+suffix, "get"
			}
			c.add(&route{method: method, path: path, operation: operation, action: action, kind: sub.Kind, answer: "", codes: []int{200}, produces: []string{"*/*"}})
		}
		return
	}
	object := newOf(s, sub.Kind)
	for _, verb := range sub.Verbs {
		r := &route{path: path, kind: sub.Kind, answer: object, codes: []int{200}}
		switch verb {
		case "get":
			r.method, r.action, r.operation = "GET", "get", "read"+kind+suffix
		case "create":
			r.method, r.action, r.operation, r.body, r.codes, r.params = "POST", "post", "create"+kind+suffix, object, []int{200, 201, 202}, writeParams()
		case "update":
			r.method, r.action, r.operation, r.body, r.codes, r.params = "PUT", "put", "replace"+kind+suffix, object, []int{200, 201}, writeParams()
		case "patch":
			c.addPatch(path, "patch"+kind+suffix, sub.Kind, object)
			continue
		}
		c.add(r)
	}
}

// newOf is an empty object of kind for the builders, which look at its type only.
func newOf(s *Server, kind schema.GroupVersionKind) runtime.Object {
	object, err := s.opts.Registry.Scheme().New(kind)
	if err != nil {
		return &metav1.Status{}
	}
	return object
}

// operationName makes operation IDs unique over groups as upstream's do: verb, group, version, the rest.
func operationName(r common.Route) (string, []string, error) {
	name := r.OperationName()
	verb := ""
	for _, prefix := range []string{"read", "replace", "patch", "deleteCollection", "delete", "create", "list", "connect"} {
		if strings.HasPrefix(name, prefix) {
			verb = prefix
			break
		}
	}
	parts := strings.Split(strings.Trim(r.Path(), "/"), "/")
	if parts[0] == "api" {
		parts = append([]string{"apis", "core"}, parts[1:]...)
	}
	if len(parts) < 3 {
		return name, nil, nil
	}
	group := strings.TrimSuffix(parts[1], ".k8s.io")
	tag := openapinamer.ToValidOperationID(group, false) + "_" + openapinamer.ToValidOperationID(parts[2], false)
	id := verb + openapinamer.ToValidOperationID(group, true) + openapinamer.ToValidOperationID(parts[2], true) +
		openapinamer.ToValidOperationID(strings.TrimPrefix(name, verb), true)
	return id, []string{tag}, nil
}
