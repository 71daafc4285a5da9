// Package gateway looks after the objects of the way in: it installs the Gateway API's definitions,
// makes the class and the Gateway that every cluster has, writes the status of GatewayClasses,
// Gateways, routes and Ingresses, and asks for the certificates that they need by making empty
// Secrets, which the controller of certificates fills.
//
// What the status should be, and which hosts need certificates, package compile says: the same
// function of the same objects from which each node's feeder makes the gateway's tables.
// Start at Controller.Run.
package gateway
