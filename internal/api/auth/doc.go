// Package auth answers the two questions that precede every request: who asks, and may they?
//
// Authenticator turns a client certificate or a bearer token into a user.Info; Authorizer decides by group
// system:masters, the node graph and RBAC, in that order, as upstream does. Both are fed from memory and answer in
// microseconds: verified credentials are cached (but what a token is bound to is looked up live each time), and
// roles are compiled into an index per subject when they change.
//
// What rules mean is upstream's: the escalation check, the bootstrap policy, the node graph and the review
// endpoints are upstream's packages, called as libraries; the compiled index is held against upstream's own
// authorizer by a differential fuzz test.
//
// The package never writes to the network and never talks to the store: objects come through a client.Reader and
// informers. Start at New, Authenticator.AuthenticateRequest and Authorizer.Authorize.
package auth
