package podnet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/network/nft"
)

// isolationTable is the nftables table (family ip) for what Isolate keeps apart.
const isolationTable = "gantry-isolated"

// dnsPort is where names are asked for.
const dnsPort = 53

// Isolate keeps what has the address away from this node, its pods and services, and from the link's own addresses, where
// clouds tell their machines secrets. The world beyond stays in reach, and the cluster's name server. An address that is
// not valid takes the isolation of all away.
func Isolate(ctx context.Context, opts Options, addr netip.Addr) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("isolating %s: %w", addr, err)
	}
	conn := &nftables.Conn{}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: isolationTable}
	found, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("listing nftables tables: %w", err)
	}
	if slices.ContainsFunc(found, func(t *nftables.Table) bool { return t.Name == isolationTable }) {
		conn.DelTable(table)
	} else if !addr.IsValid() {
		return nil
	}
	if addr.IsValid() {
		addIsolation(conn, table, opts, addr)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing nftables table %s: %w", isolationTable, err)
	}
	return nil
}

func addIsolation(conn *nftables.Conn, table *nftables.Table, opts Options, addr netip.Addr) {
	conn.AddTable(table)
	from := nft.SaddrIn(netip.PrefixFrom(addr, addr.BitLen()), false)
	input := conn.AddChain(&nftables.Chain{Name: "input", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	forward := conn.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	add := func(chain *nftables.Chain, parts ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: nft.Rule(parts...)})
	}
	if opts.ServiceCIDR.IsValid() {
		dns := DNSAddr(opts.ServiceCIDR)
		for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			add(input, from, nft.DaddrIn(netip.PrefixFrom(dns, dns.BitLen()), false), nft.Proto(protocol, false),
				nft.LoadDport(0), nft.One(&expr.Cmp{Op: expr.CmpOpEq, Register: nft.Reg(0), Data: binaryutil.BigEndian.PutUint16(dnsPort)}),
				nft.Verdict(expr.VerdictAccept, ""))
		}
		add(forward, from, nft.DaddrIn(opts.ServiceCIDR, false), nft.Verdict(expr.VerdictDrop, ""))
	}
	add(input, from, nft.Verdict(expr.VerdictDrop, ""))
	for _, prefix := range []netip.Prefix{opts.ClusterCIDR, netip.MustParsePrefix("169.254.0.0/16")} {
		if prefix.IsValid() {
			add(forward, from, nft.DaddrIn(prefix, false), nft.Verdict(expr.VerdictDrop, ""))
		}
	}
}
