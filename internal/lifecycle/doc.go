// Package lifecycle is how a Gantry process begins and ends.
//
// It takes the data dir's lock, checks the machine, keeps the node's identity, starts components
// in order and stops them in reverse, passes signals on, and detaches. It knows no component by
// name. Start at Supervise.
package lifecycle
