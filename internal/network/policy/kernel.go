package policy

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/network/nft"
)

// TableName is the nftables table (family ip) that this package owns.
const TableName = "gantry-policy"

// guardName is the table that holds the same rules while the first is replaced. One transaction is not enough for that: a packet
// on its way between two hooks can meet each chain in the generation in which it is empty.
const guardName = TableName + "-guard"

// elementsPerMessage keeps a message below the 64 KiB that a netlink attribute can hold.
const elementsPerMessage = 400

// coveredSet holds each address that has a chain, twice: the pair that a pod's connection to itself has.
const coveredSet = "covered"

// Bits of a connection's state (linux/netfilter/nf_conntrack_common.h).
const (
	stateEstablished = 1 << 1
	stateRelated     = 1 << 2
	stateNew         = 1 << 3
)

// tcpFlagsOffset is where a TCP header has its flags; the two that matter are SYN and ACK (RFC 9293).
const (
	tcpFlagsOffset = 13
	tcpSYN         = 0x02
	tcpACK         = 0x10
)

// kernel writes the one table. It remembers only what it must to see that the table is whole.
type kernel struct {
	table *nftables.Table
	rules map[string]int // how many rules each chain has; nil: there is no table
}

func newKernel() *kernel { return &kernel{table: tableOf(TableName)} }

func tableOf(name string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: name}
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

// replace puts the whole table in place. What was there before holds until the new rules do.
func (k *kernel) replace(whole change) error {
	found, err := ownTables()
	if err != nil {
		return err
	}
	if slices.Contains(found, TableName) {
		guard := &kernel{table: tableOf(guardName)}
		if err := guard.rewrite(whole); err != nil {
			return err
		}
		found = append(found, guardName)
	}
	if err := k.rewrite(whole); err != nil {
		return err
	}
	return drop(slices.DeleteFunc(found, func(name string) bool { return name == TableName }))
}

// rewrite writes one table anew, in one transaction.
func (k *kernel) rewrite(whole change) error {
	conn := connect(whole.size())
	conn.AddTable(k.table)
	conn.DelTable(k.table)
	conn.AddTable(k.table)
	k.rules = map[string]int{}
	if err := k.addBase(conn); err != nil {
		return err
	}
	return k.write(conn, whole)
}

// ownTables returns the names of this package's tables that are there.
func ownTables() ([]string, error) {
	list, err := (&nftables.Conn{}).ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("listing nftables tables: %w", err)
	}
	var out []string
	for _, t := range list {
		if t.Name == TableName || t.Name == guardName {
			out = append(out, t.Name)
		}
	}
	return out, nil
}

// drop deletes tables.
func drop(names []string) error {
	if len(names) == 0 {
		return nil
	}
	conn := &nftables.Conn{}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		conn.DelTable(tableOf(name))
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("deleting nftables tables %v: %w", names, err)
	}
	return nil
}

// apply sends one change.
func (k *kernel) apply(c change) error { return k.write(connect(c.size()), c) }

// remove takes the table away if it is there.
func (k *kernel) remove() error {
	k.rules = nil
	found, err := ownTables()
	if err != nil {
		return err
	}
	return drop(found)
}

// coveredAddrs returns the addresses that the kernel has chains for, whoever wrote them. Without a table there are none.
func (k *kernel) coveredAddrs() []netip.Addr {
	list, err := (&nftables.Conn{}).GetSetElements(k.set(coveredSet))
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, e := range list {
		if len(e.Key) == 8 {
			out = append(out, netip.AddrFrom4([4]byte(e.Key[:4])))
		}
	}
	return out
}

// dropCount returns how many packets were dropped since the table was written.
func (k *kernel) dropCount(d direction) (uint64, error) {
	obj, err := (&nftables.Conn{}).GetObject(k.counter(d))
	if err != nil {
		return 0, fmt.Errorf("reading counter %s: %w", k.counter(d).Name, err)
	}
	switch o := obj.(type) {
	case *nftables.CounterObj:
		return o.Packets, nil
	case *nftables.NamedObj:
		if counter, ok := o.Obj.(*expr.Counter); ok {
			return counter.Packets, nil
		}
	}
	return 0, fmt.Errorf("reading counter %s: it is a %T", k.counter(d).Name, obj)
}

