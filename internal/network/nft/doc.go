// Package nft builds nftables rules for the packages that own a table: loads, compares and
// statements as expression lists, and the byte form of map keys.
//
// It decides nothing and talks to no kernel. Registers are 32 bits wide and counted from 0
// here; a concatenation lies in consecutive ones.
package nft
