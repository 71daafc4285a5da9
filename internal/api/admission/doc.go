// Package admission decides whether, and as what, a change may be stored.
//
// A Chain runs its plugins in upstream's order: first each may change the object, later,
// when the strategy has had its say, each may still refuse it. Plugins see internal types
// and read the cluster through a small Reader. Start at NewChain.
package admission
