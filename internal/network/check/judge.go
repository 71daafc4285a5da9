package check

import (
	"fmt"
	"strings"

	"gantry.dev/gantry/internal/network/probe"
)

// What a pair's parts may be.
const (
	OK      = "ok"
	Broken  = "broken"
	Unasked = "-" // it could not be tried
)

// Pair is what came of one direction between two nodes.
type Pair struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Pods    string `json:"pods"`
	Service string `json:"service"`
	DNS     string `json:"dns"`
	Policy  string `json:"policy"`
	MTU     int    `json:"mtu"` // the largest packet that arrived; 0 where none did
}

// Problem is what is wrong, and what helps.
type Problem struct {
	What string `json:"what"`
	Cure string `json:"cure"`
}

// Report is the result of a check.
type Report struct {
	Pairs    []Pair    `json:"pairs"`
	Problems []Problem `json:"problems"`
}

// place is a node, with the pod there that answers.
type place struct {
	Node    string
	Link    string // annotation gantry.dev/link
	Addr    string // of the node
	PodIP   string
	Service string // address of the service that leads to that pod alone
	DNSName string // of that service
}

// questions is what is asked about one target before there is a policy; asked and answered in
// this order.
func questions(to place) []probe.Question {
	pod, closed := at(to.PodIP, probe.Port), at(to.PodIP, probe.Closed)
	return []probe.Question{
		{Kind: probe.TCP, At: pod, Want: to.Node}, {Kind: probe.UDP, At: pod, Want: to.Node}, {Kind: probe.TCP, At: closed, Want: to.Node},
		{Kind: probe.MTU, At: pod}, {Kind: probe.TCP, At: at(to.Service, servicePort), Want: to.Node},
		{Kind: probe.UDP, At: at(to.Service, servicePort), Want: to.Node}, {Kind: probe.Name, At: to.DNSName, Want: to.Service},
	}
}

// policyQuestions is what is asked once a policy has closed a port.
func policyQuestions(to place) []probe.Question {
	return []probe.Question{
		{Kind: probe.Denied, At: at(to.PodIP, probe.Closed)}, {Kind: probe.TCP, At: at(to.PodIP, probe.Port), Want: to.Node},
	}
}

func at(addr string, port int) string { return fmt.Sprintf("%s:%d", addr, port) }

// judge says what the answers about one pair mean. An asker that did not answer gives none.
func judge(from, to place, plain, policy []probe.Answer) (Pair, []Problem) {
	pair := Pair{From: from.Node, To: to.Node, Pods: Unasked, Service: Unasked, DNS: Unasked, Policy: Unasked}
	if len(plain) != len(questions(to)) {
		return pair, nil // why it did not answer is a problem of its own
	}
	var out []Problem
	say := func(what, cure string) { out = append(out, Problem{what, cure}) }
	tcp, udp, closed, mtu, svcTCP, svcUDP, name := plain[0], plain[1], plain[2], plain[3], plain[4], plain[5], plain[6]
	pair.MTU = mtu.MTU
	if pair.Pods = verdict(tcp, udp, closed); pair.Pods == Broken {
		say(fmt.Sprintf("pods on %s do not reach pods on %s: %s", from.Node, to.Node, reasons(tcp, udp, closed)), podCure(from, to))
		return pair, out // all else goes by the same way
	}
	if from.Node != to.Node && tcp.Peer != tcp.Own {
		pair.Pods = Broken
		say(fmt.Sprintf("pods on %s are seen on %s as %s, want %s: something on the way translates addresses", from.Node, to.Node, tcp.Peer, tcp.Own),
			"take the cluster's pod range out of the rules that masquerade, on both machines")
	}
	if !mtu.OK {
		say(fmt.Sprintf("from %s to %s: %s", from.Node, to.Node, mtu.Error),
			fmt.Sprintf("let ICMP \"fragmentation needed\" pass between %s and %s, or lower the MTU of the links that have these addresses by %d", from.Addr, to.Addr, max(mtu.Said-mtu.MTU, 0)))
	}
	if pair.Service = verdict(svcTCP, svcUDP); pair.Service == Broken {
		say(fmt.Sprintf("a service does not lead from %s to its pod on %s: %s", from.Node, to.Node, reasons(svcTCP, svcUDP)),
			fmt.Sprintf("on %s: gantry doctor; the table gantry-services of nftables must be there (nft list table ip gantry-services)", from.Node))
	}
	if pair.DNS = verdict(name); pair.DNS == Broken {
		say(fmt.Sprintf("names are not answered to pods on %s: %s", from.Node, name.Error),
			fmt.Sprintf("on %s: see log/edge.log in the data dir; gantry-edge answers names there", from.Node))
	}
	if len(policy) != len(policyQuestions(to)) {
		return pair, out
	}
	if pair.Policy = verdict(policy...); pair.Policy == Broken {
		what := "a port that a NetworkPolicy closes is open"
		if policy[0].OK {
			what = "a port that a NetworkPolicy leaves open is closed"
		}
		say(fmt.Sprintf("%s, from %s to %s: %s", what, from.Node, to.Node, reasons(policy...)),
			fmt.Sprintf("on %s: see the node's log; the table gantry-policy of nftables must be there", to.Node))
	}
	return pair, out
}

func verdict(answers ...probe.Answer) string {
	for _, a := range answers {
		if !a.OK {
			return Broken
		}
	}
	return OK
}

// reasons joins what was wrong, each once.
func reasons(answers ...probe.Answer) string {
	var out []string
	seen := map[string]bool{}
	for _, a := range answers {
		if !a.OK && !seen[a.Error] {
			seen[a.Error] = true
			out = append(out, a.Error)
		}
	}
	return strings.Join(out, "; ")
}

// podCure is what helps where pods do not reach each other, by the way their packets take.
func podCure(from, to place) string {
	switch {
	case from.Node == to.Node:
		return fmt.Sprintf("on %s: gantry doctor", from.Node)
	case from.Link != "" && from.Link == to.Link:
		return fmt.Sprintf("on %s and %s: gantry doctor. If it finds nothing, the link %s drops addresses it did not give out (clouds call it a source check): "+
			"switch that off, or start both with --network-mode vxlan", from.Node, to.Node, from.Link)
	}
	return fmt.Sprintf("let UDP port 8472 pass from %s to %s and back; on both machines: gantry doctor", from.Addr, to.Addr)
}
