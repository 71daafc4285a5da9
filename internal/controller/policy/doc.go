// Package policy keeps the status of ValidatingAdmissionPolicies: what checking the types of
// their expressions has found.
package policy
