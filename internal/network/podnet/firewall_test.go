//go:build linux

package podnet

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"

	"gantry.dev/gantry/internal/network/nettest"
)

func TestPlanFindings(t *testing.T) {
	docker := []Chain{
		{Family: "ip", Table: "filter", Name: "FORWARD", Hook: "forward", Drops: true, Rules: []FirewallRule{
			{Verdict: "jump", Target: "DOCKER-USER"}, {Verdict: "jump", Target: "DOCKER-FORWARD"}}},
		{Family: "ip", Table: "filter", Name: "DOCKER-USER"},
		{Family: "ip", Table: "filter", Name: "DOCKER-FORWARD", Rules: []FirewallRule{{In: "docker0", Verdict: "accept"}, {Other: true, Verdict: "accept"}}},
	}
	cured := append([]Chain{}, docker...)
	cured[1].Rules = []FirewallRule{{In: "gantry0", Verdict: "accept"}, {Out: "gantry0", Verdict: "accept"}, {Verdict: "return"}}
	half := append([]Chain{}, docker...)
	half[1].Rules = []FirewallRule{{In: "gantry0", Verdict: "accept"}}
	firewalld := []Chain{
		{Family: "inet", Table: "firewalld", Name: "filter_FORWARD", Hook: "forward", Rules: []FirewallRule{{Other: true, Verdict: "accept"}, {Verdict: "reject"}}},
		{Family: "inet", Table: "firewalld", Name: "filter_FORWARD_IN_ZONES", Rules: []FirewallRule{{In: "eth0", Verdict: "goto", Target: "public"}}},
	}
	for name, tc := range map[string]struct {
		chains []Chain
		want   string
	}{
		"nothing":          {nil, ""},
		"accepting":        {[]Chain{{Family: "ip", Table: "filter", Name: "FORWARD", Hook: "forward"}}, ""},
		"own table":        {[]Chain{{Family: "ip", Table: TableName, Name: "x", Hook: "forward", Drops: true}}, ""},
		"docker":           {docker, "docker forward: iptables -I DOCKER-USER -i gantry0 -j ACCEPT; iptables -I DOCKER-USER -o gantry0 -j ACCEPT"},
		"docker, cured":    {cured, ""},
		"docker, half way": {half, "docker forward: iptables -I DOCKER-USER -o gantry0 -j ACCEPT"},
		"ufw": {[]Chain{{Family: "ip", Table: "filter", Name: "INPUT", Hook: "input", Drops: true}, {Family: "ip", Table: "filter", Name: "FORWARD", Hook: "forward", Drops: true},
			{Family: "ip", Table: "filter", Name: "ufw-user-input"}},
			"ufw input: ufw allow in on gantry0\nufw forward: ufw route allow in on gantry0; ufw route allow out on gantry0"},
		"firewalld":        {firewalld, "firewalld forward: firewall-cmd --permanent --zone=trusted --add-interface=gantry0; firewall-cmd --reload"},
		"firewalld, cured": {append([]Chain{{Family: "inet", Table: "firewalld", Name: "filter_FORWARD_OUT", Rules: []FirewallRule{{In: "gantry0", Verdict: "goto"}}}}, firewalld...), ""},
		"iptables": {[]Chain{{Family: "ip", Table: "filter", Name: "INPUT", Hook: "input", Drops: true, Rules: []FirewallRule{{In: "lo", Verdict: "accept"}}}},
			"iptables input: iptables -I INPUT -i gantry0 -j ACCEPT"},
		"nftables, last rule drops": {[]Chain{{Family: "inet", Table: "my", Name: "fwd", Hook: "forward", Rules: []FirewallRule{{Other: true, Verdict: "accept"}, {Verdict: "drop"}}}},
			"nftables forward: nft insert rule inet my fwd iifname gantry0 accept; nft insert rule inet my fwd oifname gantry0 accept"},
		"loop of chains": {[]Chain{{Family: "ip", Table: "x", Name: "a", Hook: "input", Drops: true, Rules: []FirewallRule{{Verdict: "jump", Target: "a"}}}},
			"nftables input: nft insert rule ip x a iifname gantry0 accept"},
	} {
		t.Run(name, func(t *testing.T) {
			var lines []string
			for _, f := range planFindings(tc.chains, "gantry0") {
				var commands []string
				for _, command := range f.Cure {
					commands = append(commands, strings.Join(command, " "))
				}
				lines = append(lines, fmt.Sprintf("%s %s: %s", f.Owner, f.Hook, strings.Join(commands, "; ")))
			}
			if diff := cmp.Diff(tc.want, strings.Join(lines, "\n")); diff != "" {
				t.Errorf("planFindings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanFindingsOfTunnels(t *testing.T) {
	input := func(rules ...FirewallRule) []Chain {
		return []Chain{{Family: "ip", Table: "filter", Name: "INPUT", Hook: "input", Drops: true,
			Rules: append([]FirewallRule{{In: "gantry0", Verdict: "accept"}, {In: "gantry-vx", Verdict: "accept"}}, rules...)}}
	}
	port := func(low, high uint16) FirewallRule {
		return FirewallRule{Other: true, UDP: true, Ports: [2]uint16{low, high}, Verdict: "accept"}
	}
	for name, tc := range map[string]struct {
		chains []Chain
		want   string
	}{
		"closed":             {input(), "iptables -I INPUT -p udp --dport 8472 -j ACCEPT"},
		"open":               {input(port(8472, 8472)), ""},
		"open by a range":    {input(port(8000, 9000)), ""},
		"another port":       {input(port(53, 53)), "iptables -I INPUT -p udp --dport 8472 -j ACCEPT"},
		"replies only":       {input(FirewallRule{Other: true, Verdict: "accept"}), "iptables -I INPUT -p udp --dport 8472 -j ACCEPT"},
		"loopback":           {input(FirewallRule{In: "lo", Verdict: "accept"}), "iptables -I INPUT -p udp --dport 8472 -j ACCEPT"},
		"trusted uplink":     {input(FirewallRule{In: "eth0", Verdict: "accept"}), ""},
		"in a chain of ufw":  {append(input(FirewallRule{Verdict: "jump", Target: "ufw-user-input"}), Chain{Family: "ip", Table: "filter", Name: "ufw-user-input", Rules: []FirewallRule{port(8472, 8472)}}), ""},
		"ufw":                {append(input(), Chain{Family: "ip", Table: "filter", Name: "ufw-user-input"}), "ufw allow 8472/udp"},
		"link of the tunnel": {[]Chain{{Family: "inet", Table: "my", Name: "in", Hook: "input", Drops: true, Rules: []FirewallRule{{In: "gantry0", Verdict: "accept"}, port(8472, 8472)}}}, "nft insert rule inet my in iifname gantry-vx accept"},
	} {
		t.Run(name, func(t *testing.T) {
			var commands []string
			for _, f := range planFindings(tc.chains, "gantry0", Tunnel{Link: "gantry-vx", Port: 8472}) {
				for _, command := range f.Cure {
					commands = append(commands, strings.Join(command, " "))
				}
			}
			if diff := cmp.Diff(tc.want, strings.Join(commands, "; ")); diff != "" {
				t.Errorf("planFindings (-want +got):\n%s", diff)
			}
		})
	}
}

// Real rules are read, and what the cure inserts is found again.
func TestTunnelPortCure(t *testing.T) {
	nettest.Need(t)
	conn := &nftables.Conn{}
	drop := nftables.ChainPolicyDrop
	filter := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "mine"})
	conn.AddChain(&nftables.Chain{Table: filter, Name: "in", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.DelTable(filter)
		if err := conn.Flush(); err != nil {
			t.Error(err)
		}
	})
	tunnel := Tunnel{Link: "gantry-vx", Port: 8472}
	findings, err := CheckFirewall(t.Context(), "", tunnel)
	if err != nil || len(findings) != 2 || findings[0].Port != 8472 && findings[1].Port != 8472 {
		t.Fatalf("CheckFirewall = %+v, %v; want a finding for the links and one for the port", findings, err)
	}
	if err := ApplyCure(t.Context(), findings); err != nil {
		t.Fatal(err)
	}
	if findings, err = CheckFirewall(t.Context(), "", tunnel); err != nil || len(findings) != 0 {
		t.Errorf("after the cure: %+v, %v; want nothing", findings, err)
	}
}

// A real firewall like Docker's stops the pods; the check names it and its cure helps.
func TestFirewallCure(t *testing.T) {
	nettest.Need(t)
	n := start(t, testOptions(t.TempDir()))
	conn := &nftables.Conn{}
	drop := nftables.ChainPolicyDrop
	filter := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	for name, hook := range map[string]*nftables.ChainHook{"FORWARD": nftables.ChainHookForward, "INPUT": nftables.ChainHookInput} {
		conn.AddChain(&nftables.Chain{Table: filter, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.DelTable(filter)
		if err := conn.Flush(); err != nil {
			t.Error(err)
		}
	})
	a, _ := setup(t, n, "a")
	b, addrB := setup(t, n, "b")
	nettest.ServeName(t, b, ":80", "b")
	nettest.ServeName(t, "", n.Gateway().String()+":81", "node")
	if _, _, err := nettest.Ask(t, a, "tcp4", addrB.String()+":80"); err == nil {
		t.Fatal("the firewall of this test drops nothing")
	}
	findings, err := CheckFirewall(t.Context(), "")
	if err != nil || len(findings) != 2 {
		t.Fatalf("CheckFirewall = %+v, %v; want two findings", findings, err)
	}
	if err := ApplyCure(t.Context(), findings); err != nil {
		t.Fatal(err)
	}
	ask(t, a, "tcp4", netip.AddrPortFrom(addrB, 80).String(), "b", "")
	ask(t, a, "tcp4", n.Gateway().String()+":81", "node", "")
	if findings, err = CheckFirewall(t.Context(), ""); err != nil || len(findings) != 0 {
		t.Errorf("after the cure: %+v, %v; want nothing", findings, err)
	}
}
