// Package gateway is the HTTP data plane of a node: it accepts connections, finds the route
// and an endpoint for each request, and passes bytes on.
//
// It knows no Kubernetes: a Table and Deltas (table.go) say what to serve; Query and Event
// (ask.go) are what it tells. Plain HTTP/1.1 goes through a path of its own (fast.go) whose
// parser (parse.go) is exactly as strict as net/http's; everything else is net/http's.
// Start at Gateway.Run.
package gateway
