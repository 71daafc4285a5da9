package api

import (
	"net/http"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"gantry.dev/gantry/internal/api/fairness"
)

// objectsPerSeat is how many objects a list may go through for one seat, and widestList how many seats it takes at most
// (apiserver, DefaultWorkEstimatorConfig).
const (
	objectsPerSeat = 100
	widestList     = 10
)

// takesSeat reports whether the request is one of those that only so many are served of at once. A watch takes a seat
// until it has begun.
func (q *query) takesSeat() bool {
	return !q.path.longRunning() || q.path.Verb == "watch"
}

// takeSeat waits until the request may be served. The code is 0, or that of the answer to one that may not.
func (s *Server) takeSeat(q *query) int {
	info := &q.path.RequestInfo
	request := fairness.Request{
		User: q.user, Verb: info.Verb, Path: info.Path, IsResource: info.IsResourceRequest, Group: info.APIGroup, Resource: info.Resource,
		Subresource: info.Subresource, Namespace: info.Namespace,
	}
	if info.IsResourceRequest && info.Name == "" && (info.Verb == "list" || info.Verb == "watch") {
		request.Width = s.width(q)
	}
	var err error
	q.seat, err = s.fairness.Acquire(q.r.Context(), &request)
	header := q.w.Header()
	flow, level := q.seat.UIDs()
	if flow != nil {
		header[fairness.SchemaHeader] = flow
	}
	if level != nil {
		header[fairness.LevelHeader] = level
	}
	if err == nil {
		return 0
	}
	s.metrics.dropped.WithLabelValues(metricVerb(q)).Inc()
	header.Set("Retry-After", "1")
	http.Error(q.w, "Too many requests, please try again later.", http.StatusTooManyRequests)
	return http.StatusTooManyRequests
}

// width is how many seats a list or watch takes: as many as the objects that it goes through are worth.
func (s *Server) width(q *query) int {
	ep := s.routes().endpoints[schema.GroupVersionResource{Group: q.path.APIGroup, Version: q.path.APIVersion, Resource: q.path.Resource}]
	if ep == nil {
		return 1
	}
	if q.path.Verb == "watch" && q.list.Revision != "" && q.list.Revision != "0" {
		return 1 // only what changed since
	}
	objects := ep.Count()
	if q.list.Limit > 0 && q.list.Fields == nil && q.list.Labels == nil {
		objects = min(objects, int(q.list.Limit))
	}
	return min(max(1, (objects+objectsPerSeat-1)/objectsPerSeat), widestList)
}
