// Package access keeps who may use a cluster: users, which are people and CI jobs, and projects, which are namespaces.
//
// A user is a ServiceAccount in a namespace of its own, so that no pod of a project can ever run as one; what it may is said by
// bindings to the platform's roles, or to a role of one application. Everything is a client of the API with the caller's rights.
// Start at Access.AddUser.
package access
