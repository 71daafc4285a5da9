package upstream

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// podRange is where nodes' PodCIDRs are taken of.
const podRange = "10.244.0.0/16"

// nodeScript starts containerd, kubelet and kube-proxy in a mount namespace of their own.
//
//go:embed node.sh
var nodeScript string

// nodePrograms is what a node runs of Kubernetes itself, and nodeRuntime what it runs beside.
func nodePrograms() []Program {
	return []Program{
		{Name: "kubelet", Package: "k8s.io/kubernetes/cmd/kubelet"},
		{Name: "kube-proxy", Package: "k8s.io/kubernetes/cmd/kube-proxy"},
	}
}

func nodeRuntime() []Program {
	const containerd, plugins = "github.com/containerd/containerd/v2/cmd/", "github.com/containernetworking/plugins/plugins/"
	return []Program{
		{Name: "containerd", Package: containerd + "containerd"},
		{Name: "containerd-shim-runc-v2", Package: containerd + "containerd-shim-runc-v2"},
		{Name: "ctr", Package: containerd + "ctr"},
		{Name: "bridge", Package: plugins + "main/bridge"},
		{Name: "host-local", Package: plugins + "ipam/host-local"},
		{Name: "loopback", Package: plugins + "main/loopback"},
		{Name: "portmap", Package: plugins + "meta/portmap"},
		{Name: "coredns", Package: "./coredns"},
		{Name: "pause", Package: "./pause"},
	}
}

// BuildNode makes what StartNode needs; modules is the folder of this package.
func BuildNode(ctx context.Context, modules, cache string, log io.Writer) (NodePrograms, error) {
	kubernetes, err := Build(ctx, BuildOptions{
		Module: filepath.Join(modules, "programs"), Cache: cache, Programs: append(controlPlane(), nodePrograms()...), Log: log,
	})
	if err != nil {
		return NodePrograms{}, err
	}
	runtime, err := Build(ctx, BuildOptions{
		Module: filepath.Join(modules, "noderuntime"), Cache: cache, Programs: nodeRuntime(), Log: log,
	})
	return NodePrograms{Kubernetes: kubernetes, Runtime: runtime}, err
}

// NodePrograms are folders with programs, from BuildNode.
type NodePrograms struct{ Kubernetes, Runtime string }

// NodeOptions says what StartNode adds to a control plane.
type NodeOptions struct {
	Programs NodePrograms // required
	Runc     string       // the program; required
	Dir      string       // empty folder, with a short path, for data and logs; required
	Name     string       // of the node; required
	Address  net.IP       // where the control plane reaches it; required
	PodCIDR  string       // its pods' addresses, a part of 10.244.0.0/16; required
	NetNS    string       // network namespace that it lives in, as a path; default the caller's
	Images   []string     // archives that it has from the beginning
	Kubelet  string       // further lines of the kubelet's configuration
}

func (o *NodeOptions) check() error {
	for _, value := range []string{o.Programs.Kubernetes, o.Programs.Runtime, o.Runc, o.Dir, o.Name, o.PodCIDR} {
		if value == "" {
			return errors.New("upstream: Programs, Runc, Dir, Name and PodCIDR are required")
		}
	}
	if o.Address == nil {
		return errors.New("upstream: Address is required")
	}
	return nil
}

// StartNode adds a node with containerd, kubelet and kube-proxy to a control plane that was started with an Address, and returns
// without waiting for it to be Ready. The first node also runs the cluster's DNS. Cluster.Stop ends it with all its containers.
func (c *Cluster) StartNode(opts NodeOptions) error {
	if err := opts.check(); err != nil {
		return err
	}
	first := c.dns == nil
	if first {
		c.dns = opts.Address
	}
	if err := c.writeNodeFiles(opts); err != nil {
		return err
	}
	pause, err := pauseImage(opts)
	if err != nil {
		return err
	}
	c.nodes = append(c.nodes, opts.Name)
	c.nodeAt[opts.Name] = len(c.commands)
	args := []string{"unshare", "--mount", "--propagation", "private", "sh", "-eu", "-c", nodeScript, "node"}
	args = append(args, opts.Dir, opts.Name, opts.Programs.Kubernetes, opts.Programs.Runtime, filepath.Dir(opts.Runc), pause)
	args = append(args, opts.Images...)
	if err := c.launch(opts.Dir, "node-"+opts.Name, inNetNS(opts.NetNS, args)); err != nil || !first {
		return err
	}
	dns := []string{filepath.Join(opts.Programs.Runtime, "coredns"), "-conf", filepath.Join(opts.Dir, "Corefile")}
	return c.launch(opts.Dir, "coredns", inNetNS(opts.NetNS, dns))
}

