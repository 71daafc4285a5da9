package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gantry.dev/gantry/internal/network/nft"
)

// direction is that of a connection, seen from the pod that a policy selects.
type direction int

const (
	ingress direction = iota
	egress
	directions // how many there are
)

// String returns the word that begins the names of chains.
func (d direction) String() string {
	if d == ingress {
		return "in"
	}
	return "out"
}

// rule is one rule of a chain. What is zero matches everything.
type rule struct {
	Peers       string // set that has the address of the other side
	Proto       uint8
	First, Last uint16 // destination ports
	Port        string // set that has destination . protocol . port
	Jump        string // chain to look at; empty: let through, or drop
	Drop        bool
}

// setSpec says what belongs into a set: pods' addresses, their named ports, or ranges.
type setSpec struct {
	Pods   *podsSpec
	Port   *portSpec
	Ranges []addrRange // ordered, not touching each other
}

// podsSpec selects pods.
type podsSpec struct {
	Namespace  string          // when Namespaces is nil
	Namespaces labels.Selector // of namespaces
	Pods       labels.Selector
}

// portSpec is a container port by name.
type portSpec struct {
	Name  string
	Proto uint8
}

// addrRange is a range of addresses, both ends in it.
type addrRange struct{ First, Last netip.Addr }

// policyPlan is what a NetworkPolicy means, before it is known which pods there are.
type policyPlan struct {
	Key      types.NamespacedName
	UID      types.UID
	Version  string // of the object that was read
	Revision uint64 // the number of it, for which is newer
	Selects  labels.Selector
	Applies  [directions]bool
	Rules    [directions][]rule
	Sets     map[string]setSpec
}

// planPolicy compiles one policy. A selector that cannot be read selects nothing in a rule; for the pods of the policy itself it
// is an error.
func planPolicy(p *networkingv1.NetworkPolicy) (*policyPlan, error) {
	plan := &policyPlan{Key: types.NamespacedName{Namespace: p.Namespace, Name: p.Name},
		UID: p.UID, Version: version(p), Sets: map[string]setSpec{}}
	plan.Revision, _ = strconv.ParseUint(p.ResourceVersion, 10, 64) // 0 when it is no number: older than all
	var err error
	if plan.Selects, err = metav1.LabelSelectorAsSelector(&p.Spec.PodSelector); err != nil {
		return nil, fmt.Errorf("reading the pod selector of network policy %s: %w", plan.Key, err)
	}
	plan.Applies[ingress] = len(p.Spec.PolicyTypes) == 0 || slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
	plan.Applies[egress] = len(p.Spec.PolicyTypes) == 0 && len(p.Spec.Egress) > 0 || slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	var errs []error
	if plan.Applies[ingress] {
		for _, r := range p.Spec.Ingress {
			errs = append(errs, plan.add(ingress, r.From, r.Ports))
		}
	}
	if plan.Applies[egress] {
		for _, r := range p.Spec.Egress {
			errs = append(errs, plan.add(egress, r.To, r.Ports))
		}
	}
	return plan, errors.Join(errs...)
}

// version tells one content of a policy from another.
func version(p *networkingv1.NetworkPolicy) string { return string(p.UID) + "/" + p.ResourceVersion }

// add renders one rule of the API: each of its sets of peers with each of its ports.
func (p *policyPlan) add(d direction, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) error {
	sides := []string{""}
	var err error
	if len(peers) > 0 {
		sides, err = p.peerSets(peers)
	}
	matches := []rule{{}}
	if len(ports) > 0 {
		matches = nil
	}
	for _, port := range ports {
		matches = append(matches, p.portMatch(port))
	}
	for _, side := range sides {
		for _, match := range matches {
			match.Peers = side
			if !slices.Contains(p.Rules[d], match) {
				p.Rules[d] = append(p.Rules[d], match)
			}
		}
	}
	return err
}

// peerSets returns the sets of a list of peers: one a selector, and one for all blocks.
func (p *policyPlan) peerSets(peers []networkingv1.NetworkPolicyPeer) (names []string, err error) {
	var ranges []addrRange
	var errs []error
	for _, peer := range peers {
		if peer.IPBlock != nil {
			block, err := blockRanges(peer.IPBlock)
			errs = append(errs, err)
			ranges = append(ranges, block...)
			continue
		}
		pods, err := p.podsOf(peer)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		names = append(names, p.use("peers-"+digest(pods.String()), setSpec{Pods: pods}))
	}
	if ranges = mergeRanges(ranges); len(ranges) > 0 {
		names = append(names, p.use("block-"+digest(fmt.Sprint(ranges)), setSpec{Ranges: ranges}))
	}
	return names, errors.Join(errs...)
}

