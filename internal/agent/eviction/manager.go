package eviction

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Observation is how much of a signal's resource is left.
type Observation struct {
	Available, Capacity int64
	At                  time.Time // when it was measured
}

// Observations are what was measured, by signal.
type Observations map[Signal]Observation

// Decision is what follows from observations.
type Decision struct {
	// Conditions are the node's pressure conditions that are true, in the order of their names.
	Conditions []corev1.NodeConditionType
	// Starved are the thresholds that must be acted on now, the most urgent first. A threshold
	// that was acted on comes back only with a newer measurement.
	Starved []Threshold
}

// Manager keeps what must be remembered between observations. It is not safe for concurrent use.
type Manager struct {
	thresholds []Threshold
	transition time.Duration

	first map[Threshold]time.Time                // since when a threshold is met
	seen  map[corev1.NodeConditionType]time.Time // when a condition was last met
	met   []Threshold                            // met for their grace period and not yet resolved
	last  Observations
}

// NewManager makes a Manager. A condition stays true for transition after its thresholds are
// resolved.
func NewManager(thresholds []Threshold, transition time.Duration) *Manager {
	return &Manager{
		thresholds: thresholds,
		transition: transition,
		first:      map[Threshold]time.Time{},
		seen:       map[corev1.NodeConditionType]time.Time{},
		last:       Observations{},
	}
}

// Observe takes in measurements. A signal that was not measured counts as it was last.
func (m *Manager) Observe(now time.Time, observed Observations) Decision {
	merged := maps.Clone(m.last)
	maps.Copy(merged, observed)
	active := Met(m.thresholds, merged, false)
	for _, t := range Met(m.met, merged, true) { // not yet resolved: min reclaim
		if !slices.Contains(active, t) {
			active = append(active, t)
		}
	}
	first := map[Threshold]time.Time{}
	for _, t := range active {
		since, ok := m.first[t]
		if !ok {
			since = now
		}
		first[t] = since
		m.seen[t.Signal.Condition()] = now
	}
	m.first = first
	var decision Decision
	for condition, at := range m.seen {
		// A transition period of 0 still lets the condition show while it holds.
		if now.Sub(at) < m.transition || at.Equal(now) {
			decision.Conditions = append(decision.Conditions, condition)
		} else {
			delete(m.seen, condition)
		}
	}
	slices.Sort(decision.Conditions)
	m.met = nil
	for _, t := range active {
		if now.Sub(first[t]) < t.Grace {
			continue
		}
		m.met = append(m.met, t)
		if before, ok := m.last[t.Signal]; !ok || merged[t.Signal].At.After(before.At) {
			decision.Starved = append(decision.Starved, t)
		}
	}
	slices.SortStableFunc(decision.Starved, func(a, b Threshold) int { return urgency(a) - urgency(b) })
	m.last = merged
	return decision
}

// Near reports whether less than twice a threshold's value of memory or disk is left: then it
// is worth looking often.
func (m *Manager) Near(observed Observations) bool {
	for _, t := range m.thresholds {
		if o, ok := observed[t.Signal]; ok && o.Available < 2*t.Value.Of(o.Capacity) {
			return true
		}
	}
	return false
}

// Unmet are the thresholds of all that still are met after something was reclaimed.
func (m *Manager) Unmet(observed Observations) []Threshold {
	merged := maps.Clone(m.last)
	maps.Copy(merged, observed)
	return Met(m.thresholds, merged, true)
}

// Observations are the newest measurements of all signals.
func (m *Manager) Observations() Observations { return m.last }

// urgency ranks memory before all else.
func urgency(t Threshold) int {
	if t.Signal.Resource() == corev1.ResourceMemory {
		return 0
	}
	return 1
}

// Met returns the thresholds that are met; resolve adds what must be reclaimed beyond them.
func Met(thresholds []Threshold, observed Observations, resolve bool) []Threshold {
	var met []Threshold
	for _, t := range thresholds {
		o, ok := observed[t.Signal]
		if !ok {
			continue
		}
		limit := t.Value.Of(o.Capacity)
		if resolve {
			limit += t.MinReclaim.Of(o.Capacity)
		}
		if o.Available < limit {
			met = append(met, t)
		}
	}
	return met
}
