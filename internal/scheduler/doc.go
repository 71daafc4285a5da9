// Package scheduler chooses a node for each pending pod and binds it.
//
// The core is pure: State holds nodes and pods as flat arrays of numbers, kept up by
// events; it filters and scores in place, without a clock, I/O or an allocation per pod.
// Pods that ask the same of a node share a shape, which remembers what it knows of each
// node; those that are interchangeable share a template. What depends on other pods,
// affinity and spread, is read from views: sums for each domain of a label key that
// placing a pod keeps up. Scheduler is the shell: it feeds State from informers, orders
// the waiting pods, evicts others for them, and proposes bindings concurrently through
// the client. Plugins, weights, scores and messages are kube-scheduler 1.36's; package
// parity compares them.
//
// DynamicResources is left out: pods with resource claims wait. State is in state.go, pods.go and the files of the
// filters and scores; plan and view are how pods know of each other. Scheduler is in scheduler.go: queue.go says who is
// next, hints.go what wakes those that wait, preempt.go who is evicted, nominate.go and write.go what is told. profile.go
// reads the configuration. ADR 18 and 19 say why. Start at Scheduler.Run; State.Place is the heart.
package scheduler
