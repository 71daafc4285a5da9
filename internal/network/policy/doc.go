// Package policy enforces NetworkPolicies on this node's pods, by one nftables table.
//
// A pod that policies select is an element of a map from its address to a chain, one map a direction; pods that the same
// policies select share the chain. It jumps to a chain of each policy and then drops. Who a rule lets through lies in sets:
// addresses of the pods that a selector means, shared by all rules that say the same, ranges for ipBlock, and
// address, protocol and port for ports by name. So a pod that comes or goes is a few elements, whatever the number of policies.
//
// planPolicy is the first half of the pure core: a NetworkPolicy in, rules and the sets they name out. State is the second:
// events in, changes for the kernel out. Enforcer is the shell: it feeds the state, writes its changes, one transaction each,
// and covers a new pod before its link is there. Without a policy in the cluster there is no table, and no pod is watched.
//
// What the API leaves open is decided in ADR 38. Start at Enforcer.Run and Enforcer.Cover.
package policy
