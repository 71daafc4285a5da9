// Package quota keeps the status of ResourceQuotas: their limits, and what the objects that
// are there use of them.
//
// Admission adds what it lets in; what goes away, and what changes by itself, is found here by
// counting. A namespace without quotas costs nothing. Start at Controller.Run.
package quota
