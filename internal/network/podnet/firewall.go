package podnet

import (
	"slices"
	"strconv"
	"strings"
)

// Chain is one chain of somebody's firewall, as far as the check needs it.
type Chain struct {
	Family string // "ip" or "inet"
	Table  string
	Name   string
	Hook   string // "forward" or "input"; empty for chains that others jump to
	Drops  bool   // policy drop
	Rules  []FirewallRule
}

// FirewallRule is one rule. A rule with Other depends on more than the links.
type FirewallRule struct {
	In, Out string // link names, empty for any
	Other   bool
	UDP     bool // that more is at most UDP to some ports, Ports, or an address: a tunnel may be meant
	Ports   [2]uint16
	Verdict string // "accept", "drop", "reject", "jump", "goto", "return" or empty
	Target  string // of jump and goto
}

// Finding is a firewall chain that drops the pods' traffic.
type Finding struct {
	Family, Table, Chain string
	Hook                 string     // "forward": traffic of pods; "input": pods to this node
	Owner                string     // "docker", "ufw", "firewalld", "iptables" or "nftables"
	What                 string     // a sentence for people
	Cure                 [][]string // commands, in order
	Port                 uint16     // UDP port of a tunnel that is dropped; else 0
	insert               []insertion
}

// insertion is an accepting rule that ApplyCure puts first into a chain by netlink, with the
// same effect as the commands.
type insertion struct {
	family, table, chain string
	in, out              string
	port                 uint16 // of UDP, instead of links
}

// Tunnel is a link whose packets reach this machine by a UDP port.
type Tunnel struct {
	Link string
	Port uint16
}

// maxJumps bounds how deep chains are followed.
const maxJumps = 16

// planFindings decides which chains would drop the traffic of pods on the bridge. Other
// owners' accepts do not help against a drop: each base chain must let a packet pass.
func planFindings(chains []Chain, bridge string, tunnels ...Tunnel) []Finding {
	var out []Finding
	for i := range chains {
		c := &chains[i]
		if c.Hook != "forward" && c.Hook != "input" || isOwn(c.Table) || !ends(c) {
			continue
		}
		var missing []FirewallRule
		if !passes(chains, c, FirewallRule{In: bridge}, 0) {
			missing = append(missing, FirewallRule{In: bridge})
		}
		for _, tunnel := range tunnels {
			if c.Hook == "input" && !passes(chains, c, FirewallRule{In: tunnel.Link}, 0) {
				missing = append(missing, FirewallRule{In: tunnel.Link})
			}
			if c.Hook == "input" && !passesPort(chains, c, []string{"lo", bridge, tunnel.Link}, tunnel.Port, 0) {
				out = append(out, portFinding(chains, c, tunnel.Port))
			}
		}
		if c.Hook == "forward" && !passes(chains, c, FirewallRule{Out: bridge}, 0) {
			missing = append(missing, FirewallRule{Out: bridge})
		}
		if len(missing) > 0 && !(c.Table == "firewalld" && knowsLink(chains, c.Table, bridge)) {
			out = append(out, finding(chains, c, bridge, missing))
		}
	}
	return out
}

// isOwn reports whether the table is one of Gantry's: what it drops it means to.
func isOwn(table string) bool { return table == TableName || strings.HasPrefix(table, TableName+"-") }

// ends reports whether what no rule of the chain accepts is dropped.
func ends(c *Chain) bool {
	if c.Drops {
		return true
	}
	return slices.ContainsFunc(c.Rules, func(r FirewallRule) bool {
		return !r.Other && r.In == "" && r.Out == "" && (r.Verdict == "drop" || r.Verdict == "reject")
	})
}

// passes reports whether the chain accepts all packets of the link, whatever else they are.
func passes(chains []Chain, c *Chain, packet FirewallRule, depth int) bool {
	for _, r := range c.Rules {
		if r.Other || r.In != "" && r.In != packet.In || r.Out != "" && r.Out != packet.Out {
			continue
		}
		switch r.Verdict {
		case "accept":
			return true
		case "drop", "reject":
			return false
		case "jump", "goto":
			target := find(chains, c.Family, c.Table, r.Target)
			if target != nil && depth < maxJumps && passes(chains, target, packet, depth+1) {
				return true
			}
		}
	}
	return false
}

// passesPort reports whether the chain may accept UDP from other machines to the port: rules
// about addresses are taken to mean them, and any link but the inner ones may be theirs.
func passesPort(chains []Chain, c *Chain, inner []string, port uint16, depth int) bool {
	for _, r := range c.Rules {
		if slices.Contains(inner, r.In) || r.Out != "" || r.Other && (!r.UDP || port < r.Ports[0] || port > r.Ports[1]) {
			continue
		}
		switch r.Verdict {
		case "accept":
			return true
		case "drop", "reject":
			if !r.Other && r.In == "" {
				return false
			}
		case "jump", "goto":
			target := find(chains, c.Family, c.Table, r.Target)
			if target != nil && depth < maxJumps && passesPort(chains, target, inner, port, depth+1) {
				return true
			}
		}
	}
	return false
}

