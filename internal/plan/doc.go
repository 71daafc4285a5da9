// Package plan answers what would happen and why, on a copy of a cluster in memory: Manifest applies documents to
// the copy, lets the real controllers and the real scheduler work on it, and says what has changed; Pod says how each
// node does for a pod.
//
// The copy is a control plane of its own in this process, over a store in a folder of memory, filled from the cluster's
// API with what the user may read. Nothing is written to the cluster: documents are sent to it as a dry run, so that its
// own admission, webhooks included, has its say. Agents are played: a pod that is given a node runs at once. Start at
// Manifest.
package plan
