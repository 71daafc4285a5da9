package service

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"gantry.dev/gantry/internal/network/nft"
)

// describe writes a plan as the maps would hold it, one element a line.
func describe(p servicePlan) string {
	var lines []string
	for key, value := range p.elements() {
		line := string(key.Map) + " "
		if key.At.IP.IsValid() {
			line += key.At.IP.String()
		}
		if key.At.Port != 0 {
			line += fmt.Sprintf(":%d/%d", key.At.Port, key.At.Proto)
		}
		if key.Slot >= 0 {
			line += fmt.Sprintf(" #%d", key.Slot)
		}
		switch {
		case value.Verdict != "":
			line += " " + value.Verdict
		case value.Stay > 0:
			line += " " + rememberChain(value.Stay)
		case value.Chain.Slots.Count > 0:
			line += " " + value.Chain.String()
		case value.To.Addr.IsValid():
			line += fmt.Sprintf(" %s:%d", value.To.Addr, value.To.Port)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func tcpOnly(change func(*corev1.Service)) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Ports = s.Spec.Ports[:1]
		if change != nil {
			change(s)
		}
	}
}

func TestPlanService(t *testing.T) {
	localOnly := tcpOnly(func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = 30080
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	})
	for name, tc := range map[string]struct {
		svc    *corev1.Service
		slices []discoveryv1.EndpointSlice
		want   string
	}{
		"two endpoints, one here": {
			service("web", "10.96.0.20", tcpOnly(nil)),
			[]discoveryv1.EndpointSlice{*slice("web", on("n2", "10.244.1.5"), on("n1", "10.244.0.9"))},
			`endpoints 10.96.0.20:80/6 #0 10.244.0.9:8080
endpoints 10.96.0.20:80/6 #1 10.244.1.5:8080
hairpin 10.244.0.9
services 10.96.0.20:80/6 ip-2`},
		"no endpoints": {service("web", "10.96.0.20", tcpOnly(nil)), nil, "no-endpoints 10.96.0.20:80/6 reject"},
		"not ready is left out": {
			service("web", "10.96.0.20", tcpOnly(nil)),
			[]discoveryv1.EndpointSlice{*slice("web", on("n2", "10.244.1.5", false, false, false))},
			"no-endpoints 10.96.0.20:80/6 reject"},
		"terminating serves only while nobody is ready": {
			service("web", "10.96.0.20", tcpOnly(nil)),
			[]discoveryv1.EndpointSlice{*slice("web", on("n2", "10.244.1.5", false, true, true), on("n2", "10.244.1.6", false, false, true))},
			`endpoints 10.96.0.20:80/6 #0 10.244.1.5:8080
services 10.96.0.20:80/6 ip-1`},
		"one address in two slices": {
			service("web", "10.96.0.20", tcpOnly(nil)),
			[]discoveryv1.EndpointSlice{*slice("web", on("n2", "10.244.1.5")), *slice("web", on("n2", "10.244.1.5", false, false, false))},
			`endpoints 10.96.0.20:80/6 #0 10.244.1.5:8080
services 10.96.0.20:80/6 ip-1`},
		"external policy Local": {
			service("web", "10.96.0.20", localOnly),
			[]discoveryv1.EndpointSlice{*slice("web", on("n2", "10.244.1.5"), on("n1", "10.244.0.9"))},
			`endpoints 10.96.0.20:80/6 #0 10.244.0.9:8080
endpoints 10.96.0.20:80/6 #1 10.244.1.5:8080
hairpin 10.244.0.9
inside-nodeports :30080/6 np-2
nodeport-endpoints :30080/6 #0 10.244.0.9:8080
nodeport-endpoints :30080/6 #1 10.244.1.5:8080
nodeports :30080/6 np-1
services 10.96.0.20:80/6 ip-2`},
		"external policy Local, endpoints elsewhere": {
			service("web", "10.96.0.20", localOnly),
			[]discoveryv1.EndpointSlice{*slice("web", on("n2", "10.244.1.5"))},
			`endpoints 10.96.0.20:80/6 #0 10.244.1.5:8080
inside-nodeports :30080/6 np-1
nodeport-endpoints :30080/6 #0 10.244.1.5:8080
nodeports-none :30080/6 drop
services 10.96.0.20:80/6 ip-1`},
		"external policy Local, the one here is shutting down": {
			service("web", "10.96.0.20", localOnly),
			[]discoveryv1.EndpointSlice{*slice("web", on("n2", "10.244.1.5"), on("n1", "10.244.0.9", false, true, true))},
			`endpoints 10.96.0.20:80/6 #0 10.244.1.5:8080
hairpin 10.244.0.9
inside-nodeports :30080/6 np-1-from-1
nodeport-endpoints :30080/6 #0 10.244.0.9:8080
nodeport-endpoints :30080/6 #1 10.244.1.5:8080
nodeports :30080/6 np-1
services 10.96.0.20:80/6 ip-1`},
		"internal policy Local": {
			service("web", "10.96.0.20", tcpOnly(func(s *corev1.Service) {
				s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
			})),
			[]discoveryv1.EndpointSlice{*slice("web", on("n2", "10.244.1.5"))},
			"no-endpoints 10.96.0.20:80/6 reject"},
		"load balancer, external address, affinity": {
			service("web", "10.96.0.20", tcpOnly(func(s *corev1.Service) {
				s.Spec.Type = corev1.ServiceTypeLoadBalancer
				s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
				s.Spec.ExternalIPs = []string{"198.51.100.7", "2001:db8::1"}
				s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.9"},
					{IP: "203.0.113.10", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb.example.com"}}
			})),
			[]discoveryv1.EndpointSlice{*slice("web", on("n2", "10.244.1.5"))},
			`endpoints 10.96.0.20:80/6 #0 10.244.1.5:8080
endpoints 198.51.100.7:80/6 #0 10.244.1.5:8080
endpoints 203.0.113.9:80/6 #0 10.244.1.5:8080
remember 10.96.0.20:80/6 remember-10800
remember 198.51.100.7:80/6 remember-10800
remember 203.0.113.9:80/6 remember-10800
services 10.96.0.20:80/6 ip-1-stay
services 198.51.100.7:80/6 ip-1-masq-stay
services 203.0.113.9:80/6 ip-1-masq-stay`},
		"headless":          {service("web", "None", nil), nil, ""},
		"alias":             {service("web", "", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }), nil, ""},
		"another's proxy":   {service("web", "10.96.0.20", func(s *corev1.Service) { s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "x"} }), nil, ""},
		"answered by node":  {service("dns", "10.96.0.10", nil), nil, ""},
		"wrong port's name": {service("web", "10.96.0.20", tcpOnly(func(s *corev1.Service) { s.Spec.Ports[0].Name = "other" })), []discoveryv1.EndpointSlice{*slice("web", on("n2", "10.244.1.5"))}, "no-endpoints 10.96.0.20:80/6 reject"},
	} {
		t.Run(name, func(t *testing.T) {
			node := nodeView{Name: "n1", Skip: map[netip.Addr]bool{netip.MustParseAddr("10.96.0.10"): true}}
			got := describe(planService(tc.svc, tc.slices, node))
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("planService (-want +got):\n%s", diff)
			}
		})
	}
}

// Two services wish for one address: the first by name has it, the other takes over.
func TestConflictingClaims(t *testing.T) {
	want := newDesired()
	key := elementKey{mapServices, frontend{netip.MustParseAddr("198.51.100.7"), nft.ProtocolTCP, 80}, -1}
	one := map[elementKey]elementValue{key: {Chain: chainSpec{Slots: span{0, 1}}}}
	two := map[elementKey]elementValue{key: {Chain: chainSpec{Slots: span{0, 2}}}}
	have := map[elementKey]elementValue{}
	step := func(service string, elements map[elementKey]elementValue) {
		touched := map[elementKey]bool{}
		want.set(service, elements, touched)
		c := planChange(want, have, touched)
		for _, k := range c.Remove {
			delete(have, k)
		}
		maps.Copy(have, c.Add)
	}
	step("b", two)
	step("a", one)
	if have[key] != one[key] {
		t.Errorf("with both: %+v, want a's", have[key])
	}
	step("a", nil)
	if have[key] != two[key] {
		t.Errorf("after a left: %+v, want b's", have[key])
	}
	step("b", nil)
	if len(have) != 0 || len(want.claims) != 0 {
		t.Errorf("after both left: %v", have)
	}
}
