// Package probe is what runs in the pods of "gantry network check": "serve NAME" answers by TCP
// and UDP with its name and the address it sees, "ask PLAN" tries everything in a plan and
// prints what came of it, both as JSON. It knows nothing of Kubernetes. Start at Main.
package probe
