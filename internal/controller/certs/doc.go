// Package certs fills the Secrets that ask for a certificate (label gateway.gantry.dev/certificate,
// made by the gateway controller) and renews them at two thirds of their life.
//
// Public names and addresses get theirs by ACME (http-01, answered by the gateway from a Secret),
// if that is on; all others, and public ones until ACME has succeeded, from an authority of the
// cluster's own. plan.go decides and is pure. What keeps a certificate from being issued is said
// in an annotation of its Secret. Start at Controller.Run.
package certs
