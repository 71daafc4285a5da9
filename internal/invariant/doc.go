// Package invariant states what must hold whatever the input: a violation is a fault of the
// program, and going on would write wrong state.
package invariant