// whole reports whether the kernel still has each rule that was written.
func (k *kernel) whole() (bool, error) {
	if k.rules == nil {
		return true, nil
	}
	conn := &nftables.Conn{}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("listing nftables chains: %w", err)
	}
	found := 0
	for _, chain := range chains {
		if chain.Table.Name != k.table.Name {
			continue
		}
		found++
		rules, err := conn.GetRules(k.table, chain)
		if err != nil {
			return false, fmt.Errorf("listing the rules of chain %s: %w", chain.Name, err)
		}
		if len(rules) != k.rules[chain.Name] {
			return false, nil
		}
	}
	return found == len(k.rules), nil
}

func (c *change) size() int {
	n := len(c.Cover) + len(c.Uncover) + len(c.Chains)*8
	for d := range directions {
		n += 2 * len(c.Verdicts[d])
	}
	for _, list := range c.Add {
		n += len(list)
	}
	for _, list := range c.Remove {
		n += len(list)
	}
	for _, spec := range c.NewSets {
		n += 2 * len(spec.Ranges)
	}
	return n
}

// addBase adds the hooks. A connection passes both chains: what one lets through the other may still drop.
//
// They come after address translation to endpoints and after the chains that say at once that nobody has a service's address, and
// see packets that are forwarded only: what the node itself sends and gets is not policy's.
func (k *kernel) addBase(conn *nftables.Conn) error {
	for d := range directions {
		if err := conn.AddSet(k.verdictMap(d), nil); err != nil {
			return fmt.Errorf("building map %s: %w", verdictMapName(d), err)
		}
		conn.AddObj(k.counter(d))
	}
	if err := conn.AddSet(k.set(coveredSet), nil); err != nil {
		return fmt.Errorf("building set %s: %w", coveredSet, err)
	}
	covered := k.set(coveredSet)
	for d := range directions {
		priority := nftables.ChainPriority(1 + int32(d)) // the default, filter, is 0
		name := "forward-" + d.String()
		chain := conn.AddChain(&nftables.Chain{Name: name, Table: k.table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: &priority})
		self := nft.Rule(nft.LoadSaddr(0), nft.LoadDaddr(1), nft.Lookup(covered, 0), nft.Verdict(expr.VerdictAccept, ""))
		rules := [][]expr.Any{nft.Rule(inState(stateEstablished|stateRelated), nft.Verdict(expr.VerdictAccept, "")), self}
		other, of := nft.LoadDaddr, nft.LoadSaddr
		if d == ingress {
			other, of = of, other
		}
		// A connection that nobody tracks any more is not taken up in its middle: it may be one that was cut.
		for _, load := range []func(int) []expr.Any{of, other} {
			rules = append(rules, nft.Rule(inState(stateNew), notSYN(), load(0), load(1), nft.Lookup(covered, 0), k.dropped(d)))
		}
		rules = append(rules, nft.Rule(of(0), nft.LookupVerdict(k.verdictMap(d), 0)))
		for _, exprs := range rules {
			conn.AddRule(&nftables.Rule{Table: k.table, Chain: chain, Exprs: exprs})
		}
		k.rules[name] = len(rules)
	}
	return nil
}

// write adds the change to the connection's batch and sends it.
func (k *kernel) write(conn *nftables.Conn, c change) error {
	for name, spec := range c.NewSets {
		if err := k.addSet(conn, name, spec); err != nil {
			return err
		}
	}
	for _, step := range []struct {
		lists map[string][]member
		do    func(*nftables.Set, []nftables.SetElement) error
	}{{c.Remove, conn.SetDeleteElements}, {c.Add, conn.SetAddElements}} {
		for name, list := range step.lists {
			elements := make([]nftables.SetElement, len(list))
			for i, e := range list {
				elements[i] = e.element()
			}
			if err := inBatches(elements, func(batch []nftables.SetElement) error { return step.do(k.set(name), batch) }); err != nil {
				return fmt.Errorf("encoding set %s: %w", name, err)
			}
		}
	}
	k.writeChains(conn, c)
	if err := k.writeVerdicts(conn, c); err != nil {
		return err
	}
	k.dropUnused(conn, c)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing nftables table %s: %w", k.table.Name, err)
	}
	for name, rules := range c.Chains {
		k.rules[name] = len(rules)
	}
	for _, name := range c.DropChains {
		delete(k.rules, name)
	}
	return nil
}

