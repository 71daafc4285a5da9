// Package render turns an application into the objects of Kubernetes that run it. It is pure: no clock, no API. The
// controller of applications writes what it returns, and `gantry eject` prints it.
//
// It decides no numbers: how many pods there are, which release each process runs and where the application is
// reached come in Input. Start at Objects.
package render
