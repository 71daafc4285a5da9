package podnet

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Feature is something of the kernel that the network needs.
type Feature struct {
	Name, Module string
	Err          error // nil: it works
}

// TryKernel tries what the network needs of the kernel, in a network namespace that is gone afterwards.
func TryKernel() ([]Feature, error) {
	type answer struct {
		features []Feature
		err      error
	}
	done := make(chan answer)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- answer{err: fmt.Errorf("creating a network namespace: %w", err)}
			return
		}
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			done <- answer{err: fmt.Errorf("opening netlink: %w", err)}
			return
		}
		defer nl.Close()
		done <- answer{features: []Feature{
			{Name: "bridges", Module: "bridge", Err: nl.LinkAdd(&netlink.Bridge{LinkAttrs: named("try-br")})},
			{Name: "pairs of links", Module: "veth", Err: nl.LinkAdd(&netlink.Veth{LinkAttrs: named("try-a"), PeerName: "try-b"})},
			{Name: "tunnels", Module: "vxlan", Err: nl.LinkAdd(&netlink.Vxlan{LinkAttrs: named("try-vx"), VxlanId: 1, Port: 8472})},
			{Name: "nftables", Module: "nf_tables", Err: tryRules(false)},
			{Name: "address translation", Module: "nft_masq", Err: tryRules(true)},
		}}
	}()
	got := <-done
	return got.features, got.err
}

func named(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return attrs
}

// tryRules writes a map and, if translate says so, a rule that translates addresses.
func tryRules(translate bool) error {
	conn := &nftables.Conn{}
	table := conn.AddTable(&nftables.Table{Name: "try", Family: nftables.TableFamilyIPv4})
	chain := &nftables.Chain{Name: "filter", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter}
	// The state of a connection is asked for in nearly every chain.
	rule := []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}
	if translate {
		chain = &nftables.Chain{Name: "nat", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}
		rule = []expr.Any{&expr.Masq{}}
	}
	conn.AddRule(&nftables.Rule{Table: table, Chain: conn.AddChain(chain), Exprs: rule})
	set := &nftables.Set{Table: table, Name: "map", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeIPAddr}
	return errors.Join(conn.AddSet(set, nil), conn.Flush())
}
