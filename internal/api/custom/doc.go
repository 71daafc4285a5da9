// Package custom serves custom resources: it reads CustomResourceDefinitions, keeps their
// conditions, and gives the registry the kinds that they define.
//
// What a schema means (pruning, defaults, validation, CEL rules, conversion, printer columns) comes
// from apiextensions-apiserver's packages. They are dear to prepare, so each is made by the first
// request that needs it: a definition that nobody uses costs little more than its own object.
// Start at Manager.Run; kind.go turns a definition into what the registry serves.
package custom
