// Package doctor examines a machine before a cluster is put on it, or when one is not well: what the kernel can do, cgroups, ports,
// disk, clock and memory.
//
// Read asks the machine and changes nothing that lasts; Judge says what the answers mean and what helps, purely. What other firewalls
// do to pods is package podnet's to find.
package doctor
