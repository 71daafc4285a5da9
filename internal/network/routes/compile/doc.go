// Package compile turns Ingress and Gateway API objects into the gateway's tables, and says what
// the objects' status should be.
//
// It is pure: Objects holds what there is, Compile looks at all of it. The feeder of each node uses
// the tables, the gateway controller the status, so the two never disagree. An endpoint's change
// needs no Compile: see Objects.Endpoints. The rules are those of the Gateway API's
// documentation of its types, version 1.6. Start at Compile.
package compile
