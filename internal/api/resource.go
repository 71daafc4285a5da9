package api

import (
	"context"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"
	custommetrics "k8s.io/metrics/pkg/apis/custom_metrics"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// resource answers a request for a resource: it finds the endpoint and calls the verb.
func (s *Server) resource(q *query) int {
	name := schema.GroupVersionResource{Group: q.path.APIGroup, Version: q.path.APIVersion, Resource: q.path.Resource}
	if target := s.target(name.GroupVersion()); target != nil {
		return s.delegate(q, target)
	}
	if s.opts.CustomMetrics != nil && name.Group == custommetrics.GroupName {
		return s.customMetrics(q)
	}
	routes := s.routes()
	ep := routes.endpoints[name]
	if ep == nil {
		if r := routes.reviews[name]; r != nil {
			return s.review(q, r)
		}
		if routes.versions[name.GroupVersion()] {
			return s.fail(q, errNoRoute())
		}
		return s.notFoundPath(q)
	}
	q.endpoint = ep
	if ep.warning != "" {
		warning.AddWarning(q.context(), "", ep.warning)
	}
	if q.path.Verb == "proxy" || !q.inScope(ep) {
		return s.fail(q, errNoRoute())
	}
	if q.path.Subresource != "" {
		return s.subresource(q, ep)
	}
	nameless := q.path.Name == "" && (q.path.Verb == "update" || q.path.Verb == "patch")
	named := q.path.Name != "" && q.path.Verb == "create"
	if !ep.verbs[q.path.Verb] || nameless || named || (ep.Namespaced && q.path.Namespace == "" && (q.path.Verb == "create" || q.path.Verb == "deletecollection")) {
		return s.fail(q, errNoMethod())
	}
	return s.bounded(q, func() int {
		switch q.path.Verb {
		case "get":
			return s.get(q, ep)
		case "list":
			return s.list(q, ep)
		case "watch":
			return s.watch(q, ep)
		case "create":
			return s.create(q, ep)
		case "update":
			return s.update(q, ep, &ep.kindFrame)
		case "patch":
			return s.patch(q, ep, &ep.kindFrame)
		case "delete":
			return s.delete(q, ep)
		case "deletecollection":
			return s.deleteCollection(q, ep)
		}
		return s.fail(q, errNoMethod())
	})
}

// inScope reports whether the path has a namespace where the kind needs one, and no other.
func (q *query) inScope(ep *endpoint) bool {
	if ep.Namespaced {
		return q.path.Namespace != "" || q.path.Name == "" || q.path.Verb == "list" || q.path.Verb == "watch"
	}
	return q.path.Namespace == "" || q.path.Resource == "namespaces"
}

// bounded runs a verb under the time limit of requests, or of the client's timeout parameter if that is shorter.
func (s *Server) bounded(q *query, verb func() int) int {
	if q.path.Verb == "get" || q.path.longRunning() { // a get is answered from memory
		return verb()
	}
	limit := s.opts.RequestTimeout
	if asked := askedTimeout(q.r.URL.RawQuery); asked > 0 {
		limit = min(limit, asked)
	}
	ctx, cancel := context.WithTimeout(q.context(), limit)
	defer cancel()
	q.ctx = ctx
	return verb()
}

// get answers one object from its kept bytes.
func (s *Server) get(q *query, ep *endpoint) int {
	out, ok := s.accepts.negotiate(q.accept(), ep.class)
	if !ok {
		return s.fail(q, notAcceptable(ep.class))
	}
	opts, err := parseGet(q.r.URL.RawQuery)
	if err != nil {
		return s.fail(q, err)
	}
	entry, err := ep.Get(q.r.Context(), q.namespace(), q.path.Name, opts.ResourceVersion)
	if err != nil {
		return s.fail(q, err)
	}
	return s.entry(q, out, http.StatusOK, &ep.kindFrame, entry)
}

// accept is the Accept header, all of its lines.
func (q *query) accept() string {
	values := q.r.Header["Accept"]
	switch len(values) {
	case 0:
		return ""
	case 1:
		return values[0]
	}
	return strings.Join(values, ",")
}

// namespace is the object's namespace: a Namespace object's own path names one, but it is in none.
func (q *query) namespace() string {
	if q.endpoint != nil && !q.endpoint.Namespaced {
		return ""
	}
	return q.path.Namespace
}

// entry sends an object of the kind that frame is of.
func (s *Server) entry(q *query, out output, code int, frame *kindFrame, entry *store.Entry) int {
	if out.shape != shapeObject {
		return s.shaped(q, out, code, frame, entry)
	}
	q.auditEntry(entry, frame)
	if out.format == formatProto {
		raw, err := entry.Proto()
		if err != nil {
			return s.crash(q, err)
		}
		if raw != nil {
			return s.send(q, out, code, wrapProto(frame.protoHead, raw))
		}
		out.format = formatJSON
	}
	data, err := entry.JSON()
	if err != nil {
		return s.crash(q, err)
	}
	out.pretty = wantsPretty(&out, q.r)
	return s.sendJSON(q, out, code, data)
}

// create stores the object in the body.
func (s *Server) create(q *query, ep *endpoint) int {
	out, ok := s.accepts.negotiate(q.accept(), ep.class)
	if !ok {
		return s.fail(q, notAcceptable(ep.class))
	}
	body, err := s.readBody(q)
	if err != nil {
		return s.fail(q, err)
	}
	opts, err := parseCreate(q.r.URL.RawQuery)
	if err != nil {
		return s.fail(q, err)
	}
	object, err := s.decodeOwn(q, ep, body, opts.FieldValidation)
	if err != nil {
		return s.fail(q, err)
	}
	if named, ok := object.(metav1.Object); ok {
		q.path.RequestInfo.Name = named.GetName() // admission and audit see the name
	}
	q.auditRequest(object, ep.Kind)
	entry, err := ep.Create(q.context(), q.namespace(), object, fieldManager(opts.FieldManager, q.r.UserAgent()), opts)
	if err != nil {
		return s.fail(q, err)
	}
	return s.entry(q, out, http.StatusCreated, &ep.kindFrame, entry)
}

// update replaces the object, or the part of it that the subresource shows.
func (s *Server) update(q *query, ep *endpoint, frame *kindFrame) int {
	out, ok := s.accepts.negotiate(q.accept(), ep.class)
	if !ok {
		return s.fail(q, notAcceptable(ep.class))
	}
	body, err := s.readBody(q)
	if err != nil {
		return s.fail(q, err)
	}
	opts, err := parseUpdate(q.r.URL.RawQuery)
	if err != nil {
		return s.fail(q, err)
	}
	var object runtime.Object
	if frame.kind == ep.Kind {
		object, err = s.decodeOwn(q, ep, body, opts.FieldValidation)
	} else {
		object = ep.NewSub(q.path.Subresource)
		err = s.decodeObject(q, body, object, frame.kind, opts.FieldValidation)
	}
	if err != nil {
		return s.fail(q, err)
	}
	q.auditRequest(object, frame.kind)
	manager := fieldManager(opts.FieldManager, q.r.UserAgent())
	entry, created, err := ep.Update(s.guardCreate(q), q.namespace(), q.path.Name, q.path.Subresource, object, manager, opts)
	if err != nil {
		return s.fail(q, err)
	}
	return s.entry(q, out, codeOf(created), frame, entry)
}

func codeOf(created bool) int {
	if created {
		return http.StatusCreated
	}
	return http.StatusOK
}

// patchTypes are the patches that are taken, as the 415 lists them. Custom resources have no
// strategy for lists.
func patchTypes(custom bool) []string {
	if custom {
		return []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.ApplyYAMLPatchType)}
	}
	return []string{
		string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType),
	}
}