func (k *kernel) writeChains(conn *nftables.Conn, c change) {
	for _, name := range c.NewChains {
		conn.AddChain(&nftables.Chain{Name: name, Table: k.table})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Chains)) {
		chain := &nftables.Chain{Name: name, Table: k.table}
		if !slices.Contains(c.NewChains, name) {
			conn.FlushChain(chain)
		}
		d := egress
		if name[:2] == ingress.String() {
			d = ingress
		}
		for _, r := range c.Chains[name] {
			conn.AddRule(&nftables.Rule{Table: k.table, Chain: chain, Exprs: k.exprs(d, r)})
		}
	}
}

func (k *kernel) writeVerdicts(conn *nftables.Conn, c change) error {
	for d := range directions {
		var remove, add []nftables.SetElement
		for addr, v := range c.Verdicts[d] {
			if v.Old != "" {
				remove = append(remove, nftables.SetElement{Key: nft.Key(addr)})
			}
			if v.New != "" {
				add = append(add, nftables.SetElement{Key: nft.Key(addr), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: v.New}})
			}
		}
		verdicts := k.verdictMap(d)
		err := inBatches(remove, func(batch []nftables.SetElement) error { return conn.SetDeleteElements(verdicts, batch) })
		if err == nil {
			err = inBatches(add, func(batch []nftables.SetElement) error { return conn.SetAddElements(verdicts, batch) })
		}
		if err != nil {
			return fmt.Errorf("encoding map %s: %w", verdicts.Name, err)
		}
	}
	pairs := func(addrs []netip.Addr) []nftables.SetElement {
		out := make([]nftables.SetElement, len(addrs))
		for i, addr := range addrs {
			out[i] = nftables.SetElement{Key: nft.Key(addr, addr)}
		}
		return out
	}
	covered := k.set(coveredSet)
	err := errors.Join(
		inBatches(pairs(c.Uncover), func(batch []nftables.SetElement) error { return conn.SetDeleteElements(covered, batch) }),
		inBatches(pairs(c.Cover), func(batch []nftables.SetElement) error { return conn.SetAddElements(covered, batch) }))
	if err != nil {
		return fmt.Errorf("encoding set %s: %w", coveredSet, err)
	}
	return nil
}

// dropUnused removes chains and sets that nothing leads to. Their rules go first: they hold each other.
func (k *kernel) dropUnused(conn *nftables.Conn, c change) {
	for _, name := range c.DropChains {
		conn.FlushChain(&nftables.Chain{Name: name, Table: k.table})
	}
	for _, name := range c.DropChains {
		conn.DelChain(&nftables.Chain{Name: name, Table: k.table})
	}
	for name := range c.DropSets {
		conn.DelSet(k.set(name))
	}
}

// addSet makes a set; one of ranges is made with what is in it.
func (k *kernel) addSet(conn *nftables.Conn, name string, spec setSpec) error {
	set := k.set(name)
	switch {
	case spec.Port != nil:
		set.Concatenation = true
		set.KeyType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	case spec.Pods != nil:
		set.KeyType = nftables.TypeIPAddr
		set.Comment = shorten(spec.Pods.String())
	default:
		set.KeyType, set.Interval = nftables.TypeIPAddr, true
	}
	if err := conn.AddSet(set, nil); err != nil {
		return fmt.Errorf("building set %s: %w", name, err)
	}
	var ends []nftables.SetElement
	for _, r := range spec.Ranges {
		ends = append(ends, nftables.SetElement{Key: nft.Key(r.First)})
		if next := r.Last.Next(); next.IsValid() {
			ends = append(ends, nftables.SetElement{Key: nft.Key(next), IntervalEnd: true})
		}
	}
	if err := inBatches(ends, func(batch []nftables.SetElement) error { return conn.SetAddElements(set, batch) }); err != nil {
		return fmt.Errorf("building set %s: %w", name, err)
	}
	return nil
}

// set is a set by its name, for rules and elements. coveredSet comes with its type.
func (k *kernel) set(name string) *nftables.Set {
	s := &nftables.Set{Table: k.table, Name: name}
	if name == coveredSet {
		s.Concatenation, s.KeyType = true, nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	}
	return s
}

