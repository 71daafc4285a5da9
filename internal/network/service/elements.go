package service

import (
	"fmt"
	"slices"
	"time"

	"gantry.dev/gantry/internal/network/nft"
)

// mapName is one of the table's maps and sets.
type mapName string

// The maps. Those with "nodeports" have no address in their keys.
const (
	mapServices         mapName = "services"           // frontend : goto chain
	mapNodePorts        mapName = "nodeports"          //
	mapInsideServices   mapName = "inside-services"    // the same, for clients inside of the cluster
	mapInsideNodePorts  mapName = "inside-nodeports"   //
	mapEndpoints        mapName = "endpoints"          // frontend . slot : endpoint
	mapNodePortTargets  mapName = "nodeport-endpoints" //
	mapNoEndpoints      mapName = "no-endpoints"       // frontend : goto reject or drop
	mapNodePortsNone    mapName = "nodeports-none"     //
	mapHairpin          mapName = "hairpin"            // endpoint address . the same
	mapRemember         mapName = "remember"           // frontend : goto the chain that remembers the client
	mapRememberNodePort mapName = "remember-nodeport"  //
	mapClients          mapName = "clients"            // client . address . protocol . port : endpoint; filled by the kernel
)

// chainSpec names a chain that picks one of a run of slots.
type chainSpec struct {
	NodePort   bool
	Slots      span
	Masquerade bool
	Affinity   bool
}

// String is the chain's name in the table.
func (c chainSpec) String() string {
	kind := "ip"
	if c.NodePort {
		kind = "np"
	}
	name := fmt.Sprintf("%s-%d", kind, c.Slots.Count)
	if c.Slots.Offset > 0 {
		name += fmt.Sprintf("-from-%d", c.Slots.Offset)
	}
	if c.Masquerade {
		name += "-masq"
	}
	if c.Affinity {
		name += "-stay"
	}
	return name
}

// rememberChain is the name of the chain that remembers clients for so long.
func rememberChain(stay time.Duration) string {
	return fmt.Sprintf("remember-%d", int(stay.Seconds()))
}

// verdictReject and verdictDrop are what happens to a frontend without endpoints.
const (
	verdictReject = "reject"
	verdictDrop   = "drop"
)

// elementKey is one element of a map; Slot is -1 where the map has none.
type elementKey struct {
	Map  mapName
	At   frontend // of mapHairpin only IP counts
	Slot int
}

// elementValue is what the element holds: a chain or verdict, or an endpoint.
type elementValue struct {
	Chain   chainSpec
	Verdict string        // overrides Chain
	Stay    time.Duration // of mapRemember
	To      endpoint
}

// elements turns a plan into map elements.
func (p servicePlan) elements() map[elementKey]elementValue {
	out := map[elementKey]elementValue{}
	for _, f := range p.Frontends {
		nodePort := !f.IP.IsValid()
		names := [5]mapName{mapServices, mapInsideServices, mapEndpoints, mapNoEndpoints, mapRemember}
		if nodePort {
			names = [5]mapName{mapNodePorts, mapInsideNodePorts, mapNodePortTargets, mapNodePortsNone, mapRememberNodePort}
		}
		chain := chainSpec{NodePort: nodePort, Slots: f.All, Masquerade: f.Masquerade, Affinity: f.Affinity > 0}
		if f.Affinity > 0 && len(f.Slots) > 0 {
			out[elementKey{names[4], f.frontend, -1}] = elementValue{Stay: f.Affinity}
		}
		switch {
		case f.All.Count > 0:
			out[elementKey{names[0], f.frontend, -1}] = elementValue{Chain: chain}
		case f.Drop:
			out[elementKey{names[3], f.frontend, -1}] = elementValue{Verdict: verdictDrop}
		default:
			out[elementKey{names[3], f.frontend, -1}] = elementValue{Verdict: verdictReject}
		}
		if f.Inside.Count > 0 {
			chain.Slots = f.Inside
			out[elementKey{names[1], f.frontend, -1}] = elementValue{Chain: chain}
		}
		for i, to := range f.Slots {
			out[elementKey{names[2], f.frontend, i}] = elementValue{To: to}
		}
	}
	for _, addr := range p.Hairpin {
		out[elementKey{mapHairpin, frontend{IP: addr}, -1}] = elementValue{}
	}
	return out
}

// claim is one service's wish for an element.
type claim struct {
	service string
	value   elementValue
}

