// Package addon runs the databases and caches that applications own, from the definitions in package pack.
//
// objects is pure: it says what an addon consists of. Controller is the shell: it reads, asks, writes, and reports in
// App.status.addons. The data outlives its addon: a volume is only ever deleted by who asks for that, or with its
// application. An addon also stays while the release that serves has it, so that a deploy that fails takes nothing away.
//
// It needs nothing but a client of the API and events of kinds. Start at Controller.reconcile.
package addon
