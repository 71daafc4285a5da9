package api

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/kube-openapi/pkg/common"
)

// Parameters by verb; the texts say what each does in a few words.
func writeParams() []param {
	return []param{
		queryParam("dryRun", "string", "All: run every step but do not store the change."),
		queryParam("fieldManager", "string", "Name of who makes the change, for managed fields."),
		queryParam("fieldValidation", "string", "Ignore, Warn or Strict: what unknown and duplicate fields lead to."),
	}
}

// selectParams say which objects, and how new they must be.
func selectParams() []param {
	return []param{
		queryParam("continue", "string", "Where the next page starts, as the last page said."),
		queryParam("fieldSelector", "string", "Restrict to objects whose fields match."),
		queryParam("labelSelector", "string", "Restrict to objects whose labels match."),
		queryParam("limit", "integer", "Most objects in a page."),
		queryParam("resourceVersion", "string", "How new the answer must be."),
		queryParam("resourceVersionMatch", "string", "How resourceVersion is applied."),
		queryParam("sendInitialEvents", "boolean", "Begin a watch with what exists."),
		queryParam("shardSelector", "string", "Restrict to a part of all objects, by a hash; an alpha feature that is off."),
		queryParam("timeoutSeconds", "integer", "How long a list or watch may take."),
	}
}

func listParams() []param {
	return append(selectParams(),
		queryParam("allowWatchBookmarks", "boolean", "Send bookmarks in a watch."),
		queryParam("watch", "boolean", "Stream changes."),
	)
}

func deleteParams() []param {
	return []param{
		queryParam("dryRun", "string", "All: run every step but do not store the change."),
		queryParam("gracePeriodSeconds", "integer", "Seconds until the object goes; 0 is at once."),
		queryParam("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean", "Delete what cannot be read; an alpha feature that is off."),
		queryParam("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
		queryParam("propagationPolicy", "string", "Orphan, Background or Foreground: what happens to dependents."),
	}
}

// optionParams are the fields of the options of a connect subresource, as parameters.
func optionParams(options runtime.Object) []param {
	var params []param
	typ := reflect.TypeOf(options).Elem()
	for i := range typ.NumField() {
		field := typ.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" || field.Anonymous || field.Type == reflect.TypeFor[*metav1.Time]() { // upstream leaves times out
			continue
		}
		params = append(params, queryParam(name, dataType(field.Type), "See the field of "+typ.Name()+"."))
	}
	return params
}

// dataType is the type of one value of a parameter.
func dataType(typ reflect.Type) string {
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice:
		return dataType(typ.Elem())
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "integer"
	default:
		return "string"
	}
}

// routesOf describes every path of the built-in resources of gv.
func (s *Server) routesOf(gv schema.GroupVersion) *container {
	routes := s.routes()
	root := "/apis/" + gv.String()
	if gv.Group == "" {
		root = "/api/" + gv.Version
	}
	c := &container{root: root}
	c.document(root, "getAPIResources", &metav1.APIResourceList{})
	for _, ep := range routes.endpoints {
		if ep.class == classObject && ep.Info.Resource.GroupVersion() == gv {
			c.addResource(s, ep)
		}
	}
	for _, r := range routes.reviews {
		if r.resource.GroupVersion() == gv {
			path, operation := root+"/"+r.resource.Resource, "create"+r.kind.Kind
			if r.namespaced {
				path, operation = root+"/namespaces/{namespace}/"+r.resource.Resource, "createNamespaced"+r.kind.Kind
			}
			c.add(&route{method: "POST", path: path, operation: operation, action: "post", kind: r.kind, params: writeParams(),
				body: r.newObj(), answer: r.newObj(), codes: []int{200, 201, 202}})
		}
	}
	return c
}

