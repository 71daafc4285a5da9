// Package service publishes the addresses of a Service's pods: as EndpointSlices, as the
// older Endpoints object, and, for Endpoints made by hand, as mirrored EndpointSlices.
//
// What should be published is decided by pure functions: endpointsOf (pods to endpoints),
// planSlices (the fewest changes to the slices there are), packSubsets (the older form).
// Controller is the shell. Labels, names, limits and conditions are those of
// Kubernetes 1.36. Start at Controller.Run.
package service
