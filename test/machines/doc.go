// Package machines makes machines for tests out of network namespaces: each has lo, and eth0 on one link that all share.
// The link's bridge lies in a namespace of its own, which is the world outside too. Links are cut both ways or one way;
// nothing outside of the namespaces is touched. Start at [New].
package machines