func (p *policyPlan) podsOf(peer networkingv1.NetworkPolicyPeer) (*podsSpec, error) {
	out := &podsSpec{Namespace: p.Key.Namespace, Pods: labels.Everything()}
	var err error
	if peer.NamespaceSelector != nil {
		out.Namespace = ""
		if out.Namespaces, err = metav1.LabelSelectorAsSelector(peer.NamespaceSelector); err != nil {
			return nil, fmt.Errorf("reading a namespace selector of network policy %s: %w", p.Key, err)
		}
	}
	if peer.PodSelector != nil {
		if out.Pods, err = metav1.LabelSelectorAsSelector(peer.PodSelector); err != nil {
			return nil, fmt.Errorf("reading a pod selector of network policy %s: %w", p.Key, err)
		}
	}
	return out, nil
}

// use notes that the plan needs the set.
func (p *policyPlan) use(name string, spec setSpec) string {
	p.Sets[name] = spec
	return name
}

// portMatch is a rule with only the port's part.
func (p *policyPlan) portMatch(port networkingv1.NetworkPolicyPort) rule {
	proto := corev1.ProtocolTCP
	if port.Protocol != nil {
		proto = *port.Protocol
	}
	out := rule{Proto: nft.ProtocolNumber(proto)}
	switch {
	case port.Port == nil:
	case port.Port.Type == intstr.String:
		out.Port = p.use("port-"+strings.ToLower(string(proto))+"-"+port.Port.StrVal, setSpec{Port: &portSpec{port.Port.StrVal, out.Proto}})
	default:
		out.First = uint16(port.Port.IntVal)
		out.Last = out.First
		if port.EndPort != nil {
			out.Last = max(out.First, uint16(*port.EndPort))
		}
	}
	return out
}

// String says who is selected; equal texts mean equal sets.
func (s *podsSpec) String() string {
	if s.Namespaces == nil {
		return fmt.Sprintf("pods %q in %s", s.Pods, s.Namespace)
	}
	return fmt.Sprintf("pods %q in namespaces %q", s.Pods, s.Namespaces)
}

// matches reports whether a pod is selected.
func (s *podsSpec) matches(p *pod, namespaces map[string]labels.Set) bool {
	if s.Namespaces == nil {
		if p.Key.Namespace != s.Namespace {
			return false
		}
	} else if of, known := namespaces[p.Key.Namespace]; !known || !s.Namespaces.Matches(of) {
		return false
	}
	return s.Pods.Matches(p.Labels)
}

// blockRanges is an ipBlock without its exceptions. Blocks of IPv6 are empty: their set is another table's.
func blockRanges(block *networkingv1.IPBlock) ([]addrRange, error) {
	cidr, err := netip.ParsePrefix(block.CIDR)
	if err != nil {
		return nil, fmt.Errorf("reading an ipBlock: %w", err)
	}
	if !cidr.Addr().Is4() {
		return nil, nil
	}
	var without []addrRange
	for _, text := range block.Except {
		except, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("reading an exception of ipBlock %s: %w", cidr, err)
		}
		if except.Addr().Is4() {
			without = append(without, prefixRange(except))
		}
	}
	return subtract(prefixRange(cidr), mergeRanges(without)), nil
}

func prefixRange(prefix netip.Prefix) addrRange {
	prefix = prefix.Masked()
	last := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(last)*8; bit++ {
		last[bit/8] |= 1 << (7 - bit%8)
	}
	end, _ := netip.AddrFromSlice(last)
	return addrRange{prefix.Addr(), end}
}

// mergeRanges orders ranges and joins those that overlap or touch.
func mergeRanges(list []addrRange) []addrRange {
	slices.SortFunc(list, func(a, b addrRange) int { return cmp.Or(a.First.Compare(b.First), a.Last.Compare(b.Last)) })
	var out []addrRange
	for _, r := range list {
		if n := len(out); n > 0 {
			if next := out[n-1].Last.Next(); !next.IsValid() || r.First.Compare(next) <= 0 {
				if out[n-1].Last.Less(r.Last) {
					out[n-1].Last = r.Last
				}
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// subtract returns what of r is in none of the ranges, which are merged.
func subtract(r addrRange, without []addrRange) []addrRange {
	var out []addrRange
	for _, w := range without {
		if w.Last.Less(r.First) || r.Last.Less(w.First) {
			continue
		}
		if r.First.Less(w.First) {
			out = append(out, addrRange{r.First, w.First.Prev()})
		}
		if !w.Last.Less(r.Last) {
			return out
		}
		r.First = w.Last.Next()
	}
	return append(out, r)
}

// policyChain is the name of a policy's chain. The kernel allows 255 bytes.
func policyChain(d direction, key types.NamespacedName) string {
	name := d.String() + "/" + key.Namespace + "/" + key.Name
	if len(name) > 120 {
		name = name[:100] + "-" + digest(name)
	}
	return name
}

// digest is a short name for a long text.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}
