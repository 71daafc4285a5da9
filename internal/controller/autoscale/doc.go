// Package autoscale keeps HorizontalPodAutoscalers: it sets the replicas of what they name by what
// its pods use, or by metrics of other API servers.
//
// The algorithm, the conditions and the events are upstream's own controller
// (k8s.io/kubernetes/pkg/controller/podautoscaler), run here over the process's own API: lists of
// pods and autoscalers come from memory without a second copy of them, and everything else is a
// request without a socket. Why so is in ADR 22. Start at Controller.Run.
package autoscale