// patch changes the object as the body describes.
func (s *Server) patch(q *query, ep *endpoint, frame *kindFrame) int {
	contentType, _, _ := strings.Cut(q.r.Header.Get("Content-Type"), ";")
	patchType := types.PatchType(contentType)
	switch patchType {
	case types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType:
	case types.ApplyYAMLPatchType:
		q.applies = true
	default:
		return s.fail(q, negotiation.NewUnsupportedMediaTypeError(patchTypes(ep.Custom() != nil)))
	}
	if ep.Custom() != nil && patchType == types.StrategicMergePatchType {
		return s.fail(q, negotiation.NewUnsupportedMediaTypeError(patchTypes(true)))
	}
	out, ok := s.accepts.negotiate(q.accept(), ep.class)
	if !ok {
		return s.fail(q, notAcceptable(ep.class))
	}
	body, err := s.readBody(q)
	if err != nil {
		return s.fail(q, err)
	}
	opts, err := parsePatch(q.r.URL.RawQuery, patchType)
	if err != nil {
		return s.fail(q, err)
	}
	q.auditPatch(body)
	ctx := q.context()
	if q.applies {
		ctx = s.guardCreate(q)
	}
	entry, created, err := ep.Patch(ctx, q.namespace(), q.path.Name, q.path.Subresource, registry.PatchRequest{
		Type: patchType, Data: body, Options: *opts, Manager: fieldManager(opts.FieldManager, q.r.UserAgent()),
	})
	if err != nil {
		return s.fail(q, err)
	}
	return s.entry(q, out, codeOf(created), frame, entry)
}

