// Package controller holds what every controller of the control plane is made of: a
// queue of keys with workers (Loop), the interfaces they need from the outside, and the
// rules about owners that several of them share.
//
// A controller is level-triggered: an informer event only says "look at this key". Its
// deciding code is a pure plan function; the reconcile function that Loop calls reads
// through the client, asks the plan, and writes. Start at Loop.Run.
package controller
