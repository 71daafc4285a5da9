package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// text renders a plan for people: what it applies to, its rules with their sets spelled out.
func (p *policyPlan) text() []string {
	spell := func(name string) string {
		spec, known := p.Sets[name]
		switch {
		case !known:
			return name
		case spec.Pods != nil:
			return spec.Pods.String()
		case spec.Port != nil:
			return fmt.Sprintf("port %q/%d", spec.Port.Name, spec.Port.Proto)
		}
		var list []string
		for _, r := range spec.Ranges {
			list = append(list, r.First.String()+"-"+r.Last.String())
		}
		return strings.Join(list, ",")
	}
	var out []string
	for d := range directions {
		if !p.Applies[d] {
			continue
		}
		out = append(out, d.String()+":")
		for _, r := range p.Rules[d] {
			line := "any"
			if r.Peers != "" {
				line = spell(r.Peers)
			}
			if r.Proto != 0 {
				line += fmt.Sprintf(" proto %d", r.Proto)
			}
			if r.First != 0 {
				line += fmt.Sprintf(" port %d-%d", r.First, r.Last)
			}
			if r.Port != "" {
				line += " " + spell(r.Port)
			}
			out = append(out, line)
		}
	}
	return out
}

func TestPlanPolicy(t *testing.T) {
	for name, tc := range map[string]struct {
		spec string
		want []string
	}{
		"nothing said: ingress":       {`{podSelector: {}}`, []string{"in:"}},
		"egress rules: both":          {`{egress: [{}]}`, []string{"in:", "out:", "any"}},
		"egress rules, ingress asked": {`{egress: [{}], policyTypes: [Ingress]}`, []string{"in:"}},
		"egress asked, ingress rules": {`{ingress: [{}], policyTypes: [Egress]}`, []string{"out:"}},
		"empty rule: everything":      {`{ingress: [{}]}`, []string{"in:", "any"}},
		"empty lists: everything":     {`{ingress: [{from: [], ports: []}]}`, []string{"in:", "any"}},
		"pods of the own namespace":   {`{ingress: [{from: [{podSelector: {}}]}]}`, []string{"in:", `pods "" in shop`}},
		"all pods":                    {`{ingress: [{from: [{namespaceSelector: {}}]}]}`, []string{"in:", `pods "" in namespaces ""`}},
		"pods in namespaces":          {`{ingress: [{from: [{namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchExpressions: [{key: c, operator: NotIn, values: [z, x]}]}}]}]}`, []string{"in:", `pods "c notin (x,z)" in namespaces "a=b"`}},
		"two peers":                   {`{ingress: [{from: [{namespaceSelector: {matchLabels: {a: b}}}, {podSelector: {matchLabels: {c: d}}}]}]}`, []string{"in:", `pods "" in namespaces "a=b"`, `pods "c=d" in shop`}},
		"each peer with each port":    {`{ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}], ports: [{port: 80}, {port: 53, protocol: UDP}]}]}`, []string{"in:", `pods "" in shop proto 6 port 80-80`, `pods "" in shop proto 17 port 53-53`, `pods "" in namespaces "" proto 6 port 80-80`, `pods "" in namespaces "" proto 17 port 53-53`}},
		"range of ports":              {`{egress: [{ports: [{port: 32000, endPort: 32768, protocol: SCTP}]}], policyTypes: [Egress]}`, []string{"out:", "any proto 132 port 32000-32768"}},
		"protocol only":               {`{ingress: [{ports: [{protocol: UDP}]}]}`, []string{"in:", "any proto 17"}},
		"port without a protocol":     {`{ingress: [{ports: [{port: 1}]}]}`, []string{"in:", "any proto 6 port 1-1"}},
		"port by name":                {`{ingress: [{ports: [{port: web, protocol: UDP}]}]}`, []string{"in:", `any proto 17 port "web"/17`}},
		"block":                       {`{ingress: [{from: [{ipBlock: {cidr: 10.1.2.0/24}}]}]}`, []string{"in:", "10.1.2.0-10.1.2.255"}},
		"block that is not masked":    {`{ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/24}}]}]}`, []string{"in:", "10.1.2.0-10.1.2.255"}},
		"block of all":                {`{ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}`, []string{"in:", "0.0.0.0-255.255.255.255"}},
		"exceptions":                  {`{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.255.0.0/16, 10.0.0.0/24, 10.5.0.0/16, 10.5.1.0/24]}}]}]}`, []string{"in:", "10.0.1.0-10.4.255.255,10.6.0.0-10.254.255.255"}},
		"exception of everything":     {`{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/16]}}]}]}`, []string{"in:"}},
		"an exception is its block's": {`{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/25]}}, {ipBlock: {cidr: 10.0.0.8/32}}]}]}`, []string{"in:", "10.0.0.8-10.0.0.8,10.0.0.128-10.0.0.255"}},
		"blocks that touch":           {`{ingress: [{from: [{ipBlock: {cidr: 10.0.1.0/24}}, {ipBlock: {cidr: 10.0.0.0/24}}, {ipBlock: {cidr: 10.0.0.0/30}}]}]}`, []string{"in:", "10.0.0.0-10.0.1.255"}},
		"only IPv6: nobody":           {`{ingress: [{from: [{ipBlock: {cidr: "2001:db8::/32"}}], ports: [{port: 80}]}]}`, []string{"in:"}},
		"the same twice":              {`{ingress: [{from: [{podSelector: {}}]}, {from: [{podSelector: {}}]}]}`, []string{"in:", `pods "" in shop`}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
			if err := yaml.UnmarshalStrict([]byte(tc.spec), &p.Spec); err != nil {
				t.Fatal(err)
			}
			plan, err := planPolicy(p)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, plan.text()); diff != "" {
				t.Errorf("planPolicy of %s (-want +got):\n%s", tc.spec, diff)
			}
			for d := range directions {
				for _, r := range plan.Rules[d] {
					for _, set := range []string{r.Peers, r.Port} {
						if _, known := plan.Sets[set]; set != "" && !known {
							t.Errorf("set %q is not there", set)
						}
					}
				}
			}
		})
	}
}

