package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gantry.dev/gantry/internal/network/nft"
)

// model is a kernel that only remembers, and refuses what the real one would.
type model struct {
	Sets     map[string]map[member]bool
	Chains   map[string][]rule
	Verdicts [directions]map[netip.Addr]string
	Covered  map[netip.Addr]bool
}

func newModel() *model {
	m := &model{Sets: map[string]map[member]bool{}, Chains: map[string][]rule{}, Covered: map[netip.Addr]bool{}}
	for d := range directions {
		m.Verdicts[d] = map[netip.Addr]string{}
	}
	return m
}

// apply takes a change over; an error is what the kernel would refuse.
func (m *model) apply(c change) error {
	for name := range c.NewSets {
		if m.Sets[name] != nil {
			return fmt.Errorf("set %s is there", name)
		}
		m.Sets[name] = map[member]bool{}
	}
	for name, list := range c.Remove {
		for _, e := range list {
			if !m.Sets[name][e] {
				return fmt.Errorf("set %s has no %v", name, e)
			}
			delete(m.Sets[name], e)
		}
	}
	for name, list := range c.Add {
		for _, e := range list {
			if m.Sets[name] == nil || m.Sets[name][e] {
				return fmt.Errorf("set %s is missing or has %v", name, e)
			}
			m.Sets[name][e] = true
		}
	}
	for _, name := range c.NewChains {
		if _, there := m.Chains[name]; there {
			return fmt.Errorf("chain %s is there", name)
		}
		m.Chains[name] = nil
	}
	for name, rules := range c.Chains {
		if _, there := m.Chains[name]; !there {
			return fmt.Errorf("no chain %s", name)
		}
		m.Chains[name] = rules
	}
	for d := range directions {
		for addr, v := range c.Verdicts[d] {
			if m.Verdicts[d][addr] != v.Old {
				return fmt.Errorf("%v of %s is %q, not %q", d, addr, m.Verdicts[d][addr], v.Old)
			}
			delete(m.Verdicts[d], addr)
			if v.New != "" {
				m.Verdicts[d][addr] = v.New
			}
		}
	}
	for _, addr := range c.Uncover {
		if !m.Covered[addr] {
			return fmt.Errorf("%s is not covered", addr)
		}
		delete(m.Covered, addr)
	}
	for _, addr := range c.Cover {
		if m.Covered[addr] {
			return fmt.Errorf("%s is covered", addr)
		}
		m.Covered[addr] = true
	}
	for _, name := range c.DropChains {
		delete(m.Chains, name)
	}
	for name := range c.DropSets {
		delete(m.Sets, name)
	}
	return m.check()
}

// check reports what leads nowhere or has nothing leading to it.
func (m *model) check() error {
	chains, sets := map[string]bool{}, map[string]bool{}
	for d := range directions {
		for addr, name := range m.Verdicts[d] {
			chains[name] = true
			if !m.Covered[addr] {
				return fmt.Errorf("%s has a chain and is not covered", addr)
			}
		}
	}
	for addr := range m.Covered {
		if m.Verdicts[ingress][addr] == "" && m.Verdicts[egress][addr] == "" {
			return fmt.Errorf("%s is covered and has no chain", addr)
		}
	}
	for _, rules := range m.Chains {
		for _, r := range rules {
			chains[r.Jump], sets[r.Peers], sets[r.Port] = true, true, true
		}
	}
	delete(chains, "")
	delete(sets, "")
	if want, have := slices.Sorted(maps.Keys(chains)), slices.Sorted(maps.Keys(m.Chains)); !slices.Equal(want, have) {
		return fmt.Errorf("rules lead to chains %v, there are %v", want, have)
	}
	if want, have := slices.Sorted(maps.Keys(sets)), slices.Sorted(maps.Keys(m.Sets)); !slices.Equal(want, have) {
		return fmt.Errorf("rules name sets %v, there are %v", want, have)
	}
	return nil
}

// dice makes random clusters out of few names, so that things meet.
type dice struct{ *rand.Rand }

func (d dice) namespace() string { return fmt.Sprintf("ns%d", d.IntN(3)) }

func (d dice) labels() labels.Set {
	out := labels.Set{}
	for _, key := range []string{"app", "tier"} {
		if v := d.IntN(4); v > 0 {
			out[key] = fmt.Sprintf("v%d", v)
		}
	}
	return out
}

func (d dice) selector() *metav1.LabelSelector {
	if d.IntN(3) == 0 {
		return &metav1.LabelSelector{}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("v%d", 1+d.IntN(3))}}
}

