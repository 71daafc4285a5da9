package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// pod is what rules need of a pod that has addresses of its own.
type pod struct {
	UID    types.UID
	Key    types.NamespacedName
	Labels labels.Set
	Addrs  []netip.Addr
	Ports  []namedPort
	Local  bool // of this node
	// Covered says that the pod's network is this node's to know: the addresses are those it was given, and count until
	// uncover, whatever the API says.
	Covered bool
}

// namedPort is a container port with a name.
type namedPort struct {
	portSpec
	Number uint16
}

// state is what the rules are made from, and the rules. It is not safe for concurrent use.
type state struct {
	policies   map[string]map[string]*policyPlan // by namespace and name
	namespaces map[string]labels.Set
	pods       map[types.UID]*pod
	byKey      map[types.NamespacedName]types.UID // of what the API has
	local      map[netip.Addr]*pod                // who has an address of this node
	owners     map[netip.Addr][]*pod              // all of this node's pods that say so
	orphans    map[netip.Addr]bool                // had rules before a restart, and nobody has said whose they are

	sets     map[string]*memberSet
	chains   map[string][]rule
	verdicts [directions]map[netip.Addr]string // the chain of a pod, by address

	stale map[netip.Addr]bool // addresses whose chains must be looked for again
	// cuts says that something was taken away from connections that there may be.
	cuts bool
}

func newState() *state {
	s := &state{policies: map[string]map[string]*policyPlan{}, namespaces: map[string]labels.Set{}, pods: map[types.UID]*pod{},
		byKey: map[types.NamespacedName]types.UID{}, local: map[netip.Addr]*pod{}, owners: map[netip.Addr][]*pod{},
		orphans: map[netip.Addr]bool{}, sets: map[string]*memberSet{}, chains: map[string][]rule{}, stale: map[netip.Addr]bool{}}
	for d := range directions {
		s.verdicts[d] = map[netip.Addr]string{}
	}
	return s
}

// empty reports whether there is no policy.
func (s *state) empty() bool { return len(s.policies) == 0 }

// setPolicy takes over a policy, or takes it away with nil.
func (s *state) setPolicy(key types.NamespacedName, plan *policyPlan) {
	of := s.policies[key.Namespace]
	if plan == nil {
		if of[key.Name] == nil {
			return
		}
		delete(of, key.Name)
		if len(of) == 0 {
			delete(s.policies, key.Namespace)
		}
	} else {
		if of == nil {
			of = map[string]*policyPlan{}
			s.policies[key.Namespace] = of
		}
		of[key.Name] = plan
	}
	s.cuts = true
	for addr, p := range s.local {
		if p.Key.Namespace == key.Namespace {
			s.stale[addr] = true
		}
	}
}

// setNamespace takes over a namespace's labels, or takes it away with nil.
func (s *state) setNamespace(name string, of labels.Set) {
	old, known := s.namespaces[name]
	if known == (of != nil) && labels.Equals(old, of) {
		return
	}
	var members []*pod
	for _, p := range s.pods {
		if p.Key.Namespace == name {
			members = append(members, p)
		}
	}
	for _, p := range members {
		s.enroll(p, -1)
	}
	if of == nil {
		delete(s.namespaces, name)
	} else {
		s.namespaces[name] = of
	}
	for _, p := range members {
		s.enroll(p, 1)
	}
	s.cuts = s.cuts || len(members) > 0
}

// setPod takes over what the API says of a pod, or that it has it no longer with nil.
func (s *state) setPod(key types.NamespacedName, next *pod) {
	uid, known := s.byKey[key]
	if known && (next == nil || next.UID != uid) {
		delete(s.byKey, key)
		if old := s.pods[uid]; old != nil && !old.Covered {
			s.remove(old)
		}
	}
	if next == nil {
		return
	}
	s.byKey[key] = next.UID
	old := s.pods[next.UID]
	if old != nil && old.Covered {
		next.Covered, next.Local, next.Addrs = true, true, old.Addrs
	}
	s.put(old, next)
}

// cover takes over a pod that this node gives addresses to.
func (s *state) cover(p *pod) {
	p.Local, p.Covered = true, true
	s.put(s.pods[p.UID], p)
}

