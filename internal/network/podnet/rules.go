package podnet

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/network/nft"
)

// TableName is the nftables table (family ip) that this package owns.
const TableName = "gantry"

// tables holds the objects of the own nftables table by name; nothing here is kernel state.
type tables struct {
	table        *nftables.Table
	hostPorts    *nftables.Set // address . protocol . port : address . port
	hostPortsAny *nftables.Set // protocol . port : address . port
}

func newTables() tables {
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName}
	target := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	return tables{
		table: t,
		hostPorts: &nftables.Set{Table: t, ID: 1, Name: "hostports", IsMap: true, Concatenation: true, DataType: target,
			KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)},
		hostPortsAny: &nftables.Set{Table: t, ID: 2, Name: "hostports-any", IsMap: true, Concatenation: true, DataType: target,
			KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)},
	}
}

// replaceTable puts the whole own table in place in one transaction.
func replaceTable(conn *nftables.Conn, opts Options, records []record) error {
	t := newTables()
	conn.AddTable(t.table)
	conn.DelTable(t.table)
	conn.AddTable(t.table)
	for _, set := range []*nftables.Set{t.hostPorts, t.hostPortsAny} {
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("building table %s: %w", TableName, err)
		}
	}
	for _, r := range records {
		if err := t.addHostPorts(conn, r); err != nil {
			return err
		}
	}
	forward := conn.AddChain(&nftables.Chain{Name: "hostports", Table: t.table})
	add := func(chain *nftables.Chain, parts ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: nft.Rule(parts...)})
	}
	// A pod that reaches itself through the node needs another source address, or it would
	// answer itself directly; so pods are masqueraded here.
	add(forward, nft.SaddrIn(opts.PodCIDR, false), nft.SetMark())
	add(forward, nft.LoadDaddr(0), nft.LoadProto(1), nft.LoadDport(2), nft.LookupMap(t.hostPorts, 0, 0), nft.DNAT(0))
	add(forward, nft.LoadProto(0), nft.LoadDport(1), nft.LookupMap(t.hostPortsAny, 0, 0), nft.DNAT(0))
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		chain := conn.AddChain(&nftables.Chain{Name: name, Table: t.table, Type: nftables.ChainTypeNAT,
			Hooknum: hook, Priority: nftables.ChainPriorityNATDest})
		add(chain, nft.DaddrIn(loopback, true), nft.DaddrLocal(false), nft.Verdict(expr.VerdictJump, forward.Name))
		if name == "output" { // a host port of a loopback address, for the node's own programs
			add(chain, nft.DaddrIn(loopback, false), nft.LoadDaddr(0), nft.LoadProto(1), nft.LoadDport(2), nft.LookupMap(t.hostPorts, 0, 0), nft.DNAT(0))
		}
	}
	// The bridge routes loopback addresses for that (writeSettings); none may come from a pod.
	spoofed := conn.AddChain(&nftables.Chain{Name: "spoofed", Table: t.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	add(spoofed, nft.Iif(opts.Bridge, false), nft.DaddrIn(loopback, false), nft.Verdict(expr.VerdictDrop, ""))
	add(spoofed, nft.Iif(opts.Bridge, false), nft.SaddrIn(loopback, false), nft.Verdict(expr.VerdictDrop, ""))
	post := conn.AddChain(&nftables.Chain{Name: "postrouting", Table: t.table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	add(post, nft.Marked(), nft.ClearMark(), nft.Masquerade())
	add(post, nft.SaddrIn(loopback, false), nft.Oif(opts.Bridge, false), nft.Masquerade())
	add(post, nft.SaddrIn(opts.PodCIDR, false), nft.DaddrIn(opts.ClusterCIDR, true),
		nft.DaddrIn(netip.MustParsePrefix("224.0.0.0/4"), true), nft.Oif(opts.Bridge, true), nft.Masquerade())
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing nftables table %s: %w", TableName, err)
	}
	return nil
}

// hostPortElements returns the map elements of one pod: those for one address, those for all.
func hostPortElements(r record) (one, every []nftables.SetElement) {
	for _, p := range r.HostPorts {
		value := nft.Key(r.Addrs[0], p.PodPort)
		if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
			one = append(one, nftables.SetElement{Key: nft.Key(p.HostIP.Unmap(), protocolNumber(p.Protocol), p.HostPort), Val: value})
		} else {
			every = append(every, nftables.SetElement{Key: nft.Key(protocolNumber(p.Protocol), p.HostPort), Val: value})
		}
	}
	return one, every
}

func (t tables) addHostPorts(conn *nftables.Conn, r record) error {
	one, every := hostPortElements(r)
	return t.eachSet(one, every, conn.SetAddElements)
}

func (t tables) removeHostPorts(conn *nftables.Conn, r record) error {
	one, every := hostPortElements(r)
	return t.eachSet(one, every, conn.SetDeleteElements)
}

func (t tables) eachSet(one, every []nftables.SetElement, do func(*nftables.Set, []nftables.SetElement) error) error {
	if len(one) > 0 {
		if err := do(t.hostPorts, one); err != nil {
			return fmt.Errorf("encoding host ports: %w", err)
		}
	}
	if len(every) > 0 {
		if err := do(t.hostPortsAny, every); err != nil {
			return fmt.Errorf("encoding host ports: %w", err)
		}
	}
	return nil
}

// protocolNumber is the IP protocol of a Kubernetes protocol name.
func protocolNumber(name string) uint8 {
	switch name {
	case "UDP":
		return unix.IPPROTO_UDP
	case "SCTP":
		return unix.IPPROTO_SCTP
	}
	return unix.IPPROTO_TCP
}

// deleteTable removes the own table when it is there.
func deleteTable(conn *nftables.Conn) error {
	found, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("listing nftables tables: %w", err)
	}
	if !slices.ContainsFunc(found, func(t *nftables.Table) bool { return t.Name == TableName }) {
		return nil
	}
	conn.DelTable(newTables().table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("deleting nftables table %s: %w", TableName, err)
	}
	return nil
}
