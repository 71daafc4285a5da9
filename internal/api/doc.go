// Package api serves the Kubernetes API over HTTP.
//
// Server is an http.Handler and needs no listener. A request passes, in this order: panic and audit id, path to
// request information, limits, authentication, impersonation, authorization, and then the resource's verb in
// internal/api/registry, a discovery or OpenAPI document, a review, or a stream to a node's agent.
//
// Objects leave as the bytes that their store entry keeps: a GET copies them, a LIST puts them into one frame, a
// WATCH puts each into an event; nothing is encoded twice. What differs from client to client (tables, partial
// metadata, pretty printing) is made per request.
//
// Words of errors and the shape of every answer are upstream's. The package decides nothing about objects.
// Start at New and Server.ServeHTTP.
package api
