package config

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNode(t *testing.T) {
	c, err := load(t, []string{
		"--eviction-hard=memory.available<1Gi,nodefs.available<5%", "--eviction-soft=memory.available<2Gi", "--eviction-soft-grace-period=memory.available=90s",
		"--system-reserved=cpu=500m", "--system-reserved=memory=1Gi", "--pod-max-pids=-1", "--shutdown-grace-period-by-pod-priority=0=10,1000=20",
	}, []string{"GANTRY_MAX_PODS=20", "GANTRY_CONTAINER_LOG_MAX_SIZE=1Mi"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := c.Node
	if !maps.Equal(n.EvictionHard, map[string]string{"memory.available": "1Gi", "nodefs.available": "5%"}) ||
		n.EvictionSoft["memory.available"] != "2Gi" || n.EvictionSoftGrace["memory.available"] != "90s" || n.EvictionTransition != 5*time.Minute {
		t.Errorf("eviction %+v", n)
	}
	if !maps.Equal(n.SystemReserved, map[string]string{"cpu": "500m", "memory": "1Gi"}) || n.PodMaxPIDs != -1 || n.MaxPods != 20 || n.LogMaxBytes != 1<<20 || n.CgroupRoot != "/" {
		t.Errorf("resources %+v", n)
	}
	if !maps.Equal(n.ShutdownByPriority, map[int32]time.Duration{0: 10 * time.Second, 1000: 20 * time.Second}) {
		t.Errorf("shutdown %v", n.ShutdownByPriority)
	}
	if args := n.Args(); !slices.Contains(args, "--max-pods=20") || !slices.Contains(args, "--system-reserved=memory=1Gi") || slices.Contains(args, "--cgroup-root=/") {
		t.Errorf("the service keeps %q", args)
	}
	if c, err = load(t, nil, nil, nil); err != nil || c.Node.PodMaxPIDs != 4096 || c.Node.EvictionHard != nil || c.Node.Args() != nil {
		t.Errorf("the defaults are %+v, %v", c.Node, err)
	}
}

func TestNodeErrors(t *testing.T) {
	for name, tc := range map[string]struct{ arg, say string }{
		"threshold":        {"--eviction-hard=memory.available", "want entries such as memory.available<100Mi"},
		"no grace":         {"--eviction-soft=memory.available<1Gi", "has no grace period"},
		"reserved":         {"--kube-reserved=pods=3", "cannot be reserved"},
		"reserved amount":  {"--kube-reserved=cpu=much", "is not an amount of cpu"},
		"images":           {"--image-gc-low-threshold=90", "is more than image-gc-high-threshold"},
		"critical":         {"--shutdown-grace-period-critical-pods=10s", "is more than shutdown-grace-period"},
		"relative":         {"--cgroup-root=pods", "want an absolute path"},
		"no process":       {"--pod-max-pids=0", "is not such a number"},
		"one log":          {"--container-log-max-files=1", "from 2 to 1000"},
		"negative seconds": {"--shutdown-grace-period-by-pod-priority=0=-1", "is not such an entry"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := load(t, []string{tc.arg}, nil, nil); err == nil || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("load: %v, want %q", err, tc.say)
			}
		})
	}
}
