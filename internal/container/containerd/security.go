package containerd

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry.dev/gantry/internal/container"
)

// defaultCapabilities is what a container has unless it says otherwise. Source: the CRI's
// and Docker's default set.
func defaultCapabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// maskedPaths are hidden from containers. Source: k8s.io/kubernetes/pkg/securitycontext,
// which the CRI takes over.
func maskedPaths() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
}

// readonlyPaths cannot be written by containers. Source: as for maskedPaths.
func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// mergeCapabilities settles the capabilities of a container. "All" are all that this
// process itself has: more cannot be given.
func mergeCapabilities(sec container.Security) ([]string, error) {
	if sec.Privileged {
		return ownCapabilities()
	}
	set := map[string]bool{}
	if !slices.ContainsFunc(sec.DropCapabilities, isAll) {
		for _, name := range defaultCapabilities() {
			set[name] = true
		}
	}
	if slices.ContainsFunc(sec.AddCapabilities, isAll) {
		own, err := ownCapabilities()
		if err != nil {
			return nil, err
		}
		for _, name := range own {
			set[name] = true
		}
	}
	for _, name := range sec.DropCapabilities {
		delete(set, capabilityName(name))
	}
	known := cap.Known()
	for _, name := range sec.AddCapabilities {
		if isAll(name) {
			continue
		}
		if !slices.Contains(known, capabilityName(name)) {
			return nil, fmt.Errorf("capability %q is not known", name)
		}
		set[capabilityName(name)] = true
	}
	list := make([]string, 0, len(set))
	for name := range set {
		list = append(list, name)
	}
	slices.Sort(list)
	return list, nil
}

func isAll(name string) bool { return strings.EqualFold(strings.TrimPrefix(name, "CAP_"), "ALL") }

func capabilityName(name string) string {
	return "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
}

func ownCapabilities() ([]string, error) {
	own, err := cap.Current()
	if err != nil {
		return nil, fmt.Errorf("read own capabilities: %w", err)
	}
	return own, nil
}

// hasSysResource reports whether this process may lower its OOM score.
func hasSysResource() bool {
	own, err := cap.Current()
	return err == nil && slices.Contains(own, "CAP_SYS_RESOURCE")
}

// addDevices sets the devices of a container and what its cgroup lets it use.
func addDevices(spec *specs.Spec, cfg container.Config) error {
	if cfg.Security.Privileged {
		devices, err := oci.HostDevices()
		if err != nil {
			return fmt.Errorf("list devices of the node: %w", err)
		}
		spec.Linux.Devices = devices
		spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	} else {
		// runc adds null, zero, tty and the like.
		spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	}
	for _, d := range cfg.Devices {
		path, err := filepath.EvalSymlinks(d.HostPath)
		if err != nil {
			return fmt.Errorf("device %s: %w", d.HostPath, err)
		}
		device, err := oci.DeviceFromPath(path)
		if err != nil {
			return fmt.Errorf("device %s: %w", d.HostPath, err)
		}
		device.Path = d.ContainerPath
		if device.Path == "" {
			device.Path = d.HostPath
		}
		spec.Linux.Devices = slices.DeleteFunc(spec.Linux.Devices, func(other specs.LinuxDevice) bool { return other.Path == device.Path })
		spec.Linux.Devices = append(spec.Linux.Devices, *device)
		access := deviceAccess(d.Permissions)
		spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: device.Type, Major: &device.Major, Minor: &device.Minor, Access: access,
		})
	}
	return nil
}

// deviceAccess brings permissions into the order in which runc wants them; none are all.
func deviceAccess(permissions string) string {
	access := ""
	for _, kind := range []string{"r", "w", "m"} {
		if permissions == "" || strings.Contains(permissions, kind) {
			access += kind
		}
	}
	return access
}

// addHooks sets the programs that run at stages of the container's life.
func addHooks(spec *specs.Spec, hooks []container.Hook) error {
	if len(hooks) == 0 {
		return nil
	}
	spec.Hooks = &specs.Hooks{}
	stages := map[string]*[]specs.Hook{
		"prestart": &spec.Hooks.Prestart, "createRuntime": &spec.Hooks.CreateRuntime, "createContainer": &spec.Hooks.CreateContainer, //nolint:staticcheck // old CDI files use prestart
		"startContainer": &spec.Hooks.StartContainer, "poststart": &spec.Hooks.Poststart, "poststop": &spec.Hooks.Poststop,
	}
	for _, h := range hooks {
		stage, ok := stages[h.Stage]
		if !ok {
			return fmt.Errorf("hook %s: stage %q is not known", h.Path, h.Stage)
		}
		*stage = append(*stage, specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: h.TimeoutSeconds})
	}
	return nil
}

// addSeccomp sets the system call filter. It comes after the capabilities, which the
// built-in profile looks at.
func addSeccomp(spec *specs.Spec, sec container.Security) error {
	profile := strings.TrimPrefix(sec.Seccomp, "localhost/")
	switch {
	case sec.Privileged, profile == "", profile == "unconfined":
		return nil
	case profile == "runtime":
		spec.Linux.Seccomp = seccomp.DefaultProfile(spec)
		return nil
	}
	data, err := os.ReadFile(profile)
	if err != nil {
		return fmt.Errorf("read seccomp profile: %w", err)
	}
	spec.Linux.Seccomp = &specs.LinuxSeccomp{}
	if err := json.Unmarshal(data, spec.Linux.Seccomp); err != nil {
		return fmt.Errorf("read seccomp profile %s: %w", profile, err)
	}
	return nil
}
