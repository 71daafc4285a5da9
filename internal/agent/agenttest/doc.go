// Package agenttest has a container runtime, an image store, a pod network and volumes that
// exist only in memory, for tests of the agent and for nodes that are simulated.
package agenttest
