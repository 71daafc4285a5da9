// Package podnet gives pods their network: a namespace, a veth to the node's bridge, an
// address and a route, all by netlink; no plugin is executed and no process holds the
// namespace, a bind mount does.
//
// A pod's address is a /32 and everything it sends goes through the bridge's own address, so
// every packet crosses the node's IP stack and none is switched past its address translation
// and policy. That makes br_netfilter unnecessary; with it on, things work too.
//
// What was handed out is on disk before the kernel hears of it: one file a pod. After a kill
// at any point, Setup finishes what was begun, and Reconcile removes what nobody wants.
//
// The package never touches another owner's nftables tables, except in ApplyCure, which does
// what a person agreed to. Start at Network.Prepare and Network.Setup.
package podnet
