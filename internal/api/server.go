package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"

	"gantry.dev/gantry/internal/api/aggregate"
	"gantry.dev/gantry/internal/api/auth"
	"gantry.dev/gantry/internal/api/fairness"
	"gantry.dev/gantry/internal/api/registry"
)

// Options tells New what to serve and how.
type Options struct {
	Registry      *registry.Registry    // required
	Authenticator *auth.Authenticator   // required
	Authorizer    *auth.Authorizer      // required
	Version       version.Info          // what /version says
	Checks        []Check               // health beside "ping"
	Metrics       *prometheus.Registry  // /metrics serves it; default a new one
	Log           *slog.Logger          // default: discards
	Audit         AuditLog              // records requests; nil: nothing is recorded
	Aggregator    *aggregate.Aggregator // what other API servers have; nil: nothing
	Images        Images                // the cluster's image registry; nil: none
	CustomMetrics CustomMetrics         // what custom.metrics.k8s.io tells; nil: it is not served

	AgentTransport http.RoundTripper // speaks to nodes' agents, with the apiserver-kubelet-client certificate; nil: no streams
	AgentPort      int               // port of agents whose node names none, default 10250
	ProxyTransport http.RoundTripper // speaks to pods and services for the proxy subresources; default believes any certificate

	Fairness       *fairness.Dispatcher // whose turn it is; default one of upstream's configuration with MaxInFlight seats
	MaxInFlight    int                  // requests served at once, long-running ones apart, default 600
	MaxBodyBytes   int64                // default 3 MiB
	RequestTimeout time.Duration        // for requests that are not long-running, default 60s
	WatchTimeout   time.Duration        // least lifetime of a watch that names none, default 30m; up to twice that
	BookmarkPeriod time.Duration        // default 1m
}

// Server is the API. It is an http.Handler, safe for concurrent use.
type Server struct {
	opts     Options
	accepts  negotiator
	decoders decoders
	metrics  *metrics
	fairness *fairness.Dispatcher
	current  atomic.Pointer[routes]
	routing  sync.Mutex // held while current is replaced
	reviewer *auth.Reviewer
	openapi  *openAPI
	tables   *tables
	shared   *shared
	pools    *pools
	zips     zipCache
	streams  *streams
	scrape   http.Handler
	issuer   issuerDocuments

	auditor      *auditor // nil: nothing is recorded
	impersonator impersonator
	aggregation  *aggregation // nil without an aggregator
}

// New checks opts and returns a Server that has started nothing.
func New(opts Options) (*Server, error) {
	if opts.Registry == nil || opts.Authenticator == nil || opts.Authorizer == nil {
		return nil, errors.New("api: Options need Registry, Authenticator and Authorizer")
	}
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	m, err := newMetrics(opts.Metrics)
	if err != nil {
		return nil, fmt.Errorf("api: registering metrics: %w", err)
	}
	s := &Server{
		opts: opts, fairness: opts.Fairness, metrics: m, decoders: newDecoders(opts.Registry.Scheme()),
		reviewer: auth.NewReviewer(opts.Authenticator, opts.Authorizer),
		tables:   newTables(opts.Registry.Scheme()),
		scrape:   promhttp.HandlerFor(opts.Metrics, promhttp.HandlerOpts{}),
	}
	s.shared, s.pools = newShared(), &pools{}
	s.zips.pools = s.pools
	s.openapi = newOpenAPI(s)
	s.streams = newStreams(s)
	if opts.Audit != nil {
		s.auditor = newAuditor(s, opts.Audit)
	}
	if opts.Aggregator != nil {
		s.aggregation = &aggregation{from: opts.Aggregator, schemas: aggregate.NewSchemas(opts.Aggregator)}
	}
	return s, nil
}

func (o *Options) setDefaults() error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = prometheus.NewRegistry()
	}
	if o.ProxyTransport == nil {
		o.ProxyTransport = newProxyTransport()
	}
	setDefault(&o.AgentPort, 10250)
	setDefault(&o.MaxInFlight, 600)
	if o.Fairness == nil {
		var err error
		if o.Fairness, err = fairness.New(fairness.Options{Seats: o.MaxInFlight, Log: o.Log}); err != nil {
			return err
		}
	}
	setDefault(&o.MaxBodyBytes, 3<<20)
	setDefault(&o.RequestTimeout, time.Minute)
	setDefault(&o.WatchTimeout, 30*time.Minute)
	setDefault(&o.BookmarkPeriod, time.Minute)
	if o.MaxInFlight < 1 || o.MaxBodyBytes < 1 || o.RequestTimeout < 0 || o.WatchTimeout < 0 || o.BookmarkPeriod < 0 || o.AgentPort < 0 {
		return errors.New("api: Options have a negative limit")
	}
	return nil
}

func setDefault[T comparable](value *T, byDefault T) {
	var zero T
	if *value == zero {
		*value = byDefault
	}
}

// query is one request on its way through.
type query struct {
	w        http.ResponseWriter
	r        *http.Request
	start    time.Time
	path     requestPath
	endpoint *endpoint
	user     user.Info
	attrs    authorizer.AttributesRecord
	list     listQuery
	listErr  error
	seat     fairness.Ticket
	applies  bool                      // server-side apply
	audited  *audit.RequestAuditConfig // nil: not recorded
	code     int                       // of the answer, from behind upstream's filters
	warnings warnings
	ctx      context.Context //nolint:containedctx // made once, on first use, by context
}

