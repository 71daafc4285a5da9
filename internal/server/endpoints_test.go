package server

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/store"
)

func TestPlanEndpoints(t *testing.T) {
	member := func(name, addr string, learner, self bool) store.Member {
		return store.Member{ID: name, Name: name, PeerURLs: []string{"https://" + netip.AddrPortFrom(netip.MustParseAddr(addr), 2380).String()}, Learner: learner, Self: self}
	}
	node := func(name string, ready corev1.ConditionStatus) corev1.Node {
		return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
	}
	own := netip.MustParseAddr("192.0.2.2")
	a, b, c := member("a", "192.0.2.1", false, false), member("b", "192.0.2.2", false, true), member("c", "192.0.2.3", false, false)
	for name, tc := range map[string]struct {
		members []store.Member
		nodes   []corev1.Node
		want    string
	}{
		"alone, at another address than it listens on for others": {[]store.Member{member("b", "127.0.0.1", false, true)}, nil, "[192.0.2.2]"},
		"three":                          {[]store.Member{a, b, c}, nil, "[192.0.2.1 192.0.2.2 192.0.2.3]"},
		"one is lost":                    {[]store.Member{a, b, c}, []corev1.Node{node("a", corev1.ConditionUnknown), node("c", corev1.ConditionTrue)}, "[192.0.2.2 192.0.2.3]"},
		"one cannot run pods":            {[]store.Member{a, b, c}, []corev1.Node{node("a", corev1.ConditionFalse)}, "[192.0.2.1 192.0.2.2 192.0.2.3]"},
		"the one that asks is not lost":  {[]store.Member{a, b}, []corev1.Node{node("b", corev1.ConditionUnknown)}, "[192.0.2.1 192.0.2.2]"},
		"a learner has not all the data": {[]store.Member{b, member("c", "192.0.2.3", true, false)}, nil, "[192.0.2.2]"},
		"IPv6":                           {[]store.Member{b, member("d", "2001:db8::1", false, false)}, nil, "[192.0.2.2 2001:db8::1]"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := fmt.Sprint(planEndpoints(tc.members, tc.nodes, own)); got != tc.want {
				t.Errorf("planEndpoints = %s; want %s", got, tc.want)
			}
		})
	}
}

func TestPlanLease(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	first := planLease(&coordinationv1.Lease{}, "a", begin)
	again := planLease(first, "a", begin.Add(time.Minute))
	other := planLease(again, "b", begin.Add(2*time.Minute))
	for name, tc := range map[string]struct {
		lease       *coordinationv1.Lease
		holder      string
		transitions int32
		acquired    time.Time
		renewed     time.Time
	}{
		"the first":            {first, "a", 0, begin, begin},
		"renewed":              {again, "a", 0, begin, begin.Add(time.Minute)},
		"taken over by others": {other, "b", 1, begin.Add(2 * time.Minute), begin.Add(2 * time.Minute)},
	} {
		t.Run(name, func(t *testing.T) {
			spec := tc.lease.Spec
			if *spec.HolderIdentity != tc.holder || *spec.LeaseTransitions != tc.transitions || !spec.AcquireTime.Time.Equal(tc.acquired) || !spec.RenewTime.Time.Equal(tc.renewed) {
				t.Errorf("lease = %+v; want %+v", spec, tc)
			}
		})
	}
}
