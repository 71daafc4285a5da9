package containerd

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry.dev/gantry/internal/container"
)

// defaultPath is the PATH of a container whose image sets none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// specInput is everything that an OCI spec is made from.
type specInput struct {
	state    string
	sandbox  container.Sandbox
	config   container.Config
	image    ocispec.Image
	accounts accounts
	cgroup   string
}

// buildSpec makes the OCI spec of a container.
func buildSpec(in specInput) (*specs.Spec, error) {
	args, err := mergeCommand(in.config, in.image.Config)
	if err != nil {
		return nil, err
	}
	user, err := resolveUser(in.config.Security, in.image.Config.User, in.accounts)
	if err != nil {
		return nil, err
	}
	capabilities, err := mergeCapabilities(in.config.Security)
	if err != nil {
		return nil, err
	}
	mounts, propagation, err := buildMounts(in)
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs", Readonly: in.config.Security.ReadOnlyRootfs},
		Process: &specs.Process{
			Terminal:        in.config.TTY,
			User:            user,
			Args:            args,
			Env:             mergeEnv(in),
			Cwd:             cmp.Or(in.config.WorkingDir, in.image.Config.WorkingDir, "/"),
			NoNewPrivileges: in.config.Security.NoNewPrivileges,
			ApparmorProfile: in.config.Security.AppArmor,
			OOMScoreAdj:     allowedOOMScore(in.config.Resources.OOMScoreAdj),
			Capabilities: &specs.LinuxCapabilities{
				Bounding: capabilities, Effective: capabilities, Permitted: capabilities,
			},
		},
		Mounts: mounts,
		Linux: &specs.Linux{
			CgroupsPath:       in.cgroup,
			Namespaces:        buildNamespaces(in),
			RootfsPropagation: propagation,
			Resources:         buildResources(in.config.Resources),
		},
	}
	if !in.config.Security.Privileged && !in.config.Security.UnmaskedProc {
		spec.Linux.MaskedPaths = maskedPaths()
		spec.Linux.ReadonlyPaths = readonlyPaths()
	}
	if err := addDevices(spec, in.config); err != nil {
		return nil, err
	}
	if err := addHooks(spec, in.config.Hooks); err != nil {
		return nil, err
	}
	if err := addSeccomp(spec, in.config.Security); err != nil {
		return nil, err
	}
	return spec, nil
}

// mergeCommand settles what is executed. Source: Kubernetes documentation, "Define a
// Command and Arguments for a Container": a command replaces entry point and arguments of
// the image, arguments alone replace the image's arguments.
func mergeCommand(cfg container.Config, img ocispec.ImageConfig) ([]string, error) {
	command, args := cfg.Command, cfg.Args
	if len(command) == 0 {
		command = img.Entrypoint
		if len(args) == 0 {
			args = img.Cmd
		}
	}
	merged := slices.Concat(command, args)
	if len(merged) == 0 || merged[0] == "" {
		return nil, errors.New("neither the pod nor the image says what to execute")
	}
	return merged, nil
}

// mergeEnv puts the pod's variables over the image's.
func mergeEnv(in specInput) []string {
	host := in.sandbox.Hostname
	if host == "" {
		host, _ = os.Hostname() // a pod in the node's own network has the node's name
	}
	var env []string
	index := map[string]int{}
	set := func(entry string) {
		key, _, _ := strings.Cut(entry, "=")
		if i, ok := index[key]; ok {
			env[i] = entry
			return
		}
		index[key] = len(env)
		env = append(env, entry)
	}
	set(defaultPath)
	set("HOSTNAME=" + host)
	if in.config.TTY {
		set("TERM=xterm")
	}
	for _, entry := range in.image.Config.Env {
		set(entry)
	}
	for _, entry := range in.config.Env {
		set(entry)
	}
	return env
}

// buildNamespaces lists the namespaces of a container: those of its sandbox by the files
// that hold them, its own, and none where it has the node's.
func buildNamespaces(in specInput) []specs.LinuxNamespace {
	sb := in.sandbox
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if sb.NetNSPath != "" {
		list = append(list, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: sb.NetNSPath})
	}
	if !sb.HostIPC {
		list = append(list, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: nsPath(in.state, sb.ID, ipcName)})
	}
	if !hostUTS(sb) {
		list = append(list, specs.LinuxNamespace{Type: specs.UTSNamespace, Path: nsPath(in.state, sb.ID, utsName)})
	}
	switch {
	case sb.HostPID:
	case sb.ShareProcs:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: nsPath(in.state, sb.ID, pidName)})
	default:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	if unifiedCgroups() && !in.config.Security.Privileged {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list
}

