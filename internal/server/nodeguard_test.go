package server

import (
	"slices"
	"testing"
)

func TestNodeSubresources(t *testing.T) {
	for path, want := range map[string][]string{
		"/stats/summary": {"stats"}, "/metrics": {"metrics"}, "/metrics/cadvisor": {"metrics"}, "/metricsx": {"proxy"},
		"/pods": {"pods", "proxy"}, "/runningpods/": {"pods", "proxy"}, "/healthz": {"healthz", "proxy"}, "/healthz/syncloop": {"healthz", "proxy"},
		"/exec/a/b/c": {"proxy"}, "/logs/": {"log"}, "/containerLogs/a/b/c": {"proxy"}, "/": {"proxy"},
	} {
		if got := nodeSubresources(path); !slices.Equal(got, want) {
			t.Errorf("nodeSubresources(%q) = %v, want %v", path, got, want)
		}
	}
}