// uncover forgets what cover said: the pod has no addresses any more.
func (s *state) uncover(uid types.UID) {
	old := s.pods[uid]
	if old == nil || !old.Covered {
		return
	}
	if s.byKey[old.Key] != uid {
		s.remove(old)
		return
	}
	// The API may go on to say that the pod has the address; who gets it next must not suffer.
	next := *old
	next.Addrs = nil
	s.put(old, &next)
}

// put replaces what is known of a pod.
func (s *state) put(old, next *pod) {
	if old != nil {
		if old.same(next) {
			return
		}
		s.cuts = s.cuts || !labels.Equals(old.Labels, next.Labels)
		s.remove(old)
	}
	s.pods[next.UID] = next
	s.enroll(next, 1)
	if next.Local {
		for _, addr := range next.Addrs {
			s.owners[addr] = append(s.owners[addr], next)
			s.settle(addr)
		}
	}
}

// remove forgets a pod, but not its name.
func (s *state) remove(old *pod) {
	delete(s.pods, old.UID)
	s.enroll(old, -1)
	if !old.Local {
		return
	}
	for _, addr := range old.Addrs {
		s.owners[addr] = slices.DeleteFunc(s.owners[addr], func(p *pod) bool { return p == old })
		s.settle(addr)
	}
}

// settle decides whose an address of this node is: the pod's that was given it last.
func (s *state) settle(addr netip.Addr) {
	s.stale[addr] = true
	list := s.owners[addr]
	if len(list) == 0 {
		delete(s.owners, addr)
		delete(s.local, addr)
		return
	}
	best := list[len(list)-1]
	for _, p := range slices.Backward(list) {
		if p.Covered {
			best = p
			break
		}
	}
	s.local[addr] = best
	delete(s.orphans, addr)
}

// orphan notes an address that had rules. A pod that was deleted while nobody looked may still run with it: nothing passes
// until the address is somebody's.
func (s *state) orphan(addr netip.Addr) {
	if s.local[addr] == nil {
		s.orphans[addr], s.stale[addr] = true, true
	}
}

func (p *pod) same(o *pod) bool {
	return p.Key == o.Key && p.Local == o.Local && p.Covered == o.Covered && slices.Equal(p.Addrs, o.Addrs) &&
		slices.Equal(p.Ports, o.Ports) && labels.Equals(p.Labels, o.Labels)
}

// enroll adds a pod to the sets it belongs to (by 1) or takes it out of them (by -1).
func (s *state) enroll(p *pod, by int32) {
	if len(p.Addrs) == 0 {
		return
	}
	for _, set := range s.sets {
		s.enrollIn(set, p, by)
	}
}

func (s *state) enrollIn(set *memberSet, p *pod, by int32) {
	switch spec := set.spec; {
	case spec.Pods != nil:
		if spec.Pods.matches(p, s.namespaces) {
			for _, addr := range p.Addrs {
				set.count(member{Addr: addr}, by)
			}
		}
	case spec.Port != nil:
		for _, port := range p.Ports {
			if port.portSpec == *spec.Port {
				for _, addr := range p.Addrs {
					set.count(member{addr, port.Proto, port.Number}, by)
				}
			}
		}
	}
}

// member is an element of a set of addresses, or of ports.
type member struct {
	Addr  netip.Addr
	Proto uint8
	Port  uint16
}

// memberSet is a set with how many pods are the reason for each member, and what the kernel was not told yet.
type memberSet struct {
	spec           setSpec
	members        map[member]int32
	added, removed map[member]bool
}

// count notes one reason more or less for a member.
func (m *memberSet) count(e member, by int32) {
	before := m.members[e]
	if before+by > 0 {
		m.members[e] = before + by
	} else {
		delete(m.members, e)
	}
	switch {
	case before == 0 && by > 0:
		if m.removed[e] {
			delete(m.removed, e)
		} else {
			put(&m.added, e)
		}
	case before > 0 && before+by <= 0:
		if m.added[e] {
			delete(m.added, e)
		} else {
			put(&m.removed, e)
		}
	}
}

func put(set *map[member]bool, e member) {
	if *set == nil {
		*set = map[member]bool{}
	}
	(*set)[e] = true
}

