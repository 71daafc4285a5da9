package service

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func balancerNode(name, address string, change func(*corev1.Node)) corev1.Node {
	node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: address}},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
	}}
	if change != nil {
		change(&node)
	}
	return node
}

func balanced(name string, age time.Duration, change func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age))},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	if change != nil {
		change(svc)
	}
	return svc
}

func TestPlanBalancers(t *testing.T) {
	two := []corev1.Node{balancerNode("b", "10.0.0.2", nil), balancerNode("a", "10.0.0.1", nil)}
	local := func(svc *corev1.Service) { svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }
	for name, tc := range map[string]struct {
		nodes    []corev1.Node
		services []*corev1.Service
		serving  map[string]bool     // of the first service
		want     map[string][]string // service to addresses; not mentioned: left alone
		problems int
	}{
		"every node": {nodes: two, services: []*corev1.Service{balanced("web", 0, nil)}, want: map[string][]string{"web": {"10.0.0.1", "10.0.0.2"}}},
		"external addresses first": {
			nodes: []corev1.Node{balancerNode("a", "10.0.0.1", func(n *corev1.Node) {
				n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "1.2.3.4"})
			})},
			services: []*corev1.Service{balanced("web", 0, nil)}, want: map[string][]string{"web": {"1.2.3.4"}},
		},
		"excluded and not ready": {
			nodes: append([]corev1.Node{
				balancerNode("c", "10.0.0.3", func(n *corev1.Node) { n.Labels = map[string]string{corev1.LabelNodeExcludeBalancers: ""} }),
				balancerNode("d", "10.0.0.4", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }),
			}, two...),
			services: []*corev1.Service{balanced("web", 0, nil)}, want: map[string][]string{"web": {"10.0.0.1", "10.0.0.2"}},
		},
		"none ready": {
			nodes:    []corev1.Node{balancerNode("d", "10.0.0.4", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown })},
			services: []*corev1.Service{balanced("web", 0, nil)}, want: map[string][]string{"web": {"10.0.0.4"}},
		},
		"traffic that stays on a node":           {nodes: two, services: []*corev1.Service{balanced("web", 0, local)}, serving: map[string]bool{"b": true}, want: map[string][]string{"web": {"10.0.0.2"}}},
		"traffic that stays, without endpoints":  {nodes: two, services: []*corev1.Service{balanced("web", 0, local)}, want: map[string][]string{"web": {"10.0.0.1", "10.0.0.2"}}},
		"a class":                                {nodes: two, services: []*corev1.Service{balanced("web", 0, func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr("example.com/lb") })}, want: map[string][]string{}},
		"no balancer any more":                   {nodes: two, services: []*corev1.Service{balanced("web", 0, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })}, want: map[string][]string{"web": nil}},
		"the oldest has the port":                {nodes: two, services: []*corev1.Service{balanced("new", 0, nil), balanced("old", time.Hour, nil)}, want: map[string][]string{"new": nil, "old": {"10.0.0.1", "10.0.0.2"}}, problems: 1},
		"the same port of another protocol":      {nodes: two[:1], services: []*corev1.Service{balanced("new", 0, func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP }), balanced("old", time.Hour, nil)}, want: map[string][]string{"new": {"10.0.0.2"}, "old": {"10.0.0.2"}}},
		"a port that the node needs":             {nodes: two, services: []*corev1.Service{balanced("web", 0, func(s *corev1.Service) { s.Spec.Ports[0].Port = 6443 })}, want: map[string][]string{"web": nil}, problems: 1},
		"source ranges":                          {nodes: two, services: []*corev1.Service{balanced("web", 0, func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/8"} })}, want: map[string][]string{"web": nil}, problems: 1},
		"one address asked for":                  {nodes: two, services: []*corev1.Service{balanced("web", 0, func(s *corev1.Service) { s.Spec.LoadBalancerIP = "10.0.0.2" })}, want: map[string][]string{"web": {"10.0.0.2"}}},
		"an address asked for that is no node's": {nodes: two, services: []*corev1.Service{balanced("web", 0, func(s *corev1.Service) { s.Spec.LoadBalancerIP = "10.9.9.9" })}, want: map[string][]string{"web": nil}, problems: 1},
	} {
		t.Run(name, func(t *testing.T) {
			in := balance{nodes: balancingNodes(tc.nodes), reserved: map[int32]bool{6443: true}, serving: map[*corev1.Service]map[string]bool{tc.services[0]: tc.serving}}
			got, problems := map[string][]string{}, 0
			for _, d := range in.plan(tc.services) {
				var addresses []string
				for _, i := range d.ingress {
					addresses = append(addresses, i.IP)
				}
				got[d.service.Name] = addresses
				if d.problem != "" {
					problems++
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" || problems != tc.problems {
				t.Errorf("%d problems, want %d; addresses (-want +got):\n%s", problems, tc.problems, diff)
			}
		})
	}
}

func TestBalancer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := controllertest.New(t, client.Object(ptr(balancerNode("a", "10.0.0.1", nil))))
		failures := 0
		c.SetBeforeWrite(func(w controllertest.Write) error { // what cannot be written is tried again
			if failures++; w.Sub == "status" && failures%2 == 1 {
				return errors.New("the write is lost")
			}
			return nil
		})
		b, err := NewBalancer(c, c, silent{}, BalancerOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx) }()
		svc := balanced("web", 0, nil)
		if err := c.Create(ctx, svc); err != nil {
			t.Fatal(err)
		}
		addresses := func(want ...string) {
			t.Helper()
			time.Sleep(time.Second) // virtual
			var now corev1.Service
			if err := c.Get(ctx, client.ObjectKeyFromObject(svc), &now); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, i := range now.Status.LoadBalancer.Ingress {
				got = append(got, i.IP)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		}
		addresses("10.0.0.1")
		node := balancerNode("b", "10.0.0.2", nil)
		if err := c.Create(ctx, &node); err != nil {
			t.Fatal(err)
		}
		addresses("10.0.0.1", "10.0.0.2")
		lost := balancerNode("b", "10.0.0.2", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown })
		for c.Status().Update(ctx, &lost) != nil { // every other one is lost
			lost.ResourceVersion = ""
		}
		addresses("10.0.0.1")
		var now corev1.Service
		if err := c.Get(ctx, client.ObjectKeyFromObject(svc), &now); err != nil {
			t.Fatal(err)
		}
		next := now.DeepCopy()
		next.Spec.Type = corev1.ServiceTypeClusterIP
		if err := c.Update(ctx, next); err != nil {
			t.Fatal(err)
		}
		addresses()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
