// Package metrics is what metrics.k8s.io answers: the CPU and memory that nodes and pods use, as
// kubectl top shows it and a HorizontalPodAutoscaler counts with it.
//
// Nothing is measured here. Each node's agent keeps its own rates; this package asks all of them
// when somebody asks it, at most once in Options.MaxAge, and keeps nothing else. A metrics-server
// that a user installs takes the API over by its APIService. Start at Source.
package metrics