// guardCreate is the context of an update or apply, which turns into a create where nothing of the name is there:
// then the user must have the right to create, too.
func (s *Server) guardCreate(q *query) context.Context {
	if q.path.Subresource != "" {
		return q.context()
	}
	return registry.WithCreateGuard(q.context(), func(ctx context.Context) error {
		attrs := q.attrs
		attrs.Verb = "create"
		decision, reason, err := s.opts.Authorizer.Authorize(ctx, &attrs)
		if decision == authorizer.DecisionAllow {
			return nil
		}
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		return responsewriters.ForbiddenStatusError(&attrs, reason)
	})
}

// delete removes the object, or marks it for removal.
func (s *Server) delete(q *query, ep *endpoint) int {
	out, ok := s.accepts.negotiate(q.accept(), ep.class)
	if !ok {
		return s.fail(q, notAcceptable(ep.class))
	}
	body, err := s.readBody(q)
	if err != nil {
		return s.fail(q, err)
	}
	opts, err := parseDelete(q.r.URL.RawQuery, body, q.r.Header.Get("Content-Type"))
	if err != nil {
		return s.fail(q, err)
	}
	q.auditDelete(body, opts)
	result, err := ep.Delete(q.context(), q.namespace(), q.path.Name, opts)
	if err != nil {
		return s.fail(q, err)
	}
	code := http.StatusOK
	//nolint:staticcheck // the deprecated field still decides the code, as upstream's does
	if !result.Done && opts.OrphanDependents != nil && !*opts.OrphanDependents {
		code = http.StatusAccepted
	}
	if !result.Done || result.ReturnsObject {
		return s.entry(q, out, code, &ep.kindFrame, result.Entry)
	}
	details := &metav1.StatusDetails{Name: q.path.Name, Group: ep.Info.Resource.Group, Kind: ep.Info.Resource.Resource, UID: result.Entry.Object.GetUID()}
	out.shape, out.pretty = shapeObject, wantsPretty(&out, q.r)
	return s.writeObject(q, out, code, statusKind(), success(details))
}

// subresource answers a request for a part of an object or an action on it.
func (s *Server) subresource(q *query, ep *endpoint) int {
	sub := ep.subs[q.path.Subresource]
	if sub == nil || q.path.Name == "" {
		return s.fail(q, errNoRoute())
	}
	if s.streams.serves(q.path.Resource, q.path.Subresource) {
		if !connects(q.path.Subresource, q.r.Method) {
			return s.fail(q, errNoMethod())
		}
		return s.streams.connect(q)
	}
	if !sub.verbs[q.path.Verb] {
		return s.fail(q, errNoMethod())
	}
	if q.path.rest != "" {
		return s.fail(q, errNoRoute())
	}
	return s.bounded(q, func() int {
		switch q.path.Verb {
		case "get":
			return s.getSub(q, ep, sub)
		case "create":
			return s.createSub(q, ep, sub)
		case "update":
			return s.update(q, ep, &sub.kindFrame)
		case "patch":
			return s.patch(q, ep, &sub.kindFrame)
		}
		return s.fail(q, errNoMethod())
	})
}

