// Package apiservice keeps APIService objects: one for each group version that this server has, and on each the
// condition Available, with upstream's reasons.
//
// Built-in group versions are registered once at each start, so that an administrator may point one elsewhere;
// those of custom resources follow what is served. What an APIService of another server needs to be available is
// decided in planAvailable, and asked from that server by Options.Check.
//
// Start at Controller.Run and Controller.reconcile.
package apiservice
