// Package app keeps applications as their App objects say: it numbers releases, runs their commands, rolls them out,
// watches canaries, lets processes sleep and wakes them, and says how everything is.
//
// The deciding code is pure: nextRelease (is there something to release), advance (what becomes of the release that is
// on its way), judgePods (why it cannot become well), stepCanary, assign (which process runs which release) and
// render.Objects. Controller is the shell: it reads, asks them, and writes. All that has to outlive the process is in
// objects, so a controller that ends between any two writes goes on where it was.
//
// It needs nothing but a client of the API and events of kinds, so it also runs on other people's clusters; what they
// lack is said in conditions. Start at Controller.reconcile.
package app
