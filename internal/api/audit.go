package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// AuditLog says what is recorded of requests, and takes the records. internal/api/audit makes one.
type AuditLog interface {
	Policy() audit.PolicyRuleEvaluator
	Sink() audit.Sink
}

// Annotations that say how a request was authorized.
const (
	auditDecision = "authorization.k8s.io/decision"
	auditReason   = "authorization.k8s.io/reason"
)

// auditor records requests. Stages, levels and what an event says of its request are upstream's filters; where
// objects come in and answers go out, the verbs tell. Without an audit log there is no auditor, and a request pays
// for one comparison with nil.
type auditor struct {
	policy  audit.PolicyRuleEvaluator
	admit   http.Handler // records a request whose user is known
	refused http.Handler // records one without a user
}

// queryKey is where a request's context carries its query through upstream's filters.
type queryKey struct{}

func newAuditor(s *Server, log AuditLog) *auditor {
	on := func(handle func(q *query) int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if q, ok := r.Context().Value(queryKey{}).(*query); ok {
				q.w, q.r = w, r
				q.code = handle(q)
			}
		})
	}
	longRunning := func(r *http.Request, _ *request.RequestInfo) bool {
		q, ok := r.Context().Value(queryKey{}).(*query)
		return ok && q.path.longRunning()
	}
	return &auditor{
		policy:  log.Policy(),
		admit:   filters.WithAudit(on(s.admit), log.Sink(), log.Policy(), longRunning),
		refused: filters.WithFailedAuthenticationAudit(on(s.unauthorized), log.Sink(), log.Policy()),
	}
}

// prepare makes room for what is recorded; it comes before authentication, which may annotate the event.
func (a *auditor) prepare(q *query) {
	ctx := audit.WithAuditContext(q.r.Context())
	audit.WithAuditID(ctx, types.UID(q.w.Header().Get("Audit-Id")))
	ctx = request.WithReceivedTimestamp(ctx, q.start)
	ctx = request.WithRequestInfo(ctx, &q.path.RequestInfo)
	q.r = q.r.WithContext(context.WithValue(ctx, queryKey{}, q))
}

// refuse answers and records a request that could not be authenticated.
func (a *auditor) refuse(q *query) int {
	config := a.policy.EvaluatePolicyRule(a.attributes(q))
	q.audited = &config
	a.refused.ServeHTTP(q.w, q.r)
	return q.code
}

// serve handles and records the request as the policy says.
func (a *auditor) serve(s *Server, q *query) int {
	config := a.policy.EvaluatePolicyRule(a.attributes(q))
	if config.Level == auditinternal.LevelNone {
		return s.admit(q)
	}
	q.audited = &config
	q.code = http.StatusInternalServerError // unless the handler is reached
	a.admit.ServeHTTP(q.w, q.r.WithContext(request.WithUser(q.r.Context(), q.user)))
	return q.code
}

// attributes are what the policy decides by.
func (a *auditor) attributes(q *query) *authorizer.AttributesRecord {
	return &authorizer.AttributesRecord{
		User: q.user, Verb: q.path.Verb, Path: q.path.Path, ResourceRequest: q.path.IsResourceRequest, APIGroup: q.path.APIGroup,
		APIVersion: q.path.APIVersion, Resource: q.path.Resource, Subresource: q.path.Subresource, Namespace: q.path.Namespace, Name: q.path.Name,
	}
}

// auditAuthorized records how the request was authorized.
func (q *query) auditAuthorized(decision authorizer.Decision, reason string, err error) {
	if q.audited == nil {
		return
	}
	ctx := q.r.Context()
	switch {
	case decision == authorizer.DecisionAllow:
		audit.AddAuditAnnotations(ctx, auditDecision, "allow", auditReason, reason)
	case err != nil:
		audit.AddAuditAnnotation(ctx, auditReason, "internal error")
	default:
		audit.AddAuditAnnotations(ctx, auditDecision, "forbid", auditReason, reason)
	}
}

// auditRequest records the object that was sent, with its defaults, as upstream's decoder leaves it.
func (q *query) auditRequest(object runtime.Object, kind schema.GroupVersionKind) {
	if q.audited == nil {
		return
	}
	sent := object.DeepCopyObject()
	legacyscheme.Scheme.Default(sent)
	sent.GetObjectKind().SetGroupVersionKind(kind)
	q.logRequest(sent, kind)
}

