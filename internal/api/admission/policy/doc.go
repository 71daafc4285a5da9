// Package policy evaluates ValidatingAdmissionPolicies and MutatingAdmissionPolicies.
//
// Matching and evaluation are upstream's; the policies come from the store: one that was
// written, its binding and its parameters are effective for the next request. Nothing is built
// before there is a binding. Start at New; Checker fills the type checking of policies' status.
package policy
