package service

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/network/nft"
)

// apiServers is the Service of the API servers. Its endpoints are the only ones that every node hears several times a second, so
// that it can tell by itself, before any leader does, that one is dead.
func apiServers() types.NamespacedName {
	return types.NamespacedName{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}
}

// Connection is a TCP connection through a Service, as its client sees it.
type Connection struct{ Client, Server netip.AddrPort }

// Hear tells whether the API server at addr answers this node. While another one does, nobody on the node is sent to one that is
// silent, and connections to it are cut. All addresses count as heard at first. It may be called at any time, and is quick.
func (p *Proxy) Hear(addr netip.Addr, heard bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.silent[addr] == !heard {
		return
	}
	if heard {
		delete(p.silent, addr)
	} else {
		p.silent[addr] = true
	}
	p.noteLocked(apiServers())
}

// heard leaves out the endpoints that do not answer, unless no ready one would be left.
func (p *Proxy) heard(list []discoveryv1.EndpointSlice) []discoveryv1.EndpointSlice {
	p.mu.Lock()
	defer p.mu.Unlock()
	return withoutSilent(list, p.silent)
}

func withoutSilent(list []discoveryv1.EndpointSlice, silent map[netip.Addr]bool) []discoveryv1.EndpointSlice {
	if len(silent) == 0 {
		return list
	}
	out, left := slices.Clone(list), false
	for i := range out {
		var kept []discoveryv1.Endpoint
		for _, e := range out[i].Endpoints {
			if len(e.Addresses) > 0 {
				if addr, err := netip.ParseAddr(e.Addresses[0]); err == nil && silent[addr] {
					continue
				}
			}
			kept = append(kept, e)
			left = left || e.Conditions.Ready == nil || *e.Conditions.Ready
		}
		out[i].Endpoints = kept
	}
	if !left {
		return list
	}
	return out
}

// planCut returns the connections to end: those to an API server that its Service has no longer. The servers of other Services
// may be on their way out in good order, with clients that they still answer.
func planCut(c change, have map[elementKey]elementValue, want *desired, service map[elementKey]elementValue) map[staleFlow]bool {
	out := map[staleFlow]bool{}
	for _, key := range c.Remove {
		if _, own := service[key]; !own || key.At.Proto != nft.ProtocolTCP || key.Map != mapEndpoints && key.Map != mapNodePortTargets {
			continue
		}
		if old := have[key].To; !want.hasEndpoint(key, old) {
			out[staleFlow{key.At, old}] = true
		}
	}
	return out
}

// cut ends connections: their clients are told where that can be done, and what the kernel tracks of them goes, so that a packet
// which a client sends on one is answered by another server, which refuses it.
func (p *Proxy) cut(ctx context.Context, lost map[staleFlow]bool) error {
	if len(lost) == 0 {
		return nil
	}
	var clients []Connection
	found := func(flow *netlink.ConntrackFlow) bool {
		at := frontend{IP: toAddr(flow.Forward.DstIP), Proto: flow.Forward.Protocol, Port: flow.Forward.DstPort}
		if at.Proto != nft.ProtocolTCP || !matches(lost, at, endpoint{toAddr(flow.Reverse.SrcIP), flow.Reverse.SrcPort}) {
			return false
		}
		clients = append(clients, Connection{
			Client: netip.AddrPortFrom(toAddr(flow.Forward.SrcIP), flow.Forward.SrcPort), Server: netip.AddrPortFrom(at.IP, at.Port),
		})
		return true
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, matching(found)); err != nil {
		return fmt.Errorf("deleting tracked connections to servers that are gone: %w", err)
	}
	if len(clients) == 0 {
		return nil
	}
	p.log.Info("connections to an API server that does not answer are cut", "count", len(clients))
	if p.opts.Reset == nil {
		return nil
	}
	if err := p.opts.Reset(ctx, clients); err != nil && !errors.Is(err, context.Canceled) {
		p.log.Warn("clients hear with their next packet that their server is gone", "error", err)
	}
	return nil
}

// matching is a filter of tracked connections.
type matching func(*netlink.ConntrackFlow) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (m matching) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool { return m(flow) }

// isAPIServers says whether a Service is that of the API servers.
func isAPIServers(svc *corev1.Service) bool {
	return svc.Name == apiServers().Name && svc.Namespace == apiServers().Namespace
}
