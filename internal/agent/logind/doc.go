// Package logind learns from systemd-logind that the machine shuts down, and holds that back
// while pods end, by a delay inhibitor (systemd.io, "Inhibitor Locks"). Start at Watcher.Watch.
package logind