func verdictMapName(d direction) string {
	if d == ingress {
		return "ingress"
	}
	return "egress"
}

// verdictMap leads from a pod's address to its chain.
func (k *kernel) verdictMap(d direction) *nftables.Set {
	return &nftables.Set{Table: k.table, Name: verdictMapName(d), IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict}
}

// counter counts what is dropped. It outlives the rules that use it.
func (k *kernel) counter(d direction) *nftables.NamedObj {
	return &nftables.NamedObj{Table: k.table, Name: "dropped-" + verdictMapName(d), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
}

// dropped counts a packet and drops it.
func (k *kernel) dropped(d direction) []expr.Any {
	return nft.Rule(nft.One(&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: k.counter(d).Name}), nft.Verdict(expr.VerdictDrop, ""))
}

// exprs renders a rule.
func (k *kernel) exprs(d direction, r rule) []expr.Any {
	switch {
	case r.Drop:
		return k.dropped(d)
	case r.Jump != "":
		return nft.Verdict(expr.VerdictJump, r.Jump)
	}
	var parts [][]expr.Any
	if r.Peers != "" {
		load := nft.LoadDaddr
		if d == ingress {
			load = nft.LoadSaddr
		}
		parts = append(parts, load(0), nft.Lookup(k.set(r.Peers), 0))
	}
	if r.Proto != 0 {
		parts = append(parts, nft.Proto(r.Proto, false))
	}
	if first, last := binaryutil.BigEndian.PutUint16(r.First), binaryutil.BigEndian.PutUint16(r.Last); r.First != 0 && r.First == r.Last {
		parts = append(parts, nft.LoadDport(0), nft.One(&expr.Cmp{Op: expr.CmpOpEq, Register: nft.Reg(0), Data: first}))
	} else if r.First != 0 {
		parts = append(parts, nft.LoadDport(0), nft.One(&expr.Range{Op: expr.CmpOpEq, Register: nft.Reg(0), FromData: first, ToData: last}))
	}
	if r.Port != "" {
		parts = append(parts, nft.LoadDaddr(0), nft.LoadProto(1), nft.LoadDport(2), nft.Lookup(k.set(r.Port), 0))
	}
	return nft.Rule(append(parts, nft.Verdict(expr.VerdictAccept, ""))...)
}

func (e member) element() nftables.SetElement {
	if e.Port == 0 {
		return nftables.SetElement{Key: nft.Key(e.Addr)}
	}
	return nftables.SetElement{Key: nft.Key(e.Addr, e.Proto, e.Port)}
}

// inState matches connections that are in one of the states.
func inState(bits uint32) []expr.Any {
	return nft.Rule(nft.One(&expr.Ct{Key: expr.CtKeySTATE, Register: nft.Reg(0)}),
		nft.One(&expr.Bitwise{SourceRegister: nft.Reg(0), DestRegister: nft.Reg(0), Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)}),
		nft.One(&expr.Cmp{Op: expr.CmpOpNeq, Register: nft.Reg(0), Data: make([]byte, 4)}))
}

// notSYN matches TCP packets other than the first of a connection.
func notSYN() []expr.Any {
	return nft.Rule(nft.Proto(nft.ProtocolTCP, false),
		nft.One(&expr.Payload{DestRegister: nft.Reg(0), Base: expr.PayloadBaseTransportHeader, Offset: tcpFlagsOffset, Len: 1}),
		nft.One(&expr.Bitwise{SourceRegister: nft.Reg(0), DestRegister: nft.Reg(0), Len: 1, Mask: []byte{tcpSYN | tcpACK}, Xor: []byte{0}}),
		nft.One(&expr.Cmp{Op: expr.CmpOpNeq, Register: nft.Reg(0), Data: []byte{tcpSYN}}))
}

// shorten keeps a comment within what the kernel takes.
func shorten(text string) string { return text[:min(len(text), commentBytes)] }

const commentBytes = 120

func inBatches(list []nftables.SetElement, do func([]nftables.SetElement) error) error {
	for batch := range slices.Chunk(list, elementsPerMessage) {
		if err := do(batch); err != nil {
			return err
		}
	}
	return nil
}