func (s *Server) getSub(q *query, ep *endpoint, sub *subEndpoint) int {
	out, ok := s.accepts.negotiate(q.accept(), ep.class)
	if !ok {
		return s.fail(q, notAcceptable(ep.class))
	}
	opts, err := parseGet(q.r.URL.RawQuery)
	if err != nil {
		return s.fail(q, err)
	}
	entry, err := ep.GetSub(q.r.Context(), q.namespace(), q.path.Name, sub.Name, opts.ResourceVersion)
	if err != nil {
		return s.fail(q, err)
	}
	return s.entry(q, out, http.StatusOK, &sub.kindFrame, entry)
}

// createSub performs an action: bind, evict, issue a token.
func (s *Server) createSub(q *query, ep *endpoint, sub *subEndpoint) int {
	out, ok := s.accepts.negotiate(q.accept(), classPlain)
	if !ok {
		return s.fail(q, notAcceptable(classPlain))
	}
	body, err := s.readBody(q)
	if err != nil {
		return s.fail(q, err)
	}
	opts, err := parseCreate(q.r.URL.RawQuery)
	if err != nil {
		return s.fail(q, err)
	}
	object := ep.NewSub(sub.Name)
	if err := s.decodeObject(q, body, object, sub.Kind, opts.FieldValidation); err != nil {
		return s.fail(q, err)
	}
	q.auditRequest(object, sub.Kind)
	answer, err := ep.CreateSub(q.context(), q.namespace(), q.path.Name, sub.Name, object, opts)
	if err != nil {
		return s.fail(q, err)
	}
	out.pretty = wantsPretty(&out, q.r)
	if status, ok := answer.(*metav1.Status); ok {
		return s.created(q, out, status)
	}
	return s.writeObject(q, out, http.StatusCreated, sub.Kind, answer)
}

// created answers a create that makes no object; the code is in the Status too.
func (s *Server) created(q *query, out output, status *metav1.Status) int {
	copied := *status
	copied.Code = http.StatusCreated
	return s.writeObject(q, out, http.StatusCreated, statusKind(), &copied)
}

// review answers a question.
func (s *Server) review(q *query, r *review) int {
	if q.path.Name != "" || q.path.Subresource != "" || r.namespaced != (q.path.Namespace != "") {
		return s.fail(q, errNoRoute())
	}
	if q.path.Verb != "create" {
		return s.fail(q, errNoMethod())
	}
	out, ok := s.accepts.negotiate(q.accept(), classPlain)
	if !ok {
		return s.fail(q, notAcceptable(classPlain))
	}
	body, err := s.readBody(q)
	if err != nil {
		return s.fail(q, err)
	}
	opts, err := parseCreate(q.r.URL.RawQuery)
	if err != nil {
		return s.fail(q, err)
	}
	object := r.newObj()
	if err := s.decodeObject(q, body, object, r.kind, opts.FieldValidation); err != nil {
		return s.fail(q, err)
	}
	q.auditRequest(object, r.kind)
	if named, ok := object.(metav1.Object); ok && r.namespaced {
		if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(q.path.Namespace, named); err != nil {
			return s.fail(q, err)
		}
	}
	if err := s.opts.Registry.AdmitReview(q.context(), r.resource, r.kind, q.path.Namespace, object, opts); err != nil {
		return s.fail(q, err)
	}
	var answer runtime.Object
	if answer, err = s.answer(q, object, opts); err != nil {
		return s.fail(q, err)
	}
	out.pretty = wantsPretty(&out, q.r)
	if status, ok := answer.(*metav1.Status); ok {
		return s.created(q, out, status)
	}
	return s.writeObject(q, out, http.StatusCreated, r.kind, answer)
}
