package service

import (
	"bytes"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/network/nft"
)

// ipsDstNAT is the connection status bit of a translated destination
// (linux/netfilter/nf_conntrack_common.h, IPS_DST_NAT).
const ipsDstNAT = 1 << 5

// originalAt loads the frontend that the client connected to.
func originalAt(i int) []expr.Any {
	return nft.Rule(nft.One(&expr.Ct{Key: expr.CtKeyDST, Register: nft.Reg(i)}), nft.LoadProto(i+1), originalPort(i+2))
}

func originalPort(i int) []expr.Any {
	return nft.One(&expr.Ct{Key: expr.CtKeyPROTODST, Register: nft.Reg(i)})
}

// addRememberChain adds the chain that notes which endpoint a client got, where the packet
// leaves, after the translation. The first one also fills the chain that leads to it, so that
// nobody pays for what no service asks for.
func (k *kernel) addRememberChain(conn *nftables.Conn, stay time.Duration) {
	add := func(chain string, parts ...[]expr.Any) {
		k.later = append(k.later, rule{chain, nft.Rule(parts...)})
	}
	if !k.chains["remember"] {
		k.chains["remember"] = true
		translated := binaryutil.NativeEndian.PutUint32(ipsDstNAT)
		add("remember", nft.One(&expr.Ct{Key: expr.CtKeySTATUS, Register: nft.Reg(0)}),
			nft.One(&expr.Bitwise{SourceRegister: nft.Reg(0), DestRegister: nft.Reg(0), Len: 4, Mask: translated, Xor: make([]byte, 4)}),
			nft.One(&expr.Cmp{Op: expr.CmpOpEq, Register: nft.Reg(0), Data: make([]byte, 4)}), nft.Verdict(expr.VerdictReturn, ""))
		add("remember", originalAt(0), nft.LookupVerdict(k.maps[mapRemember], 0))
		add("remember", nft.LoadProto(0), originalPort(1), nft.LookupVerdict(k.maps[mapRememberNodePort], 0))
	}
	name := rememberChain(stay)
	k.chains[name] = true
	conn.AddChain(&nftables.Chain{Table: k.table, Name: name})
	clients := k.maps[mapClients]
	add(name, nft.LoadSaddr(0), originalAt(1), nft.LoadDaddr(8), nft.LoadDport(9),
		nft.One(&expr.Dynset{SrcRegKey: nft.Reg(0), SrcRegData: nft.Reg(8), SetName: clients.Name, SetID: clients.ID,
			Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: stay}))
}

// appendRules sends rules in a transaction of its own, with the original address loaded by
// the key that says that it is IPv4. The library can only say "address", and the nft program
// of Debian 12 (1.0.6) aborts on listing a concatenation with an address of unknown length.
func appendRules(table *nftables.Table, rules []rule) error {
	if len(rules) == 0 {
		return nil
	}
	batch := []mdnetlink.Message{batchMark(unix.NFNL_MSG_BATCH_BEGIN)}
	for _, r := range rules {
		data, err := encodeRule(table, r)
		if err != nil {
			return err
		}
		batch = append(batch, mdnetlink.Message{
			Header: mdnetlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE,
				Flags: mdnetlink.Request | mdnetlink.Acknowledge | mdnetlink.Create | mdnetlink.Append},
			Data: append([]byte{byte(table.Family), unix.NFNETLINK_V0, 0, 0}, data...)})
	}
	batch = append(batch, batchMark(unix.NFNL_MSG_BATCH_END))
	conn, err := mdnetlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.SendMessages(batch); err != nil {
		return fmt.Errorf("sending rules: %w", err)
	}
	for range rules {
		if _, err := conn.Receive(); err != nil {
			return fmt.Errorf("adding rules: %w", err)
		}
	}
	return nil
}

func batchMark(kind mdnetlink.HeaderType) mdnetlink.Message {
	return mdnetlink.Message{Header: mdnetlink.Header{Type: kind, Flags: mdnetlink.Request},
		Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}}
}

func encodeRule(table *nftables.Table, r rule) ([]byte, error) {
	list := make([]mdnetlink.Attribute, len(r.exprs))
	for i, e := range r.exprs {
		data, err := expr.Marshal(byte(table.Family), e)
		if err != nil {
			return nil, fmt.Errorf("encoding a rule of chain %s: %w", r.chain, err)
		}
		if ct, ok := e.(*expr.Ct); ok && ct.Key == expr.CtKeyDST {
			data = bytes.Replace(data, ctKey(unix.NFT_CT_DST), ctKey(unix.NFT_CT_DST_IP), 1)
		}
		list[i] = mdnetlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: data}
	}
	nested, err := mdnetlink.MarshalAttributes(list)
	if err != nil {
		return nil, fmt.Errorf("encoding a rule of chain %s: %w", r.chain, err)
	}
	return mdnetlink.MarshalAttributes([]mdnetlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(table.Name + "\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte(r.chain + "\x00")},
		{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: nested},
	})
}

// ctKey is the attribute that names what a ct expression loads.
func ctKey(key byte) []byte { return []byte{8, 0, unix.NFTA_CT_KEY, 0, 0, 0, 0, key} }
