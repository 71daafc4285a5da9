// Package admission decides whether, and as what, a change may be stored.
//
// A Chain runs upstream's plugins that are on by default, in upstream's order, and one that
// is not: OwnerReferencesPermissionEnforcement. First each may change the object, later, when
// the strategy has had its say, each may still refuse it. Plugins see internal types, or
// unstructured objects of custom resources, and read the cluster through package view.
//
// A plugin is asked only about the resources it knows, and built when it is first asked. What
// an administrator configures (webhooks, policies, quotas, limit ranges) costs an atomic load
// a request while there is none. Start at New; steps.go has the order.
package admission
