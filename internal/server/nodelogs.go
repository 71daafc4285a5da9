package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/agent"
	"gantry.dev/gantry/internal/applog"
	"gantry.dev/gantry/internal/config"
	edgegateway "gantry.dev/gantry/internal/network/gateway"
	"gantry.dev/gantry/internal/network/routes"
)

// nodeLogs are the logs of applications on this node: what their pods wrote, what its gateway saw, and what this server
// did with them.
type nodeLogs struct {
	keeper *applog.Keeper
	edge   string         // the edge's socket; empty: there is no gateway
	notes  *platformNotes // nil on a worker: servers know what the platform does
	pods   func() []*corev1.Pod
	costs  costs
}

var _ agent.PodLogs = (*nodeLogs)(nil)

// newNodeLogs makes the logs of a node of a server, or of a worker (cp is nil).
func newNodeLogs(cp *ControlPlane, c config.Config, logger *slog.Logger) (*nodeLogs, error) {
	keeper, err := applog.New(applog.Options{PodsDir: c.Path("log", "pods"), Dir: c.Path("log", "apps"), Logger: logger})
	if err != nil {
		return nil, err
	}
	l := &nodeLogs{keeper: keeper, pods: func() []*corev1.Pod { return nil }}
	if cp == nil {
		return l, nil
	}
	l.notes = &platformNotes{cp: cp, keeper: keeper, log: logger}
	if !c.Gateway.Off {
		l.edge = edgeSocket(c)
	}
	return l, nil
}

// Run keeps logs until ctx ends.
func (l *nodeLogs) Run(ctx context.Context) error {
	if l.notes == nil {
		return l.keeper.Run(ctx)
	}
	return runAll(ctx, l.keeper.Run, l.notes.Run)
}

// Begin implements agent.PodLogs.
func (l *nodeLogs) Begin(pod *corev1.Pod) error {
	app := pod.Labels[v1alpha1.LabelApp]
	if app == "" {
		return nil
	}
	process := pod.Labels[v1alpha1.LabelProcess]
	if process == "" {
		process = pod.Labels[v1alpha1.LabelAddon]
	}
	return l.keeper.Begin(applog.Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), App: app, Process: process,
		Release: pod.Labels[v1alpha1.LabelRelease], Began: pod.CreationTimestamp.Time,
	})
}

// End implements agent.PodLogs.
func (l *nodeLogs) End(namespace, name string, uid types.UID) (bool, error) {
	return l.keeper.End(namespace, name, string(uid))
}

// ServeHTTP serves what lies below /gantry/ of the node's API. Who may use it was asked before.
func (l *nodeLogs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/gantry/logs":
		l.serveLogs(w, r)
	case "/gantry/costs":
		l.serveCosts(w, r)
	case "/gantry/requests":
		l.serveRequests(w, r)
	default:
		http.NotFound(w, r)
	}
}

// serveLogs gives the lines of an application.
func (l *nodeLogs) serveLogs(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	q := applog.Query{Namespace: query.Get("namespace"), App: query.Get("app"), Process: query.Get("process"), Brief: query.Get("brief") == "true"}
	var err error
	if text := query.Get("since"); text != "" {
		q.Since, err = time.Parse(time.RFC3339Nano, text)
	}
	if text := query.Get("tail"); text != "" && err == nil {
		q.Tail, err = strconv.Atoi(text)
	}
	if err != nil || q.Namespace == "" || q.App == "" {
		http.Error(w, "want namespace, app, and since and tail as they should be", http.StatusBadRequest)
		return
	}
	for _, pod := range l.pods() { // those that began under an older gantry
		if pod.Namespace == q.Namespace && pod.Labels[v1alpha1.LabelApp] == q.App {
			if err := l.Begin(pod); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		}
	}
	var more []applog.Source
	if l.edge != "" && (q.Process == "" || q.Process == v1alpha1.WebProcess) {
		more = append(more, l.gatewayLines(r.Context(), q))
	}
	w.Header().Set("Content-Type", "application/jsonl")
	if err := l.keeper.Read(r.Context(), q, more, func(line applog.Line) error { return applog.Encode(w, line) }); err != nil {
		panic(http.ErrAbortHandler) // who reads has to see that it is not whole
	}
}

// serveRequests tells what this node's gateway noted of a request.
func (l *nodeLogs) serveRequests(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("id")
	if l.edge == "" || id == "" {
		_, _ = io.WriteString(w, "[]\n")
		return
	}
	failed, err := routes.Query(r.Context(), l.edge, edgegateway.Query{What: edgegateway.QueryFailures, RequestID: id})
	var logged edgegateway.Answer
	if err == nil {
		logged, err = routes.Query(r.Context(), l.edge, edgegateway.Query{What: edgegateway.QueryLog, RequestID: id, Limit: 10})
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(onceEach(failed.Failures, logged.Log))
}

// gatewayPage is how many lines are asked of the gateway at once.
const gatewayPage = 5000

// gatewayLines reads the gateway's log page by page.
func (l *nodeLogs) gatewayLines(ctx context.Context, q applog.Query) applog.Source {
	labels := map[string]string{"app": q.App}
	if q.Process != "" {
		labels["process"] = q.Process
	}
	s := &gatewaySource{ask: func(query edgegateway.Query) ([]edgegateway.Entry, error) {
		answer, err := routes.Query(ctx, l.edge, query)
		return answer.Log, err
	}, query: edgegateway.Query{What: edgegateway.QueryLog, Namespace: q.Namespace, Labels: labels, Since: q.Since, Oldest: true, Limit: gatewayPage}}
	if q.Tail > 0 && q.Tail <= 1000 {
		s.query.Oldest, s.query.Limit = false, q.Tail
	}
	return s
}

// gatewaySource gives the lines of a gateway.
type gatewaySource struct {
	ask   func(edgegateway.Query) ([]edgegateway.Entry, error)
	query edgegateway.Query
	page  []edgegateway.Entry
	ended bool
}

// Next implements applog.Source. A line's time is that of the answer's end.
func (s *gatewaySource) Next() (applog.Line, error) {
	if len(s.page) == 0 && !s.ended {
		var err error
		if s.page, err = s.ask(s.query); err != nil {
			s.page, s.ended = nil, true
			return applog.Line{Time: time.Now(), Source: applog.SourceGateway, Text: fmt.Sprintf("its log cannot be read: %v", err)}, nil
		}
		s.ended = !s.query.Oldest || len(s.page) < s.query.Limit
	}
	if len(s.page) == 0 {
		return applog.Line{}, io.EOF
	}
	e := &s.page[0]
	s.page, s.query.After = s.page[1:], e.Sequence
	return applog.Line{Time: time.Unix(0, int64(e.Sequence)).UTC(), Source: applog.SourceGateway, Process: e.Labels["process"],
		ID: "", Text: gatewayText(e)}, nil
}

// Close implements applog.Source.
func (s *gatewaySource) Close() error { return nil }

// appOfRelease is the application of a release's name.
func appOfRelease(name string) string {
	if i := strings.LastIndex(name, "-v"); i > 0 {
		return name[:i]
	}
	return name
}
