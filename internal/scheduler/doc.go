// Package scheduler chooses a node for each pending pod and binds it.
//
// The core is pure: State holds nodes and pods as flat arrays of numbers, kept up by
// events; it filters and scores in place, without a clock, I/O or an allocation per pod.
// Pods that ask for the same share a template, and a template remembers which nodes it
// may use, so a hundred replicas cost little more than one. Scheduler is the shell: it
// feeds State from informers, orders the waiting pods, and proposes bindings
// concurrently through the client. Words, weights and messages follow kube-scheduler 1.36.
//
// It never preempts, and does not know volumes, pod affinity or explicit topology
// spread constraints yet. Start at Scheduler.Run; State.Place is the heart.
package scheduler