// TestWhatCannotBeRead allows nothing.
func TestWhatCannotBeRead(t *testing.T) {
	p := &networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
		{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0"}},
		{PodSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}}},
	}}}}}
	plan, err := planPolicy(p)
	if err == nil || plan == nil || len(plan.Rules[ingress]) > 0 {
		t.Errorf("planPolicy = %+v, %v; want an error and no rule", plan, err)
	}
}

// FuzzBlock holds a block's ranges against the prefixes they are made of.
func FuzzBlock(f *testing.F) {
	f.Add(uint32(0x0a000000), uint8(8), uint32(0x0a050000), uint8(16), uint32(0x0a050001))
	f.Add(uint32(0), uint8(0), uint32(0xffffffff), uint8(32), uint32(0xffffffff))
	f.Fuzz(func(t *testing.T, cidr uint32, bits uint8, except uint32, exceptBits uint8, at uint32) {
		addr := func(n uint32) netip.Addr {
			return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		}
		block, without := netip.PrefixFrom(addr(cidr), int(bits%33)), netip.PrefixFrom(addr(except), int(exceptBits%33))
		ranges, err := blockRanges(&networkingv1.IPBlock{CIDR: block.String(), Except: []string{without.String()}})
		if err != nil {
			t.Fatal(err)
		}
		want := block.Contains(addr(at)) && !without.Contains(addr(at))
		got := slices.ContainsFunc(ranges, func(r addrRange) bool { return !addr(at).Less(r.First) && !r.Last.Less(addr(at)) })
		if got != want {
			t.Errorf("%s without %s is %v, which has %s: %v, want %v", block, without, ranges, addr(at), got, want)
		}
	})
}

func TestPodOf(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	port := func(name string) []corev1.ContainerPort {
		return []corev1.ContainerPort{{Name: name, ContainerPort: 1}}
	}
	p := podOf(&corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Ports: port("init")}, {Ports: port("sidecar"), RestartPolicy: &always}},
		Containers:     []corev1.Container{{Ports: port("web")}, {Ports: port("")}},
	}})
	names := map[string]bool{}
	for _, port := range p.Ports {
		names[port.Name] = true
	}
	if got := slices.Sorted(maps.Keys(names)); !slices.Equal(got, []string{"sidecar", "web"}) {
		t.Errorf("named ports are %v", got)
	}
}
