package agent

import (
	"testing"

	"gantry.dev/gantry/internal/agent/agenttest"
	"gantry.dev/gantry/internal/agent/eviction"
)

// BenchmarkLook is what a node that lacks nothing pays once a second.
func BenchmarkLook(b *testing.B) {
	thresholds, err := eviction.Parse(map[string]string{"memory.available": "1Mi", "nodefs.available": "1Mi"}, nil, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	api := agenttest.NewAPI()
	a, err := New(Parts{Client: api, Informers: api, Runtime: agenttest.NewRuntime(), Images: &agenttest.Images{}, Network: &agenttest.Network{}, Volumes: agenttest.Volumes{}},
		Options{NodeName: "node-1", NodeIPs: []string{"192.0.2.1"}, PodsDir: dir + "/pods", LogDir: dir + "/log", Eviction: Eviction{Thresholds: thresholds}})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if a.pressure.look(b.Context(), false) {
			b.Fatal("this machine is short of something")
		}
	}
}
