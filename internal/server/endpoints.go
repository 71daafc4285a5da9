package server

import (
	"context"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/store"
)

// How often the leader looks which servers are well. It reads memory only.
const (
	endpointsPoll      = 250 * time.Millisecond
	endpointsPollAlone = 5 * time.Second
)

// keepEndpoints points default/kubernetes at the servers that are well: the members of the store whose nodes are heard.
func (t *term) keepEndpoints(ctx context.Context) error {
	for {
		wait := endpointsPollAlone
		if t.store.HasCompany() {
			wait = endpointsPoll
		}
		if err := t.updateEndpoints(ctx); err != nil && ctx.Err() == nil {
			t.opts.Logger.LogAttrs(ctx, slog.LevelInfo, "pointing default/kubernetes at the servers", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (t *term) updateEndpoints(ctx context.Context) error {
	members, err := t.store.Members(ctx)
	if err != nil {
		return err
	}
	var nodes corev1.NodeList
	if err := t.admin.List(ctx, &nodes); err != nil {
		return err
	}
	own := t.opts.Endpoint()
	well := planEndpoints(members, nodes.Items, own.Addr())
	if err := t.publishEndpoints(ctx, well, own.Port()); err != nil {
		return err
	}
	return t.keepClusterInfo(ctx, well, own)
}

// planEndpoints lists where the API is to be had, in order: at every member with a vote whose node was not lost, and
// in any case at the server that asks, whose own address is its node's.
func planEndpoints(members []store.Member, nodes []corev1.Node, own netip.Addr) []netip.Addr {
	lost := make(map[string]bool, len(nodes))
	for i := range nodes {
		lost[nodes[i].Name] = slices.ContainsFunc(nodes[i].Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
		})
	}
	addrs := []netip.Addr{own}
	for _, m := range members {
		if m.Learner || m.Self || lost[m.Name] {
			continue
		}
		if addr, ok := addressOf(m); ok {
			addrs = append(addrs, addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// addressOf is the address of a member's node: members of the store reach each other there.
func addressOf(m store.Member) (netip.Addr, bool) {
	if len(m.PeerURLs) == 0 {
		return netip.Addr{}, false
	}
	at, err := url.Parse(m.PeerURLs[0])
	if err != nil {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(at.Hostname())
	return addr, err == nil
}

// publishEndpoints points default/kubernetes at these addresses.
func (cp *ControlPlane) publishEndpoints(ctx context.Context, addrs []netip.Addr, port uint16) error {
	subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Name: "https", Port: int32(port), Protocol: corev1.ProtocolTCP}}}
	for _, addr := range addrs {
		subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: addr.String()})
	}
	endpoints := &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceDefault, Name: "kubernetes",
			Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"},
		},
		Subsets: []corev1.EndpointSubset{subset},
	}
	there := new(corev1.Endpoints)
	err := cp.admin.Get(ctx, ctrlclient.ObjectKeyFromObject(endpoints), there)
	switch {
	case apierrors.IsNotFound(err):
		err = cp.admin.Create(ctx, endpoints)
	case err == nil && !equality.Semantic.DeepEqual(there.Subsets, endpoints.Subsets):
		next := there.DeepCopy()
		next.Subsets = endpoints.Subsets
		err = cp.admin.Update(ctx, next)
	}
	if err != nil {
		return err
	}
	return cp.publishSlice(ctx, addrs, port)
}

func (cp *ControlPlane) publishSlice(ctx context.Context, addrs []netip.Addr, at uint16) error {
	name, port, protocol, yes := "https", int32(at), corev1.ProtocolTCP, true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceDefault, Name: "kubernetes",
			Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
	}
	for _, addr := range addrs {
		if addr.Is6() {
			slice.AddressType = discoveryv1.AddressTypeIPv6
		}
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{addr.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &yes},
		})
	}
	there := new(discoveryv1.EndpointSlice)
	err := cp.admin.Get(ctx, ctrlclient.ObjectKeyFromObject(slice), there)
	switch {
	case apierrors.IsNotFound(err):
		return cp.admin.Create(ctx, slice)
	case err != nil:
		return err
	case equality.Semantic.DeepEqual(there.Endpoints, slice.Endpoints) && equality.Semantic.DeepEqual(there.Ports, slice.Ports):
		return nil
	}
	next := there.DeepCopy()
	next.Endpoints, next.Ports = slice.Endpoints, slice.Ports
	return cp.admin.Update(ctx, next)
}
