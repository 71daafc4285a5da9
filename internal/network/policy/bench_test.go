//go:build linux

package policy

import (
	"fmt"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/network/nettest"
)

// big is a cluster of 1,000 pods, 110 of them here, in 20 namespaces with 100 policies of three rules each.
func big(b *testing.B) *state {
	b.Helper()
	s := newState()
	for i := range 20 {
		s.setNamespace(fmt.Sprintf("ns%d", i), labels.Set{"team": fmt.Sprintf("t%d", i%4)})
	}
	for i := range 1000 {
		s.setPod(bigPod(i).Key, bigPod(i))
	}
	for i := range 100 {
		plan, err := planPolicy(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns%d", i%20), Name: fmt.Sprintf("np%d", i)},
			Spec: networkingv1.NetworkPolicySpec{PodSelector: *selector("app", fmt.Sprintf("a%d", i/20)), Ingress: []networkingv1.NetworkPolicyIngressRule{
				from(networkingv1.NetworkPolicyPeer{PodSelector: selector("app", fmt.Sprintf("a%d", i/20+1))}),
				from(networkingv1.NetworkPolicyPeer{NamespaceSelector: selector("team", fmt.Sprintf("t%d", i%4)), PodSelector: selector("app", "a0")}),
				from(networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24"}}),
			}}})
		if err != nil {
			b.Fatal(err)
		}
		s.setPolicy(plan.Key, plan)
	}
	return s
}

func bigPod(i int) *pod {
	return &pod{UID: types.UID(fmt.Sprint(i)), Key: types.NamespacedName{Namespace: fmt.Sprintf("ns%d", i%20), Name: fmt.Sprint(i)},
		Labels: labels.Set{"app": fmt.Sprintf("a%d", i/20%10), "v": "1"}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, byte(i / 110), byte(2 + i%110)})}, Local: i < 110}
}

// BenchmarkDelta is one pod of another node that goes, and one that comes: plan only, then with the kernel; and the whole table.
func BenchmarkDelta(b *testing.B) {
	turn := func(s *state, i int) change {
		p := bigPod(500 + i/2%500)
		if i%2 == 0 {
			s.setPod(p.Key, nil)
		} else {
			s.setPod(p.Key, p)
		}
		return s.settleAll()
	}
	b.Run("plan", func(b *testing.B) {
		s := big(b)
		s.whole()
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			turn(s, i)
		}
	})
	b.Run("kernel", func(b *testing.B) {
		nettest.Need(b)
		s, k := written(b)
		for i := 0; b.Loop(); i++ {
			if c := turn(s, i); !c.empty() {
				if err := k.apply(c); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("cover", func(b *testing.B) {
		nettest.Need(b)
		s, k := written(b)
		for i := 0; b.Loop(); i++ {
			p := bigPod(i % 110)
			if i/110%2 == 0 {
				p.Labels = labels.Set{"app": "a0"}
			}
			s.cover(p)
			if c := s.settleAll(); !c.empty() {
				if err := k.apply(c); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("whole", func(b *testing.B) {
		nettest.Need(b)
		s, k := written(b)
		for b.Loop() {
			if err := k.replace(s.whole()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// written is a cluster whose rules the kernel has.
func written(b *testing.B) (*state, *kernel) {
	b.Helper()
	s, k := big(b), newKernel()
	if err := k.replace(s.whole()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := k.remove(); err != nil {
			b.Error(err)
		}
	})
	return s, k
}
