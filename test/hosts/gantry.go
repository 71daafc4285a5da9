//go:build linux

package hosts

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// commandLimit bounds one command of Gantry.
const commandLimit = 3 * time.Minute

// Gantry is a machine with Gantry on it.
type Gantry struct {
	*Host
	Data    string // the data dir
	program string
	flags   []string // of each up
}

// AddGantry makes a machine for a program of Gantry, with its data in a folder below dir. flags are those of each up.
func (h *Hosts) AddGantry(ctx context.Context, program, dir, name string, flags ...string) (*Gantry, error) {
	program, err := filepath.Abs(program)
	if err != nil {
		return nil, fmt.Errorf("find gantry: %w", err)
	}
	m, err := h.Add(ctx, name)
	if err != nil {
		return nil, err
	}
	return &Gantry{Host: m, Data: filepath.Join(dir, name), program: program, flags: flags}, nil
}

// Run runs a command of Gantry on the machine.
func (m *Gantry) Run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + m.NS, "--", m.program, "--data-dir", m.Data}, args...)...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "GANTRY_") })
	// How full this machine's disk is says nothing of Gantry.
	cmd.Env = append(cmd.Env, "KUBECONFIG=/nonexistent/kubeconfig", "HOME=/nonexistent", "GANTRY_EVICTION_HARD=memory.available<100Mi,nodefs.available<256Mi")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("gantry %s on %s: %w\n%s%s", strings.Join(args, " "), m.Name, err, out, stderr.String())
	}
	return string(out), nil
}

// Up starts Gantry in the background.
func (m *Gantry) Up(ctx context.Context, flags ...string) error {
	_, err := m.Run(ctx, slices.Concat([]string{"up", "--detach", "--node-name", m.Name}, m.flags, flags)...)
	return err
}

// Join adds another machine to the cluster of this server.
func (m *Gantry) Join(ctx context.Context, other *Gantry, flags ...string) error {
	command, err := m.Run(ctx, append([]string{"token", "create"}, flags...)...)
	if err != nil {
		return err
	}
	return other.Up(ctx, strings.Fields(command)[2:]...)
}

// Purge ends everything on the machine and removes its data.
func (m *Gantry) Purge() error {
	_, err := m.Run(context.Background(), "down", "--purge", "--yes")
	for _, pid := range m.Processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return err
}

// Processes are those of Gantry on the machine, and those in its network and its pods' networks.
func (m *Gantry) Processes() []int {
	spaces := map[uint64]bool{}
	paths, _ := filepath.Glob(filepath.Join(m.Data, "net", "*"))
	deeper, _ := filepath.Glob(filepath.Join(m.Data, "net", "*", "*"))
	for _, path := range slices.Concat(paths, deeper, []string{m.NS}) {
		var at syscall.Stat_t
		var fs syscall.Statfs_t
		const nsfs = 0x6e736673
		if syscall.Statfs(path, &fs) == nil && fs.Type == nsfs && syscall.Stat(path, &at) == nil {
			spaces[at.Ino] = true
		}
	}
	var pids []int
	folders, _ := filepath.Glob("/proc/[0-9]*")
	for _, folder := range folders {
		pid, err := strconv.Atoi(filepath.Base(folder))
		if err != nil || pid == os.Getpid() {
			continue
		}
		var at syscall.Stat_t
		cmdline, _ := os.ReadFile(filepath.Join(folder, "cmdline"))
		if strings.Contains(string(cmdline), m.Data) || syscall.Stat(filepath.Join(folder, "ns/net"), &at) == nil && spaces[at.Ino] {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Die is a power cut: the link goes first, then every process.
func (m *Gantry) Die(ctx context.Context) error {
	if err := m.Cut(ctx); err != nil {
		return err
	}
	for _, pid := range m.Processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return nil
}

// Admin is a configuration that may do everything, at this server.
func (m *Gantry) Admin() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(m.Data, "admin.kubeconfig"))
	if err != nil {
		return nil, fmt.Errorf("read the administrator's kubeconfig of %s: %w", m.Name, err)
	}
	return m.Reach(config), nil
}