// KillNode ends a node with all its containers at once, as a machine does that loses its power.
func (c *Cluster) KillNode(name string) error {
	at, ok := c.nodeAt[name]
	if !ok {
		return fmt.Errorf("upstream: there is no node %s", name)
	}
	delete(c.nodeAt, name)
	_ = syscall.Kill(-c.commands[at].Process.Pid, syscall.SIGKILL)
	<-c.exited[at]
	c.killed = append(c.killed, at)
	return killNode(name)
}

// inNetNS is a command line that runs args in a network namespace.
func inNetNS(path string, args []string) []string {
	if path == "" {
		return args
	}
	return append([]string{"nsenter", "--net=" + path}, args...)
}

// writeNodeFiles makes the node's keys and the configuration of its programs.
func (c *Cluster) writeNodeFiles(opts NodeOptions) error {
	ca, err := LoadAuthority(c.PKI)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"kubelet.yaml": fmt.Appendf(nil, kubeletConfig, filepath.Join(c.PKI, "ca.crt"), opts.Name, c.dns, filepath.Join(opts.Dir, "resolv.conf"), opts.Kubelet),
		"proxy.yaml":   fmt.Appendf(nil, proxyConfig, filepath.Join(opts.Dir, "proxy.kubeconfig"), podRange, opts.Name),
		"cni.conflist": fmt.Appendf(nil, cniConfig, filepath.Join(opts.Dir, "ipam"), opts.PodCIDR),
		"resolv.conf":  []byte("nameserver " + c.dns.String() + "\n"),
		"Corefile":     fmt.Appendf(nil, corefile, opts.Address, filepath.Join(c.PKI, "admin.kubeconfig")),
		"address":      []byte(opts.Address.String() + "\n"),
		"containerd.toml": fmt.Appendf(nil, containerdConfig, filepath.Join(opts.Dir, "root"), filepath.Join(opts.Dir, "state"),
			opts.Programs.Runtime, filepath.Join(opts.Dir, "cni")),
	}
	for name, groups := range map[string][]string{"system:node:" + opts.Name: {"system:nodes"}, "system:kube-proxy": nil} {
		pair, err := ca.Client(name, groups...)
		if err != nil {
			return err
		}
		file := "kubelet.kubeconfig"
		if groups == nil {
			file = "proxy.kubeconfig"
		}
		if files[file], err = Kubeconfig(c.Server, ca.pem, pair); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
		return fmt.Errorf("upstream: make a folder: %w", err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(opts.Dir, name), content, 0o600); err != nil {
			return fmt.Errorf("upstream: write %s: %w", name, err)
		}
	}
	return nil
}

// killNode ends everything that a node's containers have left behind: their shims and processes are in its cgroups.
func killNode(name string) error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + nodeCgroup(name))
	if err != nil {
		return err
	}
	var failed []error
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(20 * time.Millisecond) {
		left := 0
		failed = nil
		for _, root := range roots {
			err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
				if err != nil || !entry.IsDir() {
					return nil // it has just gone
				}
				pids := readPIDs(filepath.Join(path, "cgroup.procs"))
				for _, pid := range pids {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
				left += len(pids)
				return nil
			})
			failed = append(failed, err)
		}
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			return errors.Join(append(failed, fmt.Errorf("upstream: node %s: %d processes do not end", name, left))...)
		}
	}
	for _, root := range roots {
		removeCgroup(root)
	}
	return errors.Join(failed...)
}

func nodeCgroup(name string) string { return "upstream-" + name }

func readPIDs(path string) []int {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	var pids []int
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if pid, err := strconv.Atoi(strings.TrimSpace(lines.Text())); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// removeCgroup removes a group and those below it, the deepest first.
func removeCgroup(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if entry.IsDir() {
			removeCgroup(filepath.Join(dir, entry.Name()))
		}
	}
	_ = os.Remove(dir)
}