// change takes the kernel from one ruleset to the next, in one transaction.
type change struct {
	NewSets    map[string]setSpec
	Add        map[string][]member
	Remove     map[string][]member
	Chains     map[string][]rule // new ones and those that differ, in full
	NewChains  []string
	DropChains []string // those that lead to others first
	DropSets   map[string]setSpec
	Verdicts   [directions]map[netip.Addr]verdictChange
	Cover      []netip.Addr // addresses that get a chain and had none
	Uncover    []netip.Addr
	// Cuts says that connections may be there that are not allowed any more.
	Cuts bool
}

// verdictChange is a pod's chain in the kernel and the one it shall have; empty is none.
type verdictChange struct{ Old, New string }

func (c *change) empty() bool {
	return len(c.NewSets)+len(c.Add)+len(c.Remove)+len(c.Chains)+len(c.DropChains)+len(c.DropSets)+
		len(c.Verdicts[ingress])+len(c.Verdicts[egress]) == 0
}

// settleAll brings the rules up to what is known and returns what is new to the kernel.
func (s *state) settleAll() change {
	c := change{NewSets: map[string]setSpec{}, Add: map[string][]member{}, Remove: map[string][]member{}, Chains: map[string][]rule{},
		DropSets: map[string]setSpec{}, Cuts: s.cuts}
	s.cuts = false
	profiles := s.settleVerdicts(&c)
	if len(profiles) > 0 || len(c.Verdicts[ingress])+len(c.Verdicts[egress]) > 0 {
		s.settleChains(&c, profiles)
	}
	for name, set := range s.sets {
		if _, fresh := c.NewSets[name]; fresh {
			continue
		}
		c.take(name, set)
	}
	return c
}

// take moves what the kernel does not know of a set into the change.
func (c *change) take(name string, set *memberSet) {
	for e := range set.added {
		c.Add[name] = append(c.Add[name], e)
	}
	for e := range set.removed {
		c.Remove[name] = append(c.Remove[name], e)
	}
	set.added, set.removed = nil, nil
}

// settleVerdicts finds the chains of addresses that are stale. It returns the profiles that have come up.
func (s *state) settleVerdicts(c *change) map[string][]rule {
	profiles := map[string][]rule{}
	for addr := range s.stale {
		covered := s.covered(addr)
		for d := range directions {
			old := s.verdicts[d][addr]
			name, rules := "", []rule(nil)
			if p := s.local[addr]; p != nil {
				name, rules = s.profile(d, p)
			} else if s.orphans[addr] {
				name, rules = d.String()+"-orphan", []rule{{Drop: true}}
			}
			if rules != nil {
				profiles[name] = rules
			}
			if name == old {
				continue
			}
			if c.Verdicts[d] == nil {
				c.Verdicts[d] = map[netip.Addr]verdictChange{}
			}
			c.Verdicts[d][addr] = verdictChange{old, name}
			if name == "" {
				delete(s.verdicts[d], addr)
			} else {
				s.verdicts[d][addr] = name
			}
		}
		switch now := s.covered(addr); {
		case now && !covered:
			c.Cover = append(c.Cover, addr)
		case covered && !now:
			c.Uncover = append(c.Uncover, addr)
		}
	}
	clear(s.stale)
	return profiles
}

// covered reports whether the kernel has a chain for the address.
func (s *state) covered(addr netip.Addr) bool {
	return s.verdicts[ingress][addr] != "" || s.verdicts[egress][addr] != ""
}

// profile is the chain of all pods that the same policies select: jumps to each, then the end. Without a policy it is none.
func (s *state) profile(d direction, p *pod) (name string, rules []rule) {
	var list []*policyPlan
	for _, plan := range s.policies[p.Key.Namespace] {
		if plan.Applies[d] && plan.Selects.Matches(p.Labels) {
			list = append(list, plan)
		}
	}
	if len(list) == 0 {
		return "", nil
	}
	slices.SortFunc(list, func(a, b *policyPlan) int { return cmp.Compare(a.Key.Name, b.Key.Name) })
	var text strings.Builder
	for _, plan := range list {
		rules = append(rules, rule{Jump: policyChain(d, plan.Key)})
		text.WriteString(plan.Key.String())
		text.WriteByte(0)
	}
	return d.String() + "-" + digest(text.String()), append(rules, rule{Drop: true})
}