func (q *query) logRequest(sent runtime.Object, kind schema.GroupVersionKind) {
	resource := schema.GroupVersionResource{Group: q.path.APIGroup, Version: q.path.APIVersion, Resource: q.path.Resource}
	audit.LogRequestObject(q.r.Context(), sent, kind.GroupVersion(), resource, q.path.Subresource, plainSerializer{})
}

// auditDelete records the options that came in the body of a delete, of the kind that upstream writes there.
func (q *query) auditDelete(body []byte, opts *metav1.DeleteOptions) {
	if q.audited == nil || len(body) == 0 {
		return
	}
	kind := schema.GroupVersionKind{Group: metav1.GroupName, Version: runtime.APIVersionInternal, Kind: "DeleteOptions"}
	sent := opts.DeepCopy()
	sent.SetGroupVersionKind(kind)
	q.logRequest(sent, kind)
}

// auditPatch records a patch as it was sent, but as JSON: an event with anything else in it could not be written.
func (q *query) auditPatch(patch []byte) {
	if q.audited == nil {
		return
	}
	if q.applies {
		var err error
		if patch, err = yaml.YAMLToJSON(patch); err != nil {
			return // the answer says so
		}
	}
	if json.Valid(patch) {
		audit.LogRequestPatch(q.r.Context(), patch)
	}
}

// auditResponse records an answer. Of a Status the metadata say that much at every level.
func (q *query) auditResponse(object runtime.Object, kind schema.GroupVersionKind) {
	if q.audited != nil {
		object.GetObjectKind().SetGroupVersionKind(kind)
		audit.LogResponseObject(q.r.Context(), object, kind.GroupVersion(), plainSerializer{})
	}
}

// auditEntry records an answer that is an object from the store.
func (q *query) auditEntry(entry *store.Entry, frame *kindFrame) {
	if q.audited != nil && q.audited.Level == auditinternal.LevelRequestResponse {
		audit.LogResponseObject(q.r.Context(), entry.Object, frame.kind.GroupVersion(), plainSerializer{})
	}
}

// auditList records a page.
func (q *query) auditList(ep *endpoint, got *registry.List) {
	if q.audited == nil || q.audited.Level != auditinternal.LevelRequestResponse {
		return
	}
	items := make([][]byte, len(got.Entries))
	for i, entry := range got.Entries {
		data, err := entry.JSON()
		if object, ok := entry.Object.DeepCopyObject().(store.Object); ok && q.audited.OmitManagedFields {
			object.SetManagedFields(nil)
			data, err = json.Marshal(object)
		}
		if err != nil {
			return
		}
		items[i] = data
	}
	if raw, err := ep.appendJSONList(nil, listMeta(got), items); err == nil {
		audit.AuditContextFrom(q.r.Context()).LogResponseObject(nil, &runtime.Unknown{Raw: raw, ContentType: runtime.ContentTypeJSON})
	}
}

// plainSerializer writes objects as JSON in the version they are of: nothing here is of another.
type plainSerializer struct{}

var _ runtime.NegotiatedSerializer = plainSerializer{}

// SupportedMediaTypes implements runtime.NegotiatedSerializer.
func (plainSerializer) SupportedMediaTypes() []runtime.SerializerInfo {
	return []runtime.SerializerInfo{{MediaType: runtime.ContentTypeJSON, MediaTypeType: "application", MediaTypeSubType: "json", EncodesAsText: true}}
}

// EncoderForVersion implements runtime.NegotiatedSerializer.
func (plainSerializer) EncoderForVersion(runtime.Encoder, runtime.GroupVersioner) runtime.Encoder {
	return plainEncoder{}
}

// DecoderToVersion implements runtime.NegotiatedSerializer; nothing is decoded by it.
func (plainSerializer) DecoderToVersion(decoder runtime.Decoder, _ runtime.GroupVersioner) runtime.Decoder {
	return decoder
}

type plainEncoder struct{}

// Encode implements runtime.Encoder.
func (plainEncoder) Encode(object runtime.Object, w io.Writer) error {
	return json.NewEncoder(w).Encode(object)
}

// Identifier implements runtime.Encoder.
func (plainEncoder) Identifier() runtime.Identifier { return "plain" }
