package service

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/network/nft"
)

// TableName is the nftables table (family ip) that this package owns.
const TableName = "gantry-services"

// elementsPerMessage keeps a message below the 64 KiB that a netlink attribute can hold.
const elementsPerMessage = 400

// clientsSize bounds the clients that are remembered; beyond it connections go anywhere.
const clientsSize = 1 << 17

// kernel is the one table as it was last written. It is not safe for concurrent use.
type kernel struct {
	cluster, services netip.Prefix
	table             *nftables.Table
	maps              map[mapName]*nftables.Set
	have              map[elementKey]elementValue
	chains            map[string]bool
	later             []rule // to be sent after the transaction that makes their chains
}

// rule is one rule of a chain.
type rule struct {
	chain string
	exprs []expr.Any
}

func newKernel(cluster, services netip.Prefix) *kernel {
	k := &kernel{cluster: cluster, services: services, table: &nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName}}
	ip, proto, port, slot := nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark
	at := nftables.MustConcatSetType
	to := at(ip, port)
	k.maps = map[mapName]*nftables.Set{}
	for _, s := range []nftables.Set{
		{Name: string(mapServices), KeyType: at(ip, proto, port), DataType: nftables.TypeVerdict},
		{Name: string(mapInsideServices), KeyType: at(ip, proto, port), DataType: nftables.TypeVerdict},
		{Name: string(mapNoEndpoints), KeyType: at(ip, proto, port), DataType: nftables.TypeVerdict},
		{Name: string(mapEndpoints), KeyType: at(ip, proto, port, slot), DataType: to},
		{Name: string(mapNodePorts), KeyType: at(proto, port), DataType: nftables.TypeVerdict},
		{Name: string(mapInsideNodePorts), KeyType: at(proto, port), DataType: nftables.TypeVerdict},
		{Name: string(mapNodePortsNone), KeyType: at(proto, port), DataType: nftables.TypeVerdict},
		{Name: string(mapNodePortTargets), KeyType: at(proto, port, slot), DataType: to},
		{Name: string(mapRemember), KeyType: at(ip, proto, port), DataType: nftables.TypeVerdict},
		{Name: string(mapRememberNodePort), KeyType: at(proto, port), DataType: nftables.TypeVerdict},
		{Name: string(mapClients), KeyType: at(ip, ip, proto, port), DataType: to, Dynamic: true, HasTimeout: true, Size: clientsSize},
		{Name: string(mapHairpin), KeyType: at(ip, ip)},
	} {
		s.Table, s.Concatenation, s.ID = k.table, true, uint32(len(k.maps)+1)
		s.IsMap = s.DataType.Name != ""
		k.maps[mapName(s.Name)] = &s
	}
	return k
}

// connect returns a connection whose buffers hold a transaction of that many elements.
func connect(elements int) *nftables.Conn {
	size := 1<<20 + elements*128
	conn, _ := nftables.New(nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		if err := c.SetWriteBuffer(size); err != nil {
			return err
		}
		return c.SetReadBuffer(4 << 20)
	})) // without AsLasting it cannot fail: nothing is opened yet
	return conn
}

// replace puts the whole table in place in one transaction. What the kernel remembers of
// clients is carried over.
func (k *kernel) replace(want map[elementKey]elementValue) error {
	clients := k.readClients(want)
	conn := connect(len(want) + len(clients))
	k.have, k.chains = nil, map[string]bool{}
	conn.AddTable(k.table)
	conn.DelTable(k.table)
	conn.AddTable(k.table)
	names := make([]mapName, 0, len(k.maps))
	for name := range k.maps {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := conn.AddSet(k.maps[name], nil); err != nil {
			return fmt.Errorf("building map %s: %w", name, err)
		}
	}
	if err := inBatches(clients, func(batch []nftables.SetElement) error { return conn.SetAddElements(k.maps[mapClients], batch) }); err != nil {
		return fmt.Errorf("building map %s: %w", mapClients, err)
	}
	k.addBaseChains(conn)
	if err := k.write(conn, change{Add: want}); err != nil {
		return err
	}
	k.have = make(map[elementKey]elementValue, len(want))
	for key, value := range want {
		k.have[key] = value
	}
	return nil
}

