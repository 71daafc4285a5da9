// Package invariant stops the process when something that must hold does not.
//
// It is for mistakes in Gantry's own code, never for input: going on would write wrong state.
package invariant

import "fmt"

// Check panics with the formatted message unless cond holds.
func Check(cond bool, format string, args ...any) {
	if !cond {
		panic("invariant broken: " + fmt.Sprintf(format, args...))
	}
}
