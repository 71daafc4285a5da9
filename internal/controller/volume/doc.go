// Package volume binds claims to volumes, provisions local ones, reclaims what was
// released, makes the claims of generic ephemeral volumes and acknowledges expansion.
//
// Binder is upstream's persistentvolume controller: planClaim and planVolume decide, it
// reads and writes. Claims of another provisioner get upstream's annotations and are left
// to it. Claims of gantry.dev/local get a volume object on the node that the scheduler has
// chosen; its folder is the node's business (package volume/local says how they agree).
// Ephemeral makes claims for pods, Expander acknowledges larger requests.
//
// No step depends on memory of an earlier one: names follow from UIDs, every write is
// taken up where a crash left it. Start at Binder.Run.
package volume
