// Package deploy is what happens between "deploy this" and an address that answers: checks, upload, build, the App, and watching
// its release to the end. The command line and git push use it; all of it is a client of the API.
//
// Engine.Deploy does the whole and tells an event sink what it does; Engine.Follow watches a release that somebody else asked for.
// Errors are *Error, which says what to do and which exit code that is. Start at Engine.Deploy.
package deploy
