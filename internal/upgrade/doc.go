// Package upgrade changes the program that a machine runs, and changes it back when the new one does not work
// (docs/adr/0042-upgrade.md).
//
// Dir is what a data dir says of it. Choose decides which program a start runs, Begin puts a new one on trial, Confirm and
// GiveUp end the trial, and Watch is the process that gives up for a program that cannot.
package upgrade