// desired is the sum of all services' elements. Two services may wish for the same element
// (an external address and port in both): the one whose name comes first has it, and when it
// goes the other gets it.
type desired struct {
	byService map[string]map[elementKey]elementValue
	claims    map[elementKey][]claim
}

func newDesired() *desired {
	return &desired{byService: map[string]map[elementKey]elementValue{}, claims: map[elementKey][]claim{}}
}

// set replaces what a service wishes for (nil: nothing) and adds the keys that it held or
// holds to touched.
func (d *desired) set(service string, want map[elementKey]elementValue, touched map[elementKey]bool) {
	for key, old := range d.byService[service] {
		if now, ok := want[key]; ok && now == old {
			continue
		}
		rest := slices.DeleteFunc(d.claims[key], func(c claim) bool { return c.service == service })
		if len(rest) == 0 {
			delete(d.claims, key)
		} else {
			d.claims[key] = rest
		}
		touched[key] = true
	}
	for key, value := range want {
		if old, ok := d.byService[service][key]; ok && old == value {
			continue
		}
		list := append(d.claims[key], claim{service, value})
		slices.SortFunc(list, func(a, b claim) int {
			if a.service < b.service {
				return -1
			}
			return 1
		})
		d.claims[key] = list
		touched[key] = true
	}
	if len(want) == 0 {
		delete(d.byService, service)
	} else {
		d.byService[service] = want
	}
}

// value returns what the kernel should have for key.
func (d *desired) value(key elementKey) (elementValue, bool) {
	list := d.claims[key]
	if len(list) == 0 {
		return elementValue{}, false
	}
	return list[0].value, true
}

// change is one transaction: elements to remove, then elements to add.
type change struct {
	Remove []elementKey
	Add    map[elementKey]elementValue
}

func (c change) empty() bool { return len(c.Remove) == 0 && len(c.Add) == 0 }

// planChange compares what the kernel has with what it should have, for the touched keys.
func planChange(want *desired, have map[elementKey]elementValue, touched map[elementKey]bool) change {
	out := change{Add: map[elementKey]elementValue{}}
	for key := range touched {
		old, had := have[key]
		now, wanted := want.value(key)
		if had && wanted && old == now {
			continue
		}
		if had {
			out.Remove = append(out.Remove, key)
		}
		if wanted {
			out.Add[key] = now
		}
	}
	return out
}

// staleFlow is a kind of tracked UDP connection to forget: those to a frontend that were
// translated to an endpoint it has no longer, or not translated at all (the zero endpoint).
type staleFlow struct {
	At frontend
	To endpoint
}

// planStale returns the UDP flows that a change leaves behind: a client that goes on sending
// from one port would keep the lost endpoint for ever.
func planStale(c change, have map[elementKey]elementValue, want *desired) map[staleFlow]bool {
	out := map[staleFlow]bool{}
	for _, key := range c.Remove {
		if key.At.Proto != nft.ProtocolUDP || (key.Map != mapEndpoints && key.Map != mapNodePortTargets) {
			continue
		}
		old := have[key].To
		if !want.hasEndpoint(key, old) {
			out[staleFlow{key.At, old}] = true
		}
	}
	for key := range c.Add {
		if key.At.Proto == nft.ProtocolUDP && (key.Map == mapServices || key.Map == mapNodePorts) {
			out[staleFlow{At: key.At}] = true
		}
	}
	return out
}

// hasEndpoint reports whether the frontend of key still leads to the endpoint by any slot.
func (d *desired) hasEndpoint(key elementKey, to endpoint) bool {
	for key.Slot = 0; ; key.Slot++ {
		value, ok := d.value(key)
		if !ok {
			return false
		}
		if value.To == to {
			return true
		}
	}
}

// lostEndpoints returns the endpoints that the change takes from frontends which remember
// clients.
func lostEndpoints(c change, have map[elementKey]elementValue, want *desired) map[staleFlow]bool {
	out := map[staleFlow]bool{}
	for _, key := range c.Remove {
		if key.Map != mapEndpoints && key.Map != mapNodePortTargets {
			continue
		}
		entry := elementKey{mapRemember, key.At, -1}
		if key.Map == mapNodePortTargets {
			entry.Map = mapRememberNodePort
		}
		if have[entry].Stay > 0 && !want.hasEndpoint(key, have[key].To) {
			out[staleFlow{key.At, have[key].To}] = true
		}
	}
	return out
}