// portFinding describes a chain that drops a tunnel's packets.
func portFinding(chains []Chain, c *Chain, port uint16) Finding {
	f := Finding{Family: c.Family, Table: c.Table, Chain: c.Name, Hook: c.Hook, Owner: owner(chains, c), Port: port}
	number := strconv.Itoa(int(port))
	switch f.Owner {
	case "firewalld":
		f.Cure = [][]string{{"firewall-cmd", "--permanent", "--add-port=" + number + "/udp"}, {"firewall-cmd", "--reload"}}
	case "ufw":
		f.Cure = [][]string{{"ufw", "allow", number + "/udp"}}
	case "iptables":
		f.Cure = [][]string{{"iptables", "-I", c.Name, "-p", "udp", "--dport", number, "-j", "ACCEPT"}}
	default:
		f.Cure = [][]string{{"nft", "insert", "rule", c.Family, c.Table, c.Name, "udp", "dport", number, "accept"}}
	}
	if f.Owner == "iptables" || f.Owner == "nftables" {
		f.insert = []insertion{{family: c.Family, table: c.Table, chain: c.Name, port: port}}
	}
	f.What = "chain " + c.Name + " of table " + c.Family + " " + c.Table + " (" + f.Owner + ") drops UDP port " + number +
		", by which pods of other machines are reached"
	return f
}

// owner is who keeps the table of a chain.
func owner(chains []Chain, c *Chain) string {
	switch {
	case c.Table == "firewalld":
		return "firewalld"
	case slices.ContainsFunc(chains, func(o Chain) bool { return o.Table == c.Table && strings.HasPrefix(o.Name, "ufw-") }):
		return "ufw"
	case c.Table == "filter" && c.Name == strings.ToUpper(c.Hook):
		return "iptables"
	}
	return "nftables"
}

func find(chains []Chain, family, table, name string) *Chain {
	i := slices.IndexFunc(chains, func(c Chain) bool { return c.Family == family && c.Table == table && c.Name == name })
	if i < 0 {
		return nil
	}
	return &chains[i]
}

// knowsLink reports whether a rule of the table names the link: firewalld's zones do so for
// their links and decide elsewhere.
func knowsLink(chains []Chain, table, link string) bool {
	return slices.ContainsFunc(chains, func(c Chain) bool {
		return c.Table == table && slices.ContainsFunc(c.Rules, func(r FirewallRule) bool { return r.In == link || r.Out == link })
	})
}

// finding describes the chain and how its owner wants to be told.
func finding(chains []Chain, c *Chain, bridge string, missing []FirewallRule) Finding {
	f := Finding{Family: c.Family, Table: c.Table, Chain: c.Name, Hook: c.Hook, Owner: "nftables"}
	at := c
	switch {
	case c.Table == "firewalld":
		f.Owner = "firewalld"
		f.Cure = [][]string{{"firewall-cmd", "--permanent", "--zone=trusted", "--add-interface=" + bridge}, {"firewall-cmd", "--reload"}}
	case c.Hook == "forward" && find(chains, c.Family, c.Table, "DOCKER-USER") != nil:
		f.Owner, at = "docker", find(chains, c.Family, c.Table, "DOCKER-USER")
	case slices.ContainsFunc(chains, func(o Chain) bool { return o.Table == c.Table && strings.HasPrefix(o.Name, "ufw-") }):
		f.Owner = "ufw"
		for _, m := range missing {
			f.Cure = append(f.Cure, ufwCommand(c.Hook, m))
		}
	case c.Table == "filter" && c.Name == strings.ToUpper(c.Hook):
		f.Owner = "iptables"
	}
	if f.Cure == nil {
		for _, m := range missing {
			f.insert = append(f.insert, insertion{family: at.Family, table: at.Table, chain: at.Name, in: m.In, out: m.Out})
			f.Cure = append(f.Cure, insertCommand(f.Owner, at, m))
		}
	}
	whom := "traffic of pods"
	if c.Hook == "input" {
		whom = "traffic from pods to this node"
	}
	f.What = "chain " + c.Name + " of table " + c.Family + " " + c.Table + " (" + f.Owner + ") drops " + whom
	return f
}

func ufwCommand(hook string, m FirewallRule) []string {
	switch {
	case hook == "input":
		return []string{"ufw", "allow", "in", "on", m.In}
	case m.In != "":
		return []string{"ufw", "route", "allow", "in", "on", m.In}
	}
	return []string{"ufw", "route", "allow", "out", "on", m.Out}
}

func insertCommand(owner string, at *Chain, m FirewallRule) []string {
	flag, word, link := "-i", "iifname", m.In
	if link == "" {
		flag, word, link = "-o", "oifname", m.Out
	}
	if owner == "nftables" {
		return []string{"nft", "insert", "rule", at.Family, at.Table, at.Name, word, link, "accept"}
	}
	return []string{"iptables", "-I", at.Name, flag, link, "-j", "ACCEPT"}
}
