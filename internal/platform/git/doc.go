// Package git takes pushes: what `git push` sends is checked out, deployed with the pusher's rights, and becomes the branch only if
// the release serves. What happens meanwhile is shown to the pusher.
//
// A repository is bare and holds nothing but packs and the branch. What is pushed waits in a folder of its own until the deploy is
// through, so that a refused or killed push leaves nothing. Who may push is decided by the caller. Start at Handler.Serve.
package git
