package api

import (
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
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
	if r.action == "" { // a document
		return nil
	}
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
