// Package service makes the cluster's Services work on this node: cluster addresses, node
// ports, external and load balancer addresses, by one nftables table of flat maps.
//
// A connection costs two map lookups, whatever the number of services: its frontend's verdict
// map entry names a chain for the number of endpoints, and there the frontend and a random
// slot give the endpoint. Chains exist per number of endpoints, not per service.
//
// planService is the pure core: a Service and its EndpointSlices in, frontends with slots
// out. Proxy is the shell: it keeps the maps of the kernel equal to the plans and sends only
// differences, in one transaction for a burst of events. Start at Proxy.Run.
package service
