package agent

import (
	"bufio"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"gantry.dev/gantry/internal/agent/eviction"
	"gantry.dev/gantry/internal/container"
)

type containerImage = container.Image

// detectCapacity asks the kernel what the machine has.
func detectCapacity(opts Options) corev1.ResourceList {
	list := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(memoryInfo()["MemTotal"], resource.BinarySI),
	}
	if _, capacity, err := opts.DiskUsage(existing(opts.PodsDir)); err == nil {
		list[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(capacity, resource.BinarySI)
	}
	entries, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	for _, entry := range entries {
		sizeKB, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(entry), "hugepages-"), "kB"), 10, 64)
		count, err2 := readInt(filepath.Join(entry, "nr_hugepages"))
		if err != nil || err2 != nil {
			continue
		}
		size := resource.NewQuantity(sizeKB<<10, resource.BinarySI)
		list[corev1.ResourceName(corev1.ResourceHugePagesPrefix+size.String())] = *resource.NewQuantity(count*sizeKB<<10, resource.BinarySI)
	}
	return list
}

// existing is the nearest folder above path that is there.
func existing(path string) string {
	for path != "/" && path != "." {
		if _, err := os.Stat(path); err == nil {
			return path
		}
		path = filepath.Dir(path)
	}
	return path
}

func readInt(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// memoryInfo reads /proc/meminfo in bytes.
func memoryInfo() map[string]int64 {
	info := map[string]int64{}
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return info
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
			if len(fields) > 1 {
				n <<= 10
			}
			info[name] = n
		}
	}
	return info
}

// diskUsage is the default of Options.DiskUsage.
func diskUsage(path string) (used, capacity int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, 0, err
	}
	capacity = int64(fs.Blocks) * fs.Bsize
	return capacity - int64(fs.Bavail)*fs.Bsize, capacity, nil
}

// allocatable is what pods may have: the capacity without what is reserved and what eviction
// keeps free.
func (a *Agent) allocatable() corev1.ResourceList {
	list := maps.Clone(a.capacity)
	list[corev1.ResourcePods] = *resource.NewQuantity(int64(a.opts.MaxPods), resource.DecimalSI)
	for _, taken := range []corev1.ResourceList{a.opts.Reserved, eviction.Reserved(a.opts.Eviction.Thresholds, a.capacity)} {
		for name, reserved := range taken {
			q, ok := list[name]
			if !ok {
				continue
			}
			left := q.DeepCopy()
			left.Sub(reserved)
			if left.Sign() < 0 {
				left = *resource.NewQuantity(0, q.Format)
			}
			list[name] = left
		}
	}
	return list
}

// nodeInfo describes the machine; what Options give wins.
func (a *Agent) nodeInfo() corev1.NodeSystemInfo {
	info := a.opts.NodeInfo
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	first := func(paths ...string) string {
		for _, p := range paths {
			if text, err := os.ReadFile(p); err == nil && strings.TrimSpace(string(text)) != "" {
				return strings.TrimSpace(string(text))
			}
		}
		return ""
	}
	set(&info.MachineID, first("/etc/machine-id", "/var/lib/dbus/machine-id"))
	set(&info.SystemUUID, first("/sys/class/dmi/id/product_uuid", "/etc/machine-id"))
	set(&info.BootID, first("/proc/sys/kernel/random/boot_id"))
	set(&info.KernelVersion, first("/proc/sys/kernel/osrelease"))
	set(&info.OSImage, osImage(first("/etc/os-release")))
	set(&info.ContainerRuntimeVersion, "containerd://2.3.7")
	set(&info.KubeletVersion, "v1.36.3")
	set(&info.OperatingSystem, runtime.GOOS)
	set(&info.Architecture, runtime.GOARCH)
	if info.Swap == nil {
		if total := memoryInfo()["SwapTotal"]; total > 0 {
			info.Swap = &corev1.NodeSwapStatus{Capacity: &total}
		}
	}
	return info
}

func osImage(release string) string {
	for line := range strings.Lines(release) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"`)
		}
	}
	return "Linux"
}
