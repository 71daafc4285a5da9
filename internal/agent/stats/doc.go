// Package stats measures what the node, its pods and their containers use: CPU, memory,
// processes, network and disk, from cgroups (v1, its hybrid with v2, and v2 alone), /proc and
// the file systems.
//
// Reading is cheap and happens when somebody asks; the only thing that is done on its own is a
// look at the CPU counters every Options.Every, so that a rate is known at once. How much
// folders hold is found by walking them, with a budget, and remembered for a while. Nothing
// here decides anything. Start at Reader.
package stats
