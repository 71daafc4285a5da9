// Package managedfields says who owns which field of an object after a write. It gives the
// result of apimachinery's field manager, byte for byte, by less work.
//
// Upstream turns both objects into generic values, compares them, and decodes and encodes
// every entry anew. Here a plan made once per Go type (plan.go) compares the typed objects
// directly (walk.go) and writes the paths that differ as a short byte stream. What follows
// depends on nothing but that stream and the entries there were, so it is remembered
// (outcome.go): the pods of one template share one computation and one encoded entry. A write
// that only changes what its writer owns already moves no field, which is seen in the encoded
// entries (query.go). All else structured-merge-diff's own set algebra computes.
//
// Whatever is unusual is refused, and the caller asks upstream's manager instead: entries of
// another version, a reset, entries that do not decode, more updaters than upstream keeps.
// So correctness never needs a rare case to be copied here. Start at View.Update.
//
// Of server-side applies View.Apply makes the usual one (apply.go): the manager applies the
// fields that it owns already, all of them are there, and nobody else owns what changes. Then
// no field is added, pruned or moved, and the values are written into a copy of the object.
package managedfields
