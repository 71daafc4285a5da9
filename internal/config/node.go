package config

import (
	"path"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Node is how much of the machine pods get and what happens when it runs short. Names and meaning
// are those of the kubelet's flags and configuration.
type Node struct {
	MaxPods        int
	PodMaxPIDs     int64             // -1 is no limit
	SystemReserved map[string]string // resource to amount
	KubeReserved   map[string]string
	CgroupRoot     string // cgroup under which kubepods lies

	EvictionHard       map[string]string // signal to amount or share; nil: the defaults
	EvictionSoft       map[string]string
	EvictionSoftGrace  map[string]string // signal to duration
	EvictionReclaim    map[string]string // signal to amount or share
	EvictionTransition time.Duration
	EvictionMaxGrace   time.Duration

	ImageHighPercent, ImageLowPercent int
	ImageMinAge                       time.Duration
	LogMaxBytes                       int64
	LogMaxFiles                       int

	ShutdownGrace, ShutdownCriticalGrace time.Duration
	ShutdownByPriority                   map[int32]time.Duration

	args []string
}

// Args are the settings that were given, as flags.
func (n *Node) Args() []string { return n.args }

// Names of the keys of Node.
const (
	KeyMaxPods            = "max-pods"
	KeyPodMaxPIDs         = "pod-max-pids"
	KeySystemReserved     = "system-reserved"
	KeyKubeReserved       = "kube-reserved"
	KeyCgroupRoot         = "cgroup-root"
	KeyEvictionHard       = "eviction-hard"
	KeyEvictionSoft       = "eviction-soft"
	KeyEvictionSoftGrace  = "eviction-soft-grace-period"
	KeyEvictionReclaim    = "eviction-minimum-reclaim"
	KeyEvictionTransition = "eviction-pressure-transition-period"
	KeyEvictionMaxGrace   = "eviction-max-pod-grace-period"
	KeyImageHigh          = "image-gc-high-threshold"
	KeyImageLow           = "image-gc-low-threshold"
	KeyImageMinAge        = "minimum-image-ttl-duration"
	KeyLogMaxSize         = "container-log-max-size"
	KeyLogMaxFiles        = "container-log-max-files"
	KeyShutdownGrace      = "shutdown-grace-period"
	KeyShutdownCritical   = "shutdown-grace-period-critical-pods"
	KeyShutdownByPriority = "shutdown-grace-period-by-pod-priority"
)

// nodeKeys are the settings of Node.
func nodeKeys() []Key {
	number := func(name, byDefault, usage string, low, high int, at func(*Node) *int) Key {
		return nodeKey(Key{Name: name, Default: byDefault, Usage: usage}, func(n *Node, v []string) (err error) {
			*at(n), err = within(v[0], low, high)
			return err
		})
	}
	duration := func(name, byDefault, usage string, at func(*Node) *time.Duration) Key {
		return nodeKey(Key{Name: name, Default: byDefault, Usage: usage}, func(n *Node, v []string) (err error) {
			*at(n), err = span(v[0])
			return err
		})
	}
	pairs := func(name, separator, example, usage string, at func(*Node) *map[string]string) Key {
		return nodeKey(Key{Name: name, List: true, Usage: usage}, func(n *Node, v []string) (err error) {
			*at(n), err = split(v, separator, example)
			return err
		})
	}
	return []Key{
		number(KeyMaxPods, "110", "pods that this node runs at most", 1, 10000, func(n *Node) *int { return &n.MaxPods }),
		nodeKey(Key{Name: KeyPodMaxPIDs, Default: "4096", Usage: "processes and threads of a pod at most; -1 for no limit"}, setPodMaxPIDs),
		nodeKey(Key{Name: KeySystemReserved, List: true, Usage: "RESOURCE=AMOUNT that the system keeps from pods, such as memory=500Mi; may be repeated"}, reserve(func(n *Node) *map[string]string { return &n.SystemReserved })),
		nodeKey(Key{Name: KeyKubeReserved, List: true, Usage: "RESOURCE=AMOUNT that Gantry keeps from pods; may be repeated"}, reserve(func(n *Node) *map[string]string { return &n.KubeReserved })),
		nodeKey(Key{Name: KeyCgroupRoot, Default: "/", Usage: "cgroup below which those of pods are made"}, setCgroupRoot),
		pairs(KeyEvictionHard, "<", "memory.available<100Mi", "SIGNAL<AMOUNT below which a pod is ended at once; replaces the default: memory.available<100Mi, nodefs.available<10%, nodefs.inodesFree<5%, imagefs.available<15%, imagefs.inodesFree<5%", func(n *Node) *map[string]string { return &n.EvictionHard }),
		pairs(KeyEvictionSoft, "<", "memory.available<500Mi", "SIGNAL<AMOUNT below which a pod is ended after a grace period", func(n *Node) *map[string]string { return &n.EvictionSoft }),
		pairs(KeyEvictionSoftGrace, "=", "memory.available=90s", "SIGNAL=DURATION for which a soft threshold must be met", func(n *Node) *map[string]string { return &n.EvictionSoftGrace }),
		pairs(KeyEvictionReclaim, "=", "nodefs.available=1Gi", "SIGNAL=AMOUNT that is freed beyond a threshold once it was met", func(n *Node) *map[string]string { return &n.EvictionReclaim }),
		duration(KeyEvictionTransition, "5m0s", "how long a pressure condition outlives its cause", func(n *Node) *time.Duration { return &n.EvictionTransition }),
		nodeKey(Key{Name: KeyEvictionMaxGrace, Default: "0", Usage: "seconds that a pod gets at most at a soft threshold"}, setEvictionMaxGrace),
		number(KeyImageHigh, "85", "percent of the disk from which unused images are removed", 0, 100, func(n *Node) *int { return &n.ImageHighPercent }),
		number(KeyImageLow, "80", "percent of the disk at which that stops", 0, 100, func(n *Node) *int { return &n.ImageLowPercent }),
		duration(KeyImageMinAge, "2m0s", "how long an unused image stays at least", func(n *Node) *time.Duration { return &n.ImageMinAge }),
		nodeKey(Key{Name: KeyLogMaxSize, Default: "10Mi", Usage: "size at which a container's log is rotated"}, setLogMaxSize),
		number(KeyLogMaxFiles, "5", "files of a container's log at most", 2, 1000, func(n *Node) *int { return &n.LogMaxFiles }),
		duration(KeyShutdownGrace, "0s", "how long pods get in all when the machine shuts down; 0s: it does not wait for them", func(n *Node) *time.Duration { return &n.ShutdownGrace }),
		duration(KeyShutdownCritical, "0s", "part of that for critical pods, which end last", func(n *Node) *time.Duration { return &n.ShutdownCriticalGrace }),
		nodeKey(Key{Name: KeyShutdownByPriority, List: true, Usage: "PRIORITY=SECONDS that pods of a priority and above get when the machine shuts down; may be repeated"}, setShutdownByPriority),
	}
}

// nodeKey makes a key that also remembers what was given.
func nodeKey(k Key, set func(*Node, []string) error) Key {
	k.set = func(c *Config, values []string) error {
		if c.Given(k.Name) {
			for _, v := range values {
				c.Node.args = append(c.Node.args, "--"+k.Name+"="+v)
			}
		}
		return set(&c.Node, values)
	}
	return k
}

func within(text string, low, high int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, wrong("want a whole number from "+strconv.Itoa(low)+" to "+strconv.Itoa(high), "%q is not such a number", text)
	}
	return n, nil
}

