package server

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"gantry.dev/gantry/internal/network/policy"
)

// policyDrops tells what network policies dropped on this node. The kernel is asked when somebody scrapes.
type policyDrops struct {
	policies *policy.Enforcer
	packets  *prometheus.Desc
}

// registerPolicyDrops adds the counters of dropped packets.
func registerPolicyDrops(registry *prometheus.Registry, policies *policy.Enforcer) error {
	drops := policyDrops{policies: policies, packets: prometheus.NewDesc("gantry_network_policy_dropped_packets_total",
		"Packets that network policies dropped on this node since their rules were written.", []string{"direction"}, nil)}
	if err := registry.Register(drops); err != nil {
		return fmt.Errorf("registering the metrics of network policies: %w", err)
	}
	return nil
}

// Describe implements prometheus.Collector.
func (p policyDrops) Describe(out chan<- *prometheus.Desc) { out <- p.packets }

// Collect implements prometheus.Collector. What cannot be read is left out: other metrics must not fail for it.
func (p policyDrops) Collect(out chan<- prometheus.Metric) {
	drops, err := p.policies.Dropped()
	if err != nil {
		return
	}
	out <- prometheus.MustNewConstMetric(p.packets, prometheus.CounterValue, float64(drops.Ingress), "ingress")
	out <- prometheus.MustNewConstMetric(p.packets, prometheus.CounterValue, float64(drops.Egress), "egress")
}