// otherRoutes describes the paths that are not of a group version, by the name of their document.
func (s *Server) otherRoutes() map[string]*container {
	routes := map[string]*container{}
	add := func(name, operation string, answer any, produces ...string) {
		c := &container{root: "/" + name}
		c.document(c.root, operation, answer, produces...)
		routes[name] = c
	}
	add("api", "getAPIVersions", &metav1.APIVersions{})
	add("apis", "getAPIVersions", &metav1.APIGroupList{})
	for gv := range s.routes().builtinVersions() {
		if gv.Group != "" {
			add("apis/"+gv.Group, "getAPIGroup", &metav1.APIGroup{})
		}
	}
	add("version", "getCodeVersion", version.Info{}, typeJSON)
	add(".well-known/openid-configuration", "getServiceAccountIssuerOpenIDConfiguration", "", typeJSON)
	add("openid/v1/jwks", "getServiceAccountIssuerOpenIDKeyset", "", "application/jwk-set+json")
	return routes
}

// document adds a path that answers one document.
func (c *container) document(path, operation string, answer any, produces ...string) {
	c.addPlain(&route{method: "GET", path: path + "/", operation: operation, answer: answer, codes: []int{http.StatusOK}, produces: produces})
}

// add completes a route that can answer pretty, and appends it.
func (c *container) add(r *route) {
	r.params = append(r.params, queryParam("pretty", "string", "If 'true', then the output is pretty printed."))
	c.addPlain(r)
}

// addPlain completes a route and appends it.
func (c *container) addPlain(r *route) {
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
	r.description = strings.TrimSpace(fmt.Sprintf("%s %s", r.action, r.kind.Kind))
	c.routes = append(c.routes, r)
}

// streamTypes are the media types of answers that may go on.
func streamTypes() []string {
	return []string{typeJSON, typeYAML, typeProto, typeJSON + ";stream=watch", typeProto + ";stream=watch"}
}

func (c *container) addResource(s *Server, ep *endpoint) {
	scope, plural := "", "/"+ep.Info.Resource.Resource
	list := c.root + plural
	if ep.Namespaced {
		scope, list = "Namespaced", c.root+"/namespaces/{namespace}"+plural
	}
	one := list + "/{name}"
	object, page := ep.New(), newOf(s, ep.listKind)
	verb := func(method, path, name, action string, params []param, body, answer any, codes ...int) {
		c.add(&route{method: method, path: path, operation: name, action: action, kind: ep.Kind, params: params, body: body, answer: answer, codes: codes})
	}
	var deleted any = &metav1.Status{}
	if ep.ReturnsDeleted() && ep.Kind.Kind != "Namespace" { // whose first delete never finishes
		deleted = object
	}
	kind := scope + ep.Kind.Kind
	if ep.verbs["create"] {
		verb("POST", list, "create"+kind, "post", writeParams(), object, object, 200, 201, 202)
	}
	if ep.verbs["deletecollection"] {
		verb("DELETE", list, "deleteCollection"+kind, "deletecollection", append(deleteParams(), selectParams()...), &metav1.DeleteOptions{}, &metav1.Status{}, 200)
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
		verb("DELETE", one, "delete"+kind, "delete", deleteParams(), &metav1.DeleteOptions{}, deleted, 200, 202)
	}
	stream := func(path, name, action string, answer any) {
		c.add(&route{method: "GET", path: path, operation: name, action: action, kind: ep.Kind, params: listParams(), answer: answer,
			codes: []int{200}, produces: streamTypes()})
	}
	if ep.verbs["list"] {
		stream(list, "list"+kind, "list", page)
		if ep.Namespaced {
			stream(c.root+plural, "list"+ep.Kind.Kind+"ForAllNamespaces", "list", page)
		}
	}
	if ep.verbs["watch"] { // the deprecated paths
		below := c.root + "/watch" + strings.TrimPrefix(list, c.root)
		stream(below, "watch"+kind+"List", "watchlist", &metav1.WatchEvent{})
		stream(below+"/{name}", "watch"+kind, "watch", &metav1.WatchEvent{})
		if ep.Namespaced {
			stream(c.root+"/watch"+plural, "watch"+ep.Kind.Kind+"ListForAllNamespaces", "watchlist", &metav1.WatchEvent{})
		}
	}
	for _, sub := range ep.Subresources {
		c.addSub(s, ep, sub.Name, one+"/"+sub.Name, kind)
	}
}

