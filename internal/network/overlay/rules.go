package overlay

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/network/nft"
)

// TableName is the nftables table (family ip) that this package owns.
const TableName = "gantry-overlay"

// Of TCP (RFC 9293): the byte of the header with the flags, two of them, and the option of the
// largest segment, whose value lies behind its kind and length.
const (
	tcpFlagsOffset = 13
	tcpSYN, tcpRST = 0x02, 0x04
	tcpOptionMSS   = 2
	tcpMSSOffset   = 2
)

// hasTable reports whether the own table is there.
func hasTable() (bool, error) {
	found, err := (&nftables.Conn{}).ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("listing nftables tables: %w", err)
	}
	return slices.ContainsFunc(found, func(t *nftables.Table) bool { return t.Name == TableName }), nil
}

// ruleset is what the rules depend on.
type ruleset struct {
	cluster, own netip.Prefix // all pods, those of this node
	senders      []netip.Addr // machines that may send by the tunnel, in the plan's order
}

func (r ruleset) equal(o ruleset) bool {
	return r.cluster == o.cluster && r.own == o.own && slices.Equal(r.senders, o.senders)
}

// replaceTable puts the whole own table in place in one transaction.
func (r ruleset) replaceTable() error {
	conn := &nftables.Conn{}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName}
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	add := func(chain *nftables.Chain, parts ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: nft.Rule(parts...)})
	}
	// What the node itself sends by a service's address, or somebody through a node port, may
	// have any source; its answer must come back by the tunnel.
	post := conn.AddChain(&nftables.Chain{Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	add(post, nft.Oif(TunnelLink, false), nft.SaddrIn(r.cluster, true), nft.Masquerade())
	// Both ends of a connection between machines learn the largest segment that fits; so they
	// need no ICMP, which some drop.
	mangle := conn.AddChain(&nftables.Chain{Name: "segments", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityMangle})
	add(mangle, nft.DaddrIn(r.cluster, false), nft.DaddrIn(r.own, true), nft.Proto(unix.IPPROTO_TCP, false), firstOfTCP(), clampMSS())
	// VXLAN believes everybody: who could send to the port would be among the pods.
	known := &nftables.Set{Table: table, ID: 1, Name: "machines", KeyType: nftables.TypeIPAddr}
	if err := r.addSenders(conn, known); err != nil {
		return err
	}
	in := conn.AddChain(&nftables.Chain{Name: "tunnel", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	add(in, nft.Proto(unix.IPPROTO_UDP, false), nft.LoadDport(0),
		nft.One(&expr.Cmp{Op: expr.CmpOpEq, Register: nft.Reg(0), Data: binaryutil.BigEndian.PutUint16(TunnelPort)}),
		nft.LoadSaddr(0), nft.One(&expr.Lookup{SourceRegister: nft.Reg(0), SetName: known.Name, SetID: known.ID, Invert: true}),
		nft.One(&expr.Counter{}), nft.Verdict(expr.VerdictDrop, ""))
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing nftables table %s: %w", TableName, err)
	}
	return nil
}

// sendersPerMessage keeps a message below what a netlink attribute can hold.
const sendersPerMessage = 1000

func (r ruleset) addSenders(conn *nftables.Conn, set *nftables.Set) error {
	if err := conn.AddSet(set, nil); err != nil {
		return fmt.Errorf("building table %s: %w", TableName, err)
	}
	unique := slices.Compact(slices.SortedFunc(slices.Values(r.senders), netip.Addr.Compare))
	for batch := range slices.Chunk(unique, sendersPerMessage) {
		elements := make([]nftables.SetElement, 0, len(batch))
		for _, addr := range batch {
			elements = append(elements, nftables.SetElement{Key: addr.AsSlice()})
		}
		if err := conn.SetAddElements(set, elements); err != nil {
			return fmt.Errorf("building table %s: %w", TableName, err)
		}
	}
	return nil
}

// firstOfTCP matches the two packets that open a connection.
func firstOfTCP() []expr.Any {
	return nft.Rule(
		nft.One(&expr.Payload{DestRegister: nft.Reg(0), Base: expr.PayloadBaseTransportHeader, Offset: tcpFlagsOffset, Len: 1}),
		nft.One(&expr.Bitwise{SourceRegister: nft.Reg(0), DestRegister: nft.Reg(0), Len: 1, Mask: []byte{tcpSYN | tcpRST}, Xor: []byte{0}}),
		nft.One(&expr.Cmp{Op: expr.CmpOpEq, Register: nft.Reg(0), Data: []byte{tcpSYN}}))
}

// clampMSS lowers the largest segment to what the routes of both directions carry. The kernel
// never raises it by that.
func clampMSS() []expr.Any {
	return nft.Rule(
		nft.One(&expr.Rt{Register: nft.Reg(0), Key: expr.RtTCPMSS}),
		nft.One(&expr.Byteorder{SourceRegister: nft.Reg(0), DestRegister: nft.Reg(0), Op: expr.ByteorderHton, Len: 2, Size: 2}),
		nft.One(&expr.Exthdr{SourceRegister: nft.Reg(0), Type: tcpOptionMSS, Offset: tcpMSSOffset, Len: 2, Op: expr.ExthdrOpTcpopt}))
}

// deleteTable removes the own table when it is there.
func deleteTable() error {
	if there, err := hasTable(); err != nil || !there {
		return err
	}
	conn := &nftables.Conn{}
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("deleting nftables table %s: %w", TableName, err)
	}
	return nil
}
