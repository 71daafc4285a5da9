package node

import corev1 "k8s.io/api/core/v1"

// How much of a zone is in trouble. Source: upstream's node lifecycle controller.
type disruption int

const (
	disruptionNone disruption = iota
	disruptionPartial
	disruptionFull
)

// The share of a zone's nodes, in percent, and the number of them that must not be ready for it to count as disrupted,
// and the number of nodes from which a disrupted zone is large. Source: kube-controller-manager's defaults.
const (
	unhealthyPercent = 55
	unhealthyLeast   = 3
	largeZone        = 51
)

// zoneOf is the failure domain of a node, "" if none is known.
func zoneOf(node *corev1.Node) string {
	region, zone := node.Labels[corev1.LabelTopologyRegion], node.Labels[corev1.LabelTopologyZone]
	if region == "" && zone == "" {
		return ""
	}
	return region + "\x00" + zone
}

// zoneCount is how many nodes a zone has, and how many of them are ready.
type zoneCount struct{ nodes, ready int }

func (z zoneCount) state() disruption {
	unready := z.nodes - z.ready
	switch {
	case z.ready == 0 && unready > 0:
		return disruptionFull
	case unready >= unhealthyLeast && 100*unready >= unhealthyPercent*z.nodes:
		return disruptionPartial
	}
	return disruptionNone
}

// eviction is what may be done to the pods of a node that is not ready.
type eviction int

const (
	evictNever eviction = iota // also those that were begun stop
	evictNoMore
	evictSlowly
	evictNow
)

// planZone says what may be done in a zone: nothing when all zones are down, because then it is this side that is
// broken; no more, or slowly in a large zone, when most of the zone is down; and all when the zone is well, or is down
// as a whole while others are not.
func planZone(zones map[string]zoneCount, zone string) eviction {
	down := true
	for _, z := range zones {
		down = down && (z.nodes == 0 || z.state() == disruptionFull)
	}
	own := zones[zone]
	switch {
	case down:
		return evictNever
	case own.state() != disruptionPartial:
		return evictNow
	case own.nodes >= largeZone:
		return evictSlowly
	}
	return evictNoMore
}
