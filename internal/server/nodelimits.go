package server

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"gantry.dev/gantry/internal/agent"
	"gantry.dev/gantry/internal/agent/eviction"
	"gantry.dev/gantry/internal/agent/logind"
	"gantry.dev/gantry/internal/config"
)

// protectedScore makes the kernel kill this process, and those it starts besides containers,
// only when nothing else is left. Source: the kubelet's own score.
const protectedScore = "-999"

// setNodeLimits fills in what the settings say about the node's resources.
func setNodeLimits(opts *agent.Options, c config.Node, logger *slog.Logger) error {
	hard := c.EvictionHard
	if hard == nil {
		hard = eviction.DefaultHard()
	}
	thresholds, err := eviction.Parse(hard, c.EvictionSoft, c.EvictionSoftGrace, c.EvictionReclaim)
	if err != nil {
		return fmt.Errorf("the eviction- settings: %w", err)
	}
	opts.Eviction = agent.Eviction{Thresholds: thresholds, Transition: c.EvictionTransition, MaxGrace: c.EvictionMaxGrace}
	opts.MaxPods, opts.PodPIDs, opts.CgroupRoot = c.MaxPods, max(c.PodMaxPIDs, 0), c.CgroupRoot
	opts.ImageHighPercent, opts.ImageLowPercent, opts.ImageMinAge = c.ImageHighPercent, c.ImageLowPercent, c.ImageMinAge
	opts.LogMaxBytes, opts.LogMaxFiles = c.LogMaxBytes, c.LogMaxFiles
	opts.Reserved = corev1.ResourceList{}
	for _, reserved := range []map[string]string{c.SystemReserved, c.KubeReserved} {
		for name, text := range reserved {
			q, err := resource.ParseQuantity(text)
			if err != nil {
				return fmt.Errorf("reading the reserved %s: %w", name, err)
			}
			total := opts.Reserved[corev1.ResourceName(name)]
			total.Add(q)
			opts.Reserved[corev1.ResourceName(name)] = total
		}
	}
	opts.Shutdown.Classes = shutdownClasses(c)
	opts.Shutdown.Watch = logind.New(logind.Options{Logger: logger}).Watch
	return nil
}

func shutdownClasses(c config.Node) []agent.ShutdownClass {
	if len(c.ShutdownByPriority) == 0 {
		return agent.ShutdownClasses(c.ShutdownGrace, c.ShutdownCriticalGrace)
	}
	classes := make([]agent.ShutdownClass, 0, len(c.ShutdownByPriority))
	for priority, grace := range c.ShutdownByPriority {
		classes = append(classes, agent.ShutdownClass{Priority: priority, Grace: grace.Round(time.Second)})
	}
	return classes
}

// protectProcess lowers this process's score for the kernel's choice when memory runs out; shims
// inherit it. Without the capability for that everything works, less safely.
func protectProcess(logger *slog.Logger) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(protectedScore), 0o644); err != nil {
		logger.Debug("the kernel does not let Gantry protect itself from being killed for memory", "error", err)
	}
}
