package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/api/metrics"
	"gantry.dev/gantry/internal/applog"
	edgegateway "gantry.dev/gantry/internal/network/gateway"
)

// What is served of applications' logs and requests; no other group serves anything there.
//
//	GET …/namespaces/NS/apps/APP/log?process=&since=&tail=&brief=   lines of JSON, see applog.Line
//	GET …/nodes                                                     a JSON list of what each node spends, see nodeCosts
//	GET …/requests/ID                                               a JSON list of the gateways' entries
const appLogPrefix = "/apis/logs.gantry.dev/v1alpha1/"

// askTimeout bounds how long a node may take to say what it knows of a request.
const askTimeout = 10 * time.Second

// withAppLogs serves what all nodes know of an application's logs and of requests, and passes all else on.
func (cp *ControlPlane) withAppLogs(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, appLogPrefix)
		parts := strings.Split(rest, "/")
		log := len(parts) == 5 && parts[0] == "namespaces" && parts[2] == "apps" && parts[4] == "log"
		request := len(parts) == 2 && parts[0] == "requests"
		nodes := rest == "nodes"
		if !ok || r.Method != http.MethodGet || !log && !request && !nodes || cp.opts.AgentTransport == nil {
			next.ServeHTTP(w, r)
			return
		}
		response, known, err := cp.authn.AuthenticateRequest(r)
		if err != nil || !known {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		if nodes {
			cp.serveNodeCosts(w, r, response.User)
			return
		}
		if request {
			cp.serveRequest(w, r, response.User, parts[1])
			return
		}
		if !cp.mayReadLog(r.Context(), response.User, parts[1], parts[3]) {
			http.Error(w, fmt.Sprintf("user %q may not get apps/log of %s in %s", response.User.GetName(), v1alpha1.Group, parts[1]), http.StatusForbidden)
			return
		}
		cp.serveAppLog(w, r, parts[1], parts[3])
	})
}

// mayReadLog tells whether a user may read what is known of an application; of all requests, if namespace and name are empty.
func (cp *ControlPlane) mayReadLog(ctx context.Context, who user.Info, namespace, name string) bool {
	decision, _, err := cp.authorizer.Authorize(ctx, &authorizer.AttributesRecord{
		User: who, Verb: "get", APIGroup: v1alpha1.Group, APIVersion: "v1alpha1", Resource: "apps", Subresource: "log",
		Namespace: namespace, Name: name, ResourceRequest: true,
	})
	return err == nil && decision == authorizer.DecisionAllow
}

// serveAppLog merges what the nodes have.
func (cp *ControlPlane) serveAppLog(w http.ResponseWriter, r *http.Request, namespace, app string) {
	query := url.Values{"namespace": {namespace}, "app": {app}}
	for _, name := range []string{"process", "since", "tail", "brief"} {
		if value := r.URL.Query().Get(name); value != "" {
			query.Set(name, value)
		}
	}
	tail, _ := strconv.Atoi(query.Get("tail"))
	bodies, err := cp.askNodes(r.Context(), "/gantry/logs?"+query.Encode())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	sources := make([]applog.Source, 0, len(bodies))
	for _, body := range bodies {
		sources = append(sources, applog.Decode(body))
	}
	if err := applog.Merge(r.Context(), sources, tail, func(line applog.Line) error { return applog.Encode(w, line) }); err != nil {
		cp.opts.Logger.Debug("sending an application's log", "namespace", namespace, "name", app, "error", err)
		panic(http.ErrAbortHandler) // who reads has to see that it is not whole
	}
}

// serveRequest tells what the gateways noted of a request. Who may not know of it is told that nobody knows.
func (cp *ControlPlane) serveRequest(w http.ResponseWriter, r *http.Request, who user.Info, id string) {
	ctx, cancel := context.WithTimeout(r.Context(), askTimeout)
	defer cancel()
	bodies, err := cp.askNodes(ctx, "/gantry/requests?"+url.Values{"id": {id}}.Encode())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	found := []edgegateway.Entry{}
	for _, body := range bodies {
		var some []edgegateway.Entry
		err := json.NewDecoder(body).Decode(&some)
		_ = body.Close()
		if err != nil {
			cp.opts.Logger.Debug("reading what a gateway noted", "error", err)
			continue
		}
		for _, e := range some {
			namespace, _, _ := strings.Cut(e.Service, "/")
			if cp.mayReadLog(r.Context(), who, namespace, e.Labels["app"]) {
				found = append(found, e)
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(found)
}

// askNodes asks every node that answers. The bodies are the caller's to close.
func (cp *ControlPlane) askNodes(ctx context.Context, path string) ([]io.ReadCloser, error) {
	var nodes corev1.NodeList
	if err := cp.admin.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	var mu sync.Mutex
	var bodies []io.ReadCloser
	var errs []error
	var group sync.WaitGroup
	for i := range nodes.Items {
		group.Go(func() {
			body, err := cp.askNode(ctx, &nodes.Items[i], path)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("asking node %s: %w", nodes.Items[i].Name, err))
				return
			}
			bodies = append(bodies, body)
		})
	}
	group.Wait()
	if len(bodies) == 0 && len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	for _, err := range errs { // the others' lines are worth something
		cp.opts.Logger.Debug("a node does not say what it knows", "error", err)
	}
	return bodies, nil
}

func (cp *ControlPlane) askNode(ctx context.Context, node *corev1.Node, path string) (io.ReadCloser, error) {
	address, ok := metrics.AddressOf(node)
	if !ok {
		return nil, errors.New("it has no address")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := cp.opts.AgentTransport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		_ = response.Body.Close()
		return nil, fmt.Errorf("it answers %s", response.Status)
	}
	return response.Body, nil
}

// gatewayText is a line of the access log for people.
func gatewayText(e *edgegateway.Entry) string {
	var b strings.Builder
	status := strconv.Itoa(e.Status)
	if e.Status == 0 {
		status = "no answer"
	}
	fmt.Fprintf(&b, "%s %s%s %s in %s", cmp.Or(e.Method, "?"), e.Host, e.Path, status, time.Duration(e.Seconds*float64(time.Second)).Round(100*time.Microsecond))
	if e.Held > 0 {
		fmt.Fprintf(&b, " (%s of it waiting)", time.Duration(e.Held*float64(time.Second)).Round(time.Millisecond))
	}
	fmt.Fprintf(&b, ", client %s, request %s", e.Client, e.RequestID)
	if e.Reason != "" {
		b.WriteString(", " + e.Reason)
		if e.Detail != "" {
			b.WriteString(": " + e.Detail)
		}
	}
	return b.String()
}

// onceEach joins lists and leaves out what was there before: a failed request is among the failures and in the log.
func onceEach(lists ...[]edgegateway.Entry) []edgegateway.Entry {
	out := []edgegateway.Entry{}
	for _, list := range lists {
		for _, e := range list {
			if !slices.ContainsFunc(out, func(have edgegateway.Entry) bool { return have.RequestID == e.RequestID && have.Time.Equal(e.Time) }) {
				out = append(out, e)
			}
		}
	}
	return out
}
