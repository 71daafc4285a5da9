package podnet

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/network/nft"
)

// CheckFirewall returns the chains of others that would drop the traffic of pods on the
// bridge (default "gantry0"), or that of tunnels to other machines. It changes nothing.
func CheckFirewall(ctx context.Context, bridge string, tunnels ...Tunnel) ([]Finding, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("checking the firewall: %w", err)
	}
	chains, err := readChains()
	if err != nil {
		return nil, fmt.Errorf("checking the firewall: %w", err)
	}
	return planFindings(chains, cmp.Or(bridge, "gantry0"), tunnels...), nil
}

// ApplyCure does what the findings' Cure says: by the owner's own command where it keeps its
// rules itself (ufw, firewalld), else by inserting the rules.
func ApplyCure(ctx context.Context, findings []Finding) error {
	ran := map[string]bool{}
	for _, f := range findings {
		if len(f.insert) > 0 {
			if err := insertRules(f.insert); err != nil {
				return fmt.Errorf("curing chain %s of table %s: %w", f.Chain, f.Table, err)
			}
			continue
		}
		for _, command := range f.Cure {
			line := strings.Join(command, " ")
			if ran[line] {
				continue
			}
			ran[line] = true
			if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("running %s: %w: %s", line, err, bytes.TrimSpace(out))
			}
		}
	}
	return nil
}

func insertRules(list []insertion) error {
	conn := &nftables.Conn{}
	for _, i := range list {
		table := &nftables.Table{Name: i.table, Family: nftables.TableFamilyIPv4}
		if i.family == "inet" {
			table.Family = nftables.TableFamilyINet
		}
		match := nft.Iif(i.in, false)
		switch {
		case i.port != 0:
			match = nft.Rule(nft.Proto(unix.IPPROTO_UDP, false), nft.LoadDport(0),
				nft.One(&expr.Cmp{Op: expr.CmpOpEq, Register: nft.Reg(0), Data: binaryutil.BigEndian.PutUint16(i.port)}))
		case i.in == "":
			match = nft.Oif(i.out, false)
		}
		conn.InsertRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: i.chain, Table: table},
			Exprs: nft.Rule(match, nft.One(&expr.Counter{}), nft.Verdict(expr.VerdictAccept, ""))})
	}
	return conn.Flush()
}

// readChains lists the chains of all tables that see IPv4 packets.
func readChains() ([]Chain, error) {
	conn := &nftables.Conn{}
	var out []Chain
	for family, name := range map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyINet: "inet"} {
		list, err := conn.ListChainsOfTableFamily(family)
		if err != nil {
			return nil, fmt.Errorf("listing nftables chains: %w", err)
		}
		for _, c := range list {
			if isOwn(c.Table.Name) || c.Type == nftables.ChainTypeNAT || c.Type == nftables.ChainTypeRoute {
				continue
			}
			chain := Chain{Family: name, Table: c.Table.Name, Name: c.Name, Drops: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop}
			if c.Hooknum != nil {
				chain.Hook = map[nftables.ChainHook]string{*nftables.ChainHookForward: "forward", *nftables.ChainHookInput: "input"}[*c.Hooknum]
			}
			rules, err := conn.GetRules(c.Table, c)
			if err != nil {
				// The library cannot read every rule; what it cannot read accepts nothing for us.
				chain.Rules = append(chain.Rules, FirewallRule{Other: true})
			}
			for _, r := range rules {
				chain.Rules = append(chain.Rules, readRule(r.Exprs))
			}
			out = append(out, chain)
		}
	}
	slices.SortFunc(out, func(a, b Chain) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// readRule reduces a rule to its links and verdict; what is more than that sets Other.
func readRule(exprs []expr.Any) FirewallRule {
	var out FirewallRule
	var loaded expr.MetaKey
	have := false
	for _, e := range exprs {
		switch v := e.(type) {
		case *expr.Meta:
			loaded, have = v.Key, !v.SourceRegister
		case *expr.Cmp:
			name, _, _ := strings.Cut(string(v.Data), "\x00")
			switch {
			case have && loaded == expr.MetaKeyIIFNAME && v.Op == expr.CmpOpEq:
				out.In = name
			case have && loaded == expr.MetaKeyOIFNAME && v.Op == expr.CmpOpEq:
				out.Out = name
			default:
				out.Other = true
			}
			have = false
		case *expr.Counter, *expr.Log:
		case *expr.Match:
			out.Other = out.Other || v.Name != "comment"
		case *expr.Reject:
			out.Verdict = "reject"
		case *expr.Verdict:
			out.Verdict, out.Target = verdictName(v.Kind), v.Chain
		default:
			out.Other = true
		}
	}
	if out.Other = out.Other || have; out.Other {
		out.Ports, out.UDP = readUDP(exprs)
	}
	return out
}

func verdictName(kind expr.VerdictKind) string {
	switch kind {
	case expr.VerdictAccept:
		return "accept"
	case expr.VerdictDrop:
		return "drop"
	case expr.VerdictJump:
		return "jump"
	case expr.VerdictGoto:
		return "goto"
	case expr.VerdictReturn:
		return "return"
	}
	return ""
}
