//go:build linux

package policy

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gantry.dev/gantry/internal/network/nettest"
)

func selector(list ...string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: pairs(list)}
}

func tcp(port int) networkingv1.NetworkPolicyPort {
	return networkingv1.NetworkPolicyPort{Port: new(intstr.FromInt32(int32(port)))}
}

func from(peers ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicyIngressRule {
	return networkingv1.NetworkPolicyIngressRule{From: peers}
}

// probe is one connection and whether it shall come to be.
type probe struct {
	from, network, to string
	want              bool
}

// TestConnections holds policies against real packets: pods web and db in namespace shop, client in namespace other, and an
// address outside.
func TestConnections(t *testing.T) {
	w := newWorld(t)
	w.namespace("shop", "team", "a")
	w.namespace("other", "team", "b")
	w.pod("shop", "web", "app", "web")
	w.pod("shop", "db", "app", "db")
	w.pod("other", "client", "app", "client")
	w.pod("other", "web", "app", "web")
	outside := nettest.Outside(t, "uplink", "192.0.2.1/24", "192.0.2.2/24", true)
	nettest.ServeName(t, outside, ":80", "outside")
	w.paths["outside"] = outside
	rest := func(spec networkingv1.NetworkPolicySpec) []*networkingv1.NetworkPolicy {
		return []*networkingv1.NetworkPolicy{webPolicy("p", spec)}
	}
	both := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	out := both[1:]
	for name, tc := range map[string]struct {
		policies []*networkingv1.NetworkPolicy
		probes   []probe
	}{
		"none": {nil, []probe{{"shop/db", "tcp4", "shop/web:80", true}, {"outside", "tcp4", "shop/web:80", true}, {"shop/web", "tcp4", "192.0.2.2:80", true}}},
		"ingress denied": {rest(networkingv1.NetworkPolicySpec{}), []probe{
			{"shop/db", "tcp4", "shop/web:80", false}, {"shop/db", "udp4", "shop/web:80", false}, {"outside", "tcp4", "shop/web:80", false},
			{"shop/web", "tcp4", "shop/db:80", true}, {"shop/web", "tcp4", "192.0.2.2:80", true}, {"shop/web", "tcp4", "shop/web:80", true},
			{"shop/db", "tcp4", "other/web:80", true}, {"", "tcp4", "shop/web:80", true}}},
		"egress denied": {rest(networkingv1.NetworkPolicySpec{PolicyTypes: out}), []probe{
			{"shop/web", "tcp4", "shop/db:80", false}, {"shop/web", "udp4", "shop/db:80", false}, {"shop/web", "tcp4", "192.0.2.2:80", false},
			{"shop/db", "tcp4", "shop/web:80", true}, {"outside", "udp4", "shop/web:80", true}}},
		"both denied": {rest(networkingv1.NetworkPolicySpec{PolicyTypes: both}), []probe{
			{"shop/web", "tcp4", "shop/db:80", false}, {"shop/db", "tcp4", "shop/web:80", false}, {"shop/db", "tcp4", "other/client:80", true}}},
		"ingress allowed to all": {append(rest(networkingv1.NetworkPolicySpec{}),
			webPolicy("all", networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{}}})), []probe{
			{"shop/db", "tcp4", "shop/web:80", true}, {"outside", "udp4", "shop/web:81", true}}},
		"pods of the namespace": {rest(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			from(networkingv1.NetworkPolicyPeer{PodSelector: selector()})}}), []probe{
			{"shop/db", "tcp4", "shop/web:80", true}, {"other/client", "tcp4", "shop/web:80", false}, {"outside", "tcp4", "shop/web:80", false}}},
		"pods by label": {rest(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			from(networkingv1.NetworkPolicyPeer{PodSelector: selector("app", "cache")})}}), []probe{{"shop/db", "tcp4", "shop/web:80", false}}},
		"namespaces by label": {rest(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			from(networkingv1.NetworkPolicyPeer{NamespaceSelector: selector("team", "b")})}}), []probe{
			{"shop/db", "tcp4", "shop/web:80", false}, {"other/client", "tcp4", "shop/web:80", true}, {"other/web", "udp4", "shop/web:80", true}}},
		"namespace and pod": {rest(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			from(networkingv1.NetworkPolicyPeer{NamespaceSelector: selector("team", "b"), PodSelector: selector("app", "client")})}}), []probe{
			{"shop/db", "tcp4", "shop/web:80", false}, {"other/client", "tcp4", "shop/web:80", true}, {"other/web", "tcp4", "shop/web:80", false}}},
		"namespace or pod": {rest(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			from(networkingv1.NetworkPolicyPeer{NamespaceSelector: selector("team", "b")}, networkingv1.NetworkPolicyPeer{PodSelector: selector("app", "db")})}}), []probe{
			{"shop/db", "tcp4", "shop/web:80", true}, {"other/client", "tcp4", "shop/web:80", true}, {"outside", "tcp4", "shop/web:80", false}}},
		"a port": {rest(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			{Ports: []networkingv1.NetworkPolicyPort{tcp(80)}}}}), []probe{
			{"shop/db", "tcp4", "shop/web:80", true}, {"shop/db", "udp4", "shop/web:80", false}, {"shop/db", "tcp4", "shop/web:81", false}}},
		"a port range": {rest(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			{Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(81)), EndPort: new(int32(6000))}}}}}), []probe{
			{"shop/db", "tcp4", "shop/web:80", false}, {"shop/db", "tcp4", "shop/web:81", true}, {"shop/db", "tcp4", "shop/web:5000", true}}},
		"a port by name, in": {rest(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			{Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("http"))}}}}}), []probe{
			{"shop/db", "tcp4", "shop/web:80", true}, {"shop/db", "tcp4", "shop/web:81", false}, {"shop/db", "udp4", "shop/web:80", false}}},
		"a port by name, out": {rest(networkingv1.NetworkPolicySpec{PolicyTypes: out, Egress: []networkingv1.NetworkPolicyEgressRule{
			{To: []networkingv1.NetworkPolicyPeer{{PodSelector: selector("app", "db")}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("http")), Protocol: new(corev1.ProtocolUDP)}}}}}), []probe{
			{"shop/web", "udp4", "shop/db:80", true}, {"shop/web", "tcp4", "shop/db:80", false}, {"shop/web", "udp4", "other/client:80", false}}},
		"a protocol": {rest(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			{Ports: []networkingv1.NetworkPolicyPort{{Protocol: new(corev1.ProtocolUDP)}}}}}), []probe{
			{"shop/db", "tcp4", "shop/web:80", false}, {"shop/db", "udp4", "shop/web:5000", true}}},
		"a block": {rest(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			from(networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24"}})}}), []probe{
			{"outside", "tcp4", "shop/web:80", true}, {"shop/db", "tcp4", "shop/web:80", false}}},
		"a block with an exception": {rest(networkingv1.NetworkPolicySpec{PolicyTypes: both, Ingress: []networkingv1.NetworkPolicyIngressRule{
			from(networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"192.0.2.0/30"}}})},
			Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{
				{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.0.0/16", Except: []string{"192.0.3.0/24", "192.0.1.0/24"}}}}}}}), []probe{
			{"outside", "tcp4", "shop/web:80", false}, {"shop/db", "tcp4", "shop/web:80", true},
			{"shop/web", "tcp4", "192.0.2.2:80", true}, {"shop/web", "tcp4", "shop/db:80", false}}},
		"a block of IPv6 only": {rest(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			from(networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "::/0"}})}}), []probe{{"shop/db", "tcp4", "shop/web:80", false}}},
	} {
		t.Run(name, func(t *testing.T) {
			parent := w.t
			w.t = t
			defer func() { w.t = parent }()
			for _, p := range tc.policies {
				w.put(p)
			}
			w.settle()
			for _, p := range tc.probes {
				w.expect(p.from, p.network, p.to, p.want)
			}
			for _, p := range tc.policies {
				w.remove(p)
			}
			w.settle()
			w.expect("shop/db", "tcp4", "shop/web:80", true)
			w.expect("shop/web", "tcp4", "shop/db:80", true)
		})
	}
}