// settleChains makes the chains and sets that the verdicts lead to, and drops those that nothing leads to.
func (s *state) settleChains(c *change, profiles map[string][]rule) {
	wanted, targets, used := map[string][]rule{}, map[string]bool{}, map[string]setSpec{}
	for d := range directions {
		for _, name := range s.verdicts[d] {
			if wanted[name] != nil {
				continue
			}
			wanted[name] = profiles[name]
			if wanted[name] == nil {
				wanted[name] = s.chains[name]
			}
			for _, r := range wanted[name] {
				targets[r.Jump] = true
			}
		}
	}
	for _, of := range s.policies {
		for _, plan := range of {
			for d := range directions {
				if name := policyChain(d, plan.Key); plan.Applies[d] && targets[name] {
					wanted[name] = plan.Rules[d]
					plan.setsOf(d, used)
				}
			}
		}
	}
	s.takeChains(c, wanted)
	s.takeSets(c, used)
}

// setsOf adds the sets that the rules of one direction name.
func (p *policyPlan) setsOf(d direction, used map[string]setSpec) {
	for _, r := range p.Rules[d] {
		for _, name := range [...]string{r.Peers, r.Port} {
			if name != "" {
				used[name] = p.Sets[name]
			}
		}
	}
}

func (s *state) takeChains(c *change, wanted map[string][]rule) {
	for name, rules := range wanted {
		have, known := s.chains[name]
		if !known {
			c.NewChains = append(c.NewChains, name)
		}
		if !known || !slices.Equal(have, rules) {
			c.Chains[name] = rules
		}
	}
	for name := range s.chains {
		if _, still := wanted[name]; !still {
			c.DropChains = append(c.DropChains, name)
		}
	}
	s.chains = wanted
}

func (s *state) takeSets(c *change, used map[string]setSpec) {
	for name, set := range s.sets {
		if _, still := used[name]; !still {
			c.DropSets[name] = set.spec
			delete(s.sets, name)
		}
	}
	for name, spec := range used {
		if s.sets[name] != nil {
			continue
		}
		set := &memberSet{spec: spec, members: map[member]int32{}}
		for _, p := range s.pods {
			s.enrollIn(set, p, 1)
		}
		s.sets[name], c.NewSets[name] = set, spec
		c.take(name, set)
	}
}

// whole is the change from nothing; what the kernel was told before does not count.
func (s *state) whole() change {
	s.settleAll()
	c := change{NewSets: map[string]setSpec{}, Add: map[string][]member{}, Chains: s.chains, Cuts: true}
	for name, set := range s.sets {
		c.NewSets[name] = set.spec
		for e := range set.members {
			c.Add[name] = append(c.Add[name], e)
		}
	}
	for name := range s.chains {
		c.NewChains = append(c.NewChains, name)
	}
	covered := map[netip.Addr]bool{}
	for d := range directions {
		c.Verdicts[d] = make(map[netip.Addr]verdictChange, len(s.verdicts[d]))
		for addr, name := range s.verdicts[d] {
			c.Verdicts[d][addr] = verdictChange{New: name}
			if !covered[addr] {
				covered[addr] = true
				c.Cover = append(c.Cover, addr)
			}
		}
	}
	return c
}

// allows reports whether a connection between pods, or with others, may be. What is of the node itself is not asked here.
func (s *state) allows(src, dst netip.Addr, proto uint8, port uint16) bool {
	if src == dst {
		return true
	}
	to := member{dst, proto, port}
	return s.chainAllows(s.verdicts[egress][src], dst, to) && s.chainAllows(s.verdicts[ingress][dst], src, to)
}

func (s *state) chainAllows(name string, other netip.Addr, to member) bool {
	if name == "" {
		return true
	}
	for _, r := range s.chains[name] {
		switch {
		case r.Drop:
			return false
		case r.Jump != "":
			if s.chainAllows(r.Jump, other, to) {
				return true
			}
		case r.Peers != "" && !s.holds(r.Peers, member{Addr: other}), r.Proto != 0 && r.Proto != to.Proto,
			r.First != 0 && (to.Port < r.First || to.Port > r.Last), r.Port != "" && !s.holds(r.Port, to):
		default:
			return true
		}
	}
	return false
}

func (s *state) holds(name string, e member) bool {
	set := s.sets[name]
	if set.spec.Ranges == nil {
		return set.members[e] > 0
	}
	return slices.ContainsFunc(set.spec.Ranges, func(r addrRange) bool { return !e.Addr.Less(r.First) && !r.Last.Less(e.Addr) })
}