func (d dice) pod() *pod {
	n := d.IntN(12)
	p := &pod{UID: types.UID(fmt.Sprintf("u%d-%d", n, d.IntN(2))), Key: types.NamespacedName{Namespace: fmt.Sprintf("ns%d", n%3), Name: fmt.Sprintf("p%d", n)},
		Labels: d.labels(), Local: n%2 == 0}
	if d.IntN(5) > 0 {
		p.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(n % 2), byte(1 + d.IntN(6))})}
	}
	if d.IntN(2) == 0 {
		p.Ports = []namedPort{{portSpec{"http", nft.ProtocolTCP}, uint16(8080 + d.IntN(2))}}
	}
	return p
}

func (d dice) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range d.IntN(3) {
		var peer networkingv1.NetworkPolicyPeer
		switch d.IntN(4) {
		case 0:
			peer.IPBlock = &networkingv1.IPBlock{CIDR: "10.0.0.0/16", Except: []string{fmt.Sprintf("10.0.%d.0/24", d.IntN(2))}}
		case 1:
			peer.PodSelector = d.selector()
		case 2:
			peer.NamespaceSelector = d.selector()
		case 3:
			peer.PodSelector, peer.NamespaceSelector = d.selector(), d.selector()
		}
		out = append(out, peer)
	}
	return out
}

func (d dice) ports() []networkingv1.NetworkPolicyPort {
	switch d.IntN(4) {
	case 0:
		return []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("http"))}}
	case 1:
		return []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(8080)), EndPort: new(int32(8090))}}
	}
	return nil
}

func (d dice) policy() *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: d.namespace(), Name: fmt.Sprintf("np%d", d.IntN(4))}}
	p.Spec.PodSelector = *d.selector()
	p.Spec.PolicyTypes = [][]networkingv1.PolicyType{nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}}[d.IntN(4)]
	for range d.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: d.peers(), Ports: d.ports()})
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: d.peers(), Ports: d.ports()})
	}
	return p
}

// step changes the state at random.
func (d dice) step(t *testing.T, s *state) {
	t.Helper()
	switch d.IntN(9) {
	case 8:
		s.orphan(netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + d.IntN(6))}))
	case 0:
		p := d.policy()
		plan, err := planPolicy(p)
		if err != nil {
			t.Fatal(err)
		}
		s.setPolicy(plan.Key, plan)
	case 1:
		s.setPolicy(types.NamespacedName{Namespace: d.namespace(), Name: fmt.Sprintf("np%d", d.IntN(4))}, nil)
	case 2:
		if d.IntN(4) == 0 {
			s.setNamespace(d.namespace(), nil)
		} else {
			s.setNamespace(d.namespace(), d.labels())
		}
	case 3:
		p := d.pod()
		p.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + d.IntN(6))})}
		s.cover(p)
	case 4:
		s.uncover(d.pod().UID)
	case 5:
		s.setPod(d.pod().Key, nil)
	default:
		p := d.pod()
		s.setPod(p.Key, p)
	}
}

// TestDeltas holds the sum of all changes against the rules written at once, over random histories.
func TestDeltas(t *testing.T) {
	for seed := range uint64(300) {
		d := dice{rand.New(rand.NewPCG(seed, 1))}
		s, kernel := newState(), newModel()
		for i := range 60 {
			for range 1 + d.IntN(3) {
				d.step(t, s)
			}
			if err := kernel.apply(s.settleAll()); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, i, err)
			}
		}
		whole := newModel()
		if err := whole.apply(s.whole()); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if diff := cmp.Diff(whole, kernel, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Fatalf("seed %d: the changes do not add up (-whole +changes):\n%s", seed, diff)
		}
		fresh := again(s)
		if diff := cmp.Diff(fresh, kernel, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Fatalf("seed %d: the rules depend on their history (-fresh +changes):\n%s", seed, diff)
		}
	}
}

// again builds the rules from what a state knows, without its history.
func again(s *state) *model {
	next := newState()
	for name, of := range s.namespaces {
		next.setNamespace(name, of)
	}
	// Of several pods that claim an address, the last one counts.
	for _, list := range s.owners {
		for _, p := range list {
			next.put(next.pods[p.UID], p)
		}
	}
	for _, p := range s.pods {
		next.put(next.pods[p.UID], p)
	}
	for _, of := range s.policies {
		for _, plan := range of {
			next.setPolicy(plan.Key, plan)
		}
	}
	for addr := range s.orphans {
		next.orphan(addr)
	}
	m := newModel()
	if err := m.apply(next.whole()); err != nil {
		panic(err)
	}
	return m
}