// context carries the user, the request information and the recorder of warnings, which upstream's strategies and
// admission look for. It is made on first use: reads need none of it.
func (q *query) context() context.Context {
	if q.ctx == nil {
		ctx := request.WithRequestInfo(request.WithUser(q.r.Context(), q.user), &q.path.RequestInfo)
		q.warnings.q = q
		q.ctx = warning.WithWarningRecorder(ctx, &q.warnings)
	}
	return q.ctx
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &query{w: w, r: r, start: time.Now()}
	code := http.StatusInternalServerError
	defer func() {
		if cause := recover(); cause != nil {
			s.recovered(q, cause)
		}
		s.metrics.observe(q, code)
	}()
	header := w.Header()
	header["Audit-Id"] = []string{auditID(r)}
	header["Cache-Control"] = s.shared.private
	q.path = parsePath(r.Method, r.URL.Path)
	code = s.handle(q)
}

// recovered answers a request that panicked. http.ErrAbortHandler passes on: it means to cut the connection.
func (s *Server) recovered(q *query, cause any) {
	if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(cause)
	}
	s.opts.Log.Error("request panicked", "path", q.path.Path, "panic", cause, "stack", string(debug.Stack()))
	http.Error(q.w, "This request caused apiserver to panic. Look in the logs for details.", http.StatusInternalServerError)
}

const hexDigits = "0123456789abcdef"

// auditID is the client's Audit-Id or a random UUID.
func auditID(r *http.Request) string {
	if id := r.Header["Audit-Id"]; len(id) > 0 && id[0] != "" {
		return id[0][:min(len(id[0]), 64)]
	}
	words := [2]uint64{rand.Uint64()&^0xf000 | 0x4000, rand.Uint64()&^(3<<62) | 1<<63}
	var out [36]byte
	at := 0
	for i := range 32 {
		if i == 8 || i == 12 || i == 16 || i == 20 {
			out[at] = '-'
			at++
		}
		out[at] = hexDigits[words[i/16]>>(60-4*(i%16))&0xf]
		at++
	}
	return string(out[:])
}

// handle finds out who asks, whether they may, and answers. It returns the code of the answer.
func (s *Server) handle(q *query) int {
	if q.path.bad {
		return s.crash(q, fmt.Errorf("unable to determine kind and namespace from url, %v", q.r.URL))
	}
	if !q.path.IsResourceRequest && s.opts.Images != nil && isImagesPath(q.path.Path) {
		s.imagesPath(q)
	} else if q.path.Name == "" || q.path.Verb == "watch" {
		switch q.path.Verb {
		case "list", "watch", "deletecollection":
			q.list, q.listErr = parseList(q.r.URL.RawQuery)
			q.path.refineVerb(&q.list)
		}
	}
	if s.auditor != nil {
		s.auditor.prepare(q)
	}
	response, ok, err := s.opts.Authenticator.AuthenticateRequest(q.r)
	if err != nil || !ok {
		s.opts.Log.Debug("unauthenticated request", "path", q.path.Path, "error", err)
		if s.auditor != nil {
			return s.auditor.refuse(q)
		}
		return s.unauthorized(q)
	}
	q.user = response.User
	if s.auditor != nil {
		return s.auditor.serve(s, q)
	}
	return s.admit(q)
}

// unauthorized answers a request whose credentials are no good.
func (s *Server) unauthorized(q *query) int {
	return s.fail(q, apierrors.NewUnauthorized("Unauthorized"))
}

// admit handles a request of a known user, who may want to be another.
func (s *Server) admit(q *query) int {
	if impersonates(q.r.Header) {
		return s.impersonate(q)
	}
	return s.permit(q)
}

// permit finds a place for the request, sees whether the user may, and answers.
func (s *Server) permit(q *query) int {
	if q.path.images {
		return s.serveImages(q)
	}
	if q.takesSeat() {
		if code := s.takeSeat(q); code != 0 {
			return code
		}
		defer s.fairness.Release(&q.seat)
	}
	if err := s.authorize(q); err != nil {
		q.w.Header().Set("X-Content-Type-Options", "nosniff")
		return s.fail(q, err)
	}
	if q.path.IsResourceRequest {
		return s.resource(q)
	}
	return s.document(q)
}

// authorize returns the 403 of a request that is not allowed. Health is open to all.
func (s *Server) authorize(q *query) error {
	if _, _, health := healthPath(q.path.Path); health {
		q.auditAuthorized(authorizer.DecisionAllow, "", nil)
		return nil
	}
	info := &q.path.RequestInfo
	q.attrs = authorizer.AttributesRecord{
		User: q.user, Verb: info.Verb, Path: info.Path, ResourceRequest: info.IsResourceRequest, APIGroup: info.APIGroup,
		APIVersion: info.APIVersion, Resource: info.Resource, Subresource: info.Subresource, Namespace: info.Namespace, Name: info.Name,
	}
	if q.list.Fields != nil || q.list.Labels != nil {
		q.attrs.FieldSelectorRequirements, q.attrs.LabelSelectorRequirements = selectorRequirements(q.list.Fields, q.list.Labels)
	}
	decision, reason, err := s.opts.Authorizer.Authorize(q.r.Context(), &q.attrs)
	q.auditAuthorized(decision, reason, err)
	if decision == authorizer.DecisionAllow {
		return nil
	}
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	return responsewriters.ForbiddenStatusError(&q.attrs, reason)
}

// selectorRequirements gives the authorizer what a list is narrowed to.
func selectorRequirements(byField fields.Selector, byLabel labels.Selector) (fields.Requirements, labels.Requirements) {
	var fieldRequirements fields.Requirements
	var labelRequirements labels.Requirements
	if byField != nil {
		fieldRequirements = byField.Requirements()
	}
	if byLabel != nil {
		labelRequirements, _ = byLabel.Requirements()
	}
	return fieldRequirements, labelRequirements
}