func (c *container) addPatch(path, operation string, kind schema.GroupVersionKind, object any) {
	params := append(writeParams(), queryParam("force", "boolean", "Take over fields that other managers own, in an apply."))
	c.add(&route{method: "PATCH", path: path, operation: operation, action: "patch", kind: kind, params: params,
		body: &metav1.Patch{}, answer: object, codes: []int{200, 201}, consumes: patchTypes(false)})
}

// addSub describes one subresource.
func (c *container) addSub(s *Server, ep *endpoint, name, path, kind string) {
	sub := ep.subs[name]
	suffix := kind + strings.ToUpper(name[:1]) + name[1:]
	object := newOf(s, sub.Kind)
	if s.streams.serves(ep.Info.Resource.Resource, name) {
		if name == "log" {
			options := newOf(s, sub.Kind.GroupVersion().WithKind("PodLogOptions"))
			c.add(&route{method: "GET", path: path, operation: "read" + suffix, action: "get", kind: sub.Kind, answer: "", codes: []int{200},
				params: optionParams(options), produces: []string{"text/plain", typeJSON, typeYAML, typeProto}})
			return
		}
		c.addConnect(path, suffix, name, sub.Kind, object)
		return
	}
	for _, verb := range sub.Verbs {
		r := &route{path: path, kind: sub.Kind, answer: object, codes: []int{200}}
		switch verb {
		case "get":
			r.method, r.action, r.operation = "GET", "get", "read"+suffix
		case "create":
			r.method, r.action, r.operation, r.body, r.codes, r.params = "POST", "post", "create"+suffix, object, []int{200, 201, 202}, writeParams()
		case "update":
			r.method, r.action, r.operation, r.body, r.codes, r.params = "PUT", "put", "replace"+suffix, object, []int{200, 201}, writeParams()
		case "patch":
			c.addPatch(path, "patch"+suffix, sub.Kind, object)
			continue
		}
		c.add(r)
	}
}

// addConnect describes a subresource that is a stream; a proxy takes paths below its own.
func (c *container) addConnect(path, suffix, name string, kind schema.GroupVersionKind, options runtime.Object) {
	methods, paths := []string{"GET", "POST"}, map[string]string{path: suffix}
	if name == "proxy" {
		methods = []string{"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
		paths[path+"/{path}"] = suffix + "WithPath"
	}
	for path, suffix := range paths {
		for _, method := range methods {
			c.addPlain(&route{method: method, path: path, operation: "connect" + method[:1] + strings.ToLower(method[1:]) + suffix, action: "connect",
				kind: kind, params: slices.Clone(optionParams(options)), answer: "", codes: []int{200}, produces: []string{"*/*"}})
		}
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
	for _, prefix := range []string{"read", "replace", "patch", "delete", "create", "list", "watch", "connect", "get"} {
		if strings.HasPrefix(name, prefix) {
			verb = prefix
			break
		}
	}
	parts := strings.Split(strings.Trim(r.Path(), "/"), "/")
	if parts[0] == "api" {
		parts = append([]string{"apis", "core"}, parts[1:]...)
	}
	valid := openapinamer.ToValidOperationID
	if parts[0] != "apis" || len(parts) < 2 {
		return name, []string{valid(parts[0], false)}, nil
	}
	group := strings.TrimSuffix(parts[1], ".k8s.io")
	tag, id := valid(group, false), verb+valid(group, true)
	if len(parts) > 2 {
		tag, id = tag+"_"+valid(parts[2], false), id+valid(parts[2], true)
	}
	return id + valid(strings.TrimPrefix(name, verb), true), []string{tag}, nil
}
