package agent

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/agent/agenttest"
)

// BenchmarkPodStart measures from a pod's creation to its Running status with a runtime that
// takes no time: what the agent itself adds to a start.
func BenchmarkPodStart(b *testing.B) {
	api, dir := agenttest.NewAPI(), b.TempDir()
	a, err := New(Parts{Client: api, Informers: api, Runtime: agenttest.NewRuntime(), Images: &agenttest.Images{}, Network: &agenttest.Network{}, Volumes: agenttest.Volumes{}},
		Options{NodeName: "node-1", NodeIPs: []string{"192.0.2.1"}, PodsDir: dir + "/pods", LogDir: dir + "/log", MaxPods: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	ranges := []string{"10.1.0.0/16"}
	a.podCIDRs.Store(&ranges)
	a.cidrs.Do(func() { close(a.cidrSet) })
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		pod := newPod(fmt.Sprintf("p%d", i))
		if err := api.Create(ctx, pod); err != nil {
			b.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Microsecond) {
			var now corev1.Pod
			if err := api.Get(ctx, client.ObjectKeyFromObject(pod), &now); err == nil && now.Status.Phase == corev1.PodRunning {
				break
			}
			if time.Now().After(deadline) {
				b.Fatal("the pod does not run")
			}
		}
	}
}