// apply sends one change.
func (k *kernel) apply(c change) error {
	if err := k.write(connect(len(c.Add)+len(c.Remove)), c); err != nil {
		return err
	}
	for _, key := range c.Remove {
		delete(k.have, key)
	}
	for key, value := range c.Add {
		k.have[key] = value
	}
	return nil
}

// write adds the change to the connection's batch and sends it. After an error k.chains may
// be ahead of the kernel; replace starts it anew.
func (k *kernel) write(conn *nftables.Conn, c change) error {
	for _, value := range c.Add {
		switch {
		case value.Stay > 0 && !k.chains[rememberChain(value.Stay)]:
			k.addRememberChain(conn, value.Stay)
		case value.Chain.Slots.Count > 0 && !k.chains[value.Chain.String()]:
			k.addChain(conn, value.Chain)
		}
	}
	remove, add := map[mapName][]nftables.SetElement{}, map[mapName][]nftables.SetElement{}
	for _, key := range c.Remove {
		remove[key.Map] = append(remove[key.Map], nftables.SetElement{Key: key.encode()})
	}
	for key, value := range c.Add {
		add[key.Map] = append(add[key.Map], key.element(value))
	}
	for name, list := range remove {
		if err := inBatches(list, func(batch []nftables.SetElement) error { return conn.SetDeleteElements(k.maps[name], batch) }); err != nil {
			return fmt.Errorf("encoding map %s: %w", name, err)
		}
	}
	for name, list := range add {
		if err := inBatches(list, func(batch []nftables.SetElement) error { return conn.SetAddElements(k.maps[name], batch) }); err != nil {
			return fmt.Errorf("encoding map %s: %w", name, err)
		}
	}
	err := conn.Flush()
	if err == nil {
		err = appendRules(k.table, k.later)
	}
	k.later = nil
	if err != nil {
		return fmt.Errorf("writing nftables table %s: %w", TableName, err)
	}
	return nil
}

func inBatches(list []nftables.SetElement, do func([]nftables.SetElement) error) error {
	for batch := range slices.Chunk(list, elementsPerMessage) {
		if err := do(batch); err != nil {
			return err
		}
	}
	return nil
}

// encode returns the key's bytes.
func (k elementKey) encode() []byte {
	var parts []any
	switch {
	case k.Map == mapHairpin:
		return nft.Key(k.At.IP, k.At.IP)
	case k.At.IP.IsValid():
		parts = append(parts, k.At.IP)
	}
	parts = append(parts, k.At.Proto, k.At.Port)
	if k.Slot >= 0 {
		parts = append(parts, uint32(k.Slot))
	}
	return nft.Key(parts...)
}

func (k elementKey) element(v elementValue) nftables.SetElement {
	e := nftables.SetElement{Key: k.encode()}
	switch {
	case v.Verdict == verdictDrop:
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictDrop}
	case v.Verdict != "":
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: v.Verdict}
	case v.Stay > 0:
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: rememberChain(v.Stay)}
	case v.Chain.Slots.Count > 0:
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: v.Chain.String()}
	case v.To.Addr.IsValid():
		e.Val = nft.Key(v.To.Addr, v.To.Port)
	}
	return e
}