func span(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, wrong("want a duration, such as 90s or 5m", "%q is not a duration", text)
	}
	return d, nil
}

// split reads NAME, separator, VALUE entries, several to a value behind commas.
func split(values []string, separator, example string) (map[string]string, error) {
	found := map[string]string{}
	for _, entry := range entries(values) {
		name, value, ok := strings.Cut(entry, separator)
		if !ok || strings.TrimSpace(name) == "" || strings.TrimSpace(value) == "" {
			return nil, wrong("want entries such as "+example, "%q is not such an entry", entry)
		}
		found[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return found, nil
}

func reserve(at func(*Node) *map[string]string) func(*Node, []string) error {
	return func(n *Node, values []string) error {
		found, err := split(values, "=", "memory=500Mi")
		if err != nil {
			return err
		}
		for name, amount := range found {
			switch name {
			case "cpu", "memory", "ephemeral-storage":
			default:
				return wrong("want cpu, memory or ephemeral-storage", "%q cannot be reserved", name)
			}
			if q, err := resource.ParseQuantity(amount); err != nil || q.Sign() < 0 {
				return wrong("want an amount, such as 500m of cpu or 1Gi of memory", "%q is not an amount of %s", amount, name)
			}
		}
		*at(n) = found
		return nil
	}
}

func setPodMaxPIDs(n *Node, v []string) error {
	limit, err := strconv.ParseInt(v[0], 10, 64)
	if err != nil || limit < -1 || limit == 0 {
		return wrong("want a whole number of 1 or more, or -1 for no limit", "%q is not such a number", v[0])
	}
	n.PodMaxPIDs = limit
	return nil
}

func setCgroupRoot(n *Node, v []string) error {
	if !path.IsAbs(v[0]) || path.Clean(v[0]) != v[0] {
		return wrong("want an absolute path below the cgroup mount, such as / or /gantry", "%q is not such a path", v[0])
	}
	n.CgroupRoot = v[0]
	return nil
}

func setEvictionMaxGrace(n *Node, v []string) error {
	seconds, err := count(v[0])
	if err != nil {
		return err
	}
	n.EvictionMaxGrace = time.Duration(seconds) * time.Second
	return nil
}

func setLogMaxSize(n *Node, v []string) error {
	q, err := resource.ParseQuantity(v[0])
	if err != nil || q.Value() < 4<<10 {
		return wrong("want a size of 4Ki or more, such as 10Mi", "%q is not such a size", v[0])
	}
	n.LogMaxBytes = q.Value()
	return nil
}

func setShutdownByPriority(n *Node, v []string) error {
	const example = "10000=30"
	found, err := split(v, "=", example)
	if err != nil {
		return err
	}
	n.ShutdownByPriority = map[int32]time.Duration{}
	for priority, text := range found {
		p, err := strconv.ParseInt(priority, 10, 32)
		seconds, err2 := strconv.ParseInt(text, 10, 32)
		if err != nil || err2 != nil || seconds < 0 {
			return wrong("want a priority and seconds, such as "+example, "%q is not such an entry", priority+"="+text)
		}
		n.ShutdownByPriority[int32(p)] = time.Duration(seconds) * time.Second
	}
	return nil
}

// checkNode compares the settings of Node with each other.
func (c *Config) checkNode(add func(key, want, format string, args ...any)) {
	n := &c.Node
	if n.ImageLowPercent > n.ImageHighPercent {
		add(KeyImageLow, "give a lower number than "+KeyImageHigh, "%d %% is more than %s, %d %%", n.ImageLowPercent, KeyImageHigh, n.ImageHighPercent)
	}
	if n.ShutdownCriticalGrace > n.ShutdownGrace {
		add(KeyShutdownCritical, "give a part of "+KeyShutdownGrace, "%s is more than %s, %s", n.ShutdownCriticalGrace, KeyShutdownGrace, n.ShutdownGrace)
	}
	if len(n.ShutdownByPriority) > 0 && n.ShutdownGrace > 0 {
		add(KeyShutdownByPriority, "give one of the two", "%s excludes %s", KeyShutdownByPriority, KeyShutdownGrace)
	}
	for name := range n.EvictionSoft {
		if _, ok := n.EvictionSoftGrace[name]; !ok {
			add(KeyEvictionSoft, "give "+KeyEvictionSoftGrace+" for it too", "the soft threshold of %s has no grace period", name)
		}
	}
}
