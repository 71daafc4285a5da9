// Package robustness kills, pauses, cuts off and fills the disks of machines while clients use the API, and checks what
// they were told: the histories of all keys with porcupine for linearizability, the watch streams for order, completeness
// and gaps, the lists against the watches, a counter and an application's rows for lost and for invented writes.
//
// [Plan] makes a schedule of faults from a seed; the same seed makes the same schedule. Pure parts: plan.go, model.go,
// streams.go, counter.go, budget.go. What does: machine_linux.go, faults_linux.go, load.go, watch.go. TestRobustness runs for
// about a minute; DURATION=30m SEED=7 make it the nightly one. docs/adr/0043-robustness.md says what is and is not done.
package robustness