// buildMounts lists the mounts of a container and the propagation of its root. A mount of
// the pod replaces a default one at the same place.
func buildMounts(in specInput) ([]specs.Mount, string, error) {
	mode := "ro"
	if in.config.Security.Privileged {
		mode = "rw"
	}
	shm := "/dev/shm"
	if !in.sandbox.HostIPC {
		shm = nsPath(in.state, in.sandbox.ID, shmName)
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", mode}},
		{Destination: "/dev/shm", Type: "bind", Source: shm, Options: []string{"rbind", "rprivate", "rw"}},
	}
	propagation := ""
	for _, m := range in.config.Mounts {
		mount, err := bindMount(m)
		if err != nil {
			return nil, "", err
		}
		switch m.Propagation {
		case "rshared":
			propagation = "rshared"
		case "rslave":
			propagation = cmp.Or(propagation, "rslave")
		}
		mounts = slices.DeleteFunc(mounts, func(other specs.Mount) bool { return other.Destination == mount.Destination })
		mounts = append(mounts, mount)
	}
	// A mount must come before those inside it.
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int {
		return cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/"))
	})
	return mounts, propagation, nil
}

// bindMount converts one mount of the pod. A path that is missing on the node is made as a
// folder, which is what a hostPath volume without a type means.
func bindMount(m container.Mount) (specs.Mount, error) {
	if !filepath.IsAbs(m.HostPath) || m.ContainerPath == "" {
		return specs.Mount{}, fmt.Errorf("mount %q at %q: want absolute paths", m.HostPath, m.ContainerPath)
	}
	if _, err := os.Stat(m.HostPath); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(m.HostPath, 0o755); err != nil {
			return specs.Mount{}, fmt.Errorf("mount %s: %w", m.HostPath, err)
		}
	} else if err != nil {
		return specs.Mount{}, fmt.Errorf("mount %s: %w", m.HostPath, err)
	}
	options := []string{"rbind"}
	switch m.Propagation {
	case "", "private":
		options = append(options, "rprivate")
	case "rslave", "rshared":
		options = append(options, m.Propagation)
	default:
		return specs.Mount{}, fmt.Errorf("mount %s: propagation %q is not known", m.HostPath, m.Propagation)
	}
	switch {
	case m.ReadOnly && m.Recursive:
		options = append(options, "rro")
	case m.ReadOnly:
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	return specs.Mount{
		Destination: filepath.Join("/", m.ContainerPath),
		Type:        "bind",
		Source:      m.HostPath,
		Options:     options,
	}, nil
}

// buildResources translates limits for runc, which writes them as cgroup v1 or v2.
func buildResources(res container.Resources) *specs.LinuxResources {
	out := &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: res.CPUSetCPUs, Mems: res.CPUSetMems}}
	if res.CPUShares != 0 {
		out.CPU.Shares = &res.CPUShares
	}
	if res.CPUQuotaMicros != 0 {
		period := cmp.Or(res.CPUPeriodMicros, 100000)
		out.CPU.Quota, out.CPU.Period = &res.CPUQuotaMicros, &period
	}
	if res.MemoryLimitBytes != 0 {
		out.Memory = &specs.LinuxMemory{Limit: &res.MemoryLimitBytes}
	}
	if res.PidsLimit != 0 {
		out.Pids = &specs.LinuxPids{Limit: &res.PidsLimit}
	}
	for size, limit := range res.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
	}
	if unifiedCgroups() {
		// The kernel kills the whole container, not one process of it. Source: the kubelet
		// since 1.28.
		out.Unified = map[string]string{"memory.oom.group": "1"}
		for key, value := range res.Unified {
			out.Unified[key] = value
		}
	}
	return out
}

// allowedOOMScore raises a score to this process's own where the kernel would refuse a
// lower one, since runc fails without a useful word then.
func allowedOOMScore(want *int) *int {
	if want == nil || hasSysResource() {
		return want
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return want
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || *want >= own {
		return want
	}
	return &own
}
