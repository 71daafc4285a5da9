// Package invariant stops the process when something that must hold does not.
//
// It is for mistakes in Gantry's own code, never for input: going on would write wrong state.
package invariant
