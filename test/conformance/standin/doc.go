// Command standin is the programs that upstream's tests call in their pods and that busybox does
// not have, or has with other flags: curl, dig, getent, nc, and a shell that hands on variables
// whose names are no identifiers. It is the program whose name it is called by, and knows just the
// flags that upstream's tests use; an unknown one is an error. Start at main.
package main