// addBaseChains adds the hooks and what they share.
func (k *kernel) addBaseChains(conn *nftables.Conn) {
	chain := func(c nftables.Chain) *nftables.Chain {
		c.Table = k.table
		return conn.AddChain(&c)
	}
	add := func(c *nftables.Chain, parts ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: k.table, Chain: c, Exprs: nft.Rule(parts...)})
	}
	at := nft.Rule(nft.LoadDaddr(0), nft.LoadProto(1), nft.LoadDport(2))
	portAt := nft.Rule(nft.LoadProto(0), nft.LoadDport(1))
	// Node ports are not served on loopback: such a packet could not leave the node.
	onNode := nft.Rule(nft.DaddrIn(netip.MustParsePrefix("127.0.0.0/8"), true), nft.DaddrLocal(false))

	inside := chain(nftables.Chain{Name: "inside"})
	add(inside, at, nft.LookupVerdict(k.maps[mapInsideServices], 0))
	add(inside, onNode, portAt, nft.LookupVerdict(k.maps[mapInsideNodePorts], 0))
	dispatch := chain(nftables.Chain{Name: "dispatch"})
	add(dispatch, nft.SaddrIn(k.cluster, false), nft.Verdict(expr.VerdictJump, inside.Name))
	add(dispatch, nft.SaddrLocal(), nft.Verdict(expr.VerdictJump, inside.Name))
	add(dispatch, at, nft.LookupVerdict(k.maps[mapServices], 0))
	add(dispatch, onNode, portAt, nft.LookupVerdict(k.maps[mapNodePorts], 0))

	pre := chain(nftables.Chain{Name: "prerouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	// Who routes the service range to this node must get the reply from it, too.
	add(pre, nft.SaddrIn(k.cluster, true), nft.DaddrIn(k.services, false), nft.SetMark())
	add(pre, nft.Verdict(expr.VerdictJump, dispatch.Name))
	out := chain(nftables.Chain{Name: "output", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	add(out, nft.Verdict(expr.VerdictJump, dispatch.Name))
	post := chain(nftables.Chain{Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	remember := chain(nftables.Chain{Name: "remember"})
	add(post, nft.Verdict(expr.VerdictJump, remember.Name))
	in := chain(nftables.Chain{Name: "input", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityNATSource})
	add(in, nft.Verdict(expr.VerdictJump, remember.Name))
	add(post, nft.Marked(), nft.ClearMark(), nft.Masquerade())
	add(post, nft.LoadSaddr(0), nft.LoadDaddr(1), nft.Lookup(k.maps[mapHairpin], 0), nft.Masquerade())

	reject := chain(nftables.Chain{Name: verdictReject})
	add(reject, nft.Proto(nft.ProtocolTCP, false), nft.RejectReset())
	add(reject, nft.RejectPort())
	filter := chain(nftables.Chain{Name: "filter"})
	add(filter, at, nft.LookupVerdict(k.maps[mapNoEndpoints], 0))
	add(filter, onNode, portAt, nft.LookupVerdict(k.maps[mapNodePortsNone], 0))
	// Nobody has this service address or port: say so at once.
	add(filter, nft.DaddrIn(k.services, false), nft.DaddrLocal(true), nft.Verdict(expr.VerdictGoto, reject.Name))
	for name, hook := range map[string]*nftables.ChainHook{"filter-input": nftables.ChainHookInput,
		"filter-forward": nftables.ChainHookForward, "filter-output": nftables.ChainHookOutput} {
		c := chain(nftables.Chain{Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
		add(c, nft.Verdict(expr.VerdictJump, filter.Name))
	}
}

// addChain adds the chain that picks a slot.
func (k *kernel) addChain(conn *nftables.Conn, spec chainSpec) {
	k.chains[spec.String()] = true
	c := conn.AddChain(&nftables.Chain{Table: k.table, Name: spec.String()})
	add := func(parts ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: k.table, Chain: c, Exprs: nft.Rule(parts...)})
	}
	if spec.Masquerade {
		add(nft.SetMark())
	}
	if spec.Affinity {
		add(nft.LoadSaddr(0), nft.LoadDaddr(1), nft.LoadProto(2), nft.LoadDport(3), nft.LookupMap(k.maps[mapClients], 0, 0), nft.DNAT(0))
	}
	endpoints, key, width := k.maps[mapEndpoints], nft.Rule(nft.LoadDaddr(0), nft.LoadProto(1), nft.LoadDport(2)), 3
	if spec.NodePort {
		endpoints, key, width = k.maps[mapNodePortTargets], nft.Rule(nft.LoadProto(0), nft.LoadDport(1)), 2
	}
	slot := nft.One(&expr.Numgen{Register: nft.Reg(width), Modulus: uint32(spec.Slots.Count),
		Type: unix.NFT_NG_RANDOM, Offset: uint32(spec.Slots.Offset)})
	add(key, slot, nft.LookupMap(endpoints, 0, 0), nft.DNAT(0))
}

// clientOf takes an element of the map of clients apart.
func clientOf(e nftables.SetElement) (at frontend, to endpoint, ok bool) {
	if len(e.Key) != 16 || len(e.Val) != 8 {
		return at, to, false
	}
	at = frontend{toAddr(e.Key[4:8]), e.Key[8], binary.BigEndian.Uint16(e.Key[12:])}
	return at, endpoint{toAddr(e.Val[:4]), binary.BigEndian.Uint16(e.Val[4:])}, true
}

// matches reports whether the set has the flow, by its address or as one to a node port.
func matches(set map[staleFlow]bool, at frontend, to endpoint) bool {
	return set[staleFlow{at, to}] || set[staleFlow{frontend{Proto: at.Proto, Port: at.Port}, to}]
}

// readClients returns what the kernel remembers of clients whose endpoint is still wanted. A
// table that is not there remembers nothing.
func (k *kernel) readClients(want map[elementKey]elementValue) []nftables.SetElement {
	live := map[staleFlow]bool{}
	for key, value := range want {
		if key.Map == mapEndpoints || key.Map == mapNodePortTargets {
			live[staleFlow{key.At, value.To}] = true
		}
	}
	list, err := (&nftables.Conn{}).GetSetElements(k.maps[mapClients])
	if err != nil {
		return nil
	}
	var out []nftables.SetElement
	for _, e := range list {
		if at, to, ok := clientOf(e); ok && matches(live, at, to) && e.Expires > time.Second {
			out = append(out, nftables.SetElement{Key: e.Key, Val: e.Val, Timeout: e.Expires})
		}
	}
	return out
}

// forgetClients removes what the kernel remembers of clients of lost endpoints. An entry that
// expires meanwhile makes the removal fail as a whole; then it is tried once more.
func (k *kernel) forgetClients(lost map[staleFlow]bool) error {
	var err error
	for range 2 {
		conn := connect(clientsSize)
		list, listErr := conn.GetSetElements(k.maps[mapClients])
		if listErr != nil {
			return fmt.Errorf("listing map %s: %w", mapClients, listErr)
		}
		list = slices.DeleteFunc(list, func(e nftables.SetElement) bool {
			at, to, ok := clientOf(e)
			return !ok || !matches(lost, at, to)
		})
		err = inBatches(list, func(batch []nftables.SetElement) error { return conn.SetDeleteElements(k.maps[mapClients], batch) })
		if err == nil {
			err = conn.Flush()
		}
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("forgetting clients of removed endpoints: %w", err)
}

// forgetFlows removes tracked UDP connections.
func forgetFlows(stale map[staleFlow]bool) error {
	if len(stale) == 0 {
		return nil
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, flowFilter(stale)); err != nil {
		return fmt.Errorf("deleting tracked UDP connections of removed endpoints: %w", err)
	}
	return nil
}

// flowFilter matches tracked connections that are in the set.
type flowFilter map[staleFlow]bool

// MatchConntrackFlow reports whether the flow is stale.
func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != nft.ProtocolUDP {
		return false
	}
	at := frontend{IP: toAddr(flow.Forward.DstIP), Proto: nft.ProtocolUDP, Port: flow.Forward.DstPort}
	to := endpoint{toAddr(flow.Reverse.SrcIP), flow.Reverse.SrcPort}
	if to.Addr == at.IP && to.Port == at.Port {
		to = endpoint{}
	}
	return matches(f, at, to)
}

func toAddr(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

// deleteTable removes the own table when it is there.
func deleteTable() error {
	conn := &nftables.Conn{}
	found, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("listing nftables tables: %w", err)
	}
	if !slices.ContainsFunc(found, func(t *nftables.Table) bool { return t.Name == TableName }) {
		return nil
	}
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("deleting nftables table %s: %w", TableName, err)
	}
	return nil
}
