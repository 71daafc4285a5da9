package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// stopTimeout is how long a program has to end before it is killed.
const stopTimeout = 15 * time.Second

// Options says what Start starts.
type Options struct {
	Programs string   // folder with the programs, from Build; required
	Dir      string   // empty folder for keys, data and logs; required
	APIOnly  bool     // leaves out kube-controller-manager and kube-scheduler
	APIFlags []string // further flags of kube-apiserver
	// ManagerFlags are further flags of kube-controller-manager.
	ManagerFlags []string
	Address      net.IP // where nodes reach kube-apiserver; without it, it listens on the loopback address
	NetNS        string // network namespace that it all lives in, as a path; default the caller's
}

// Cluster is a running control plane without nodes.
type Cluster struct {
	Kubeconfig string    // of an administrator
	PKI        string    // folder with ca.crt and ca.key
	Server     string    // URL of kube-apiserver
	Etcd       string    // URL of etcd
	Started    time.Time // when the first program was started

	commands []*exec.Cmd
	exited   []chan struct{} // one a command, closed when it has ended
	nodes    []string
	nodeAt   map[string]int // which command is a node's
	killed   []int          // commands that KillNode has ended
	dns      net.IP         // of the first node
}

// Start starts the four programs and returns without waiting for them to be ready: etcd and
// kube-apiserver wait for each other, and so do the rest. Call Stop at the end.
func Start(opts Options) (*Cluster, error) {
	if opts.Programs == "" || opts.Dir == "" {
		return nil, errors.New("upstream: Programs and Dir are required")
	}
	ports, err := freePorts(5)
	if err != nil {
		return nil, err
	}
	pki := filepath.Join(opts.Dir, "pki")
	if err := os.MkdirAll(pki, 0o700); err != nil {
		return nil, fmt.Errorf("upstream: make a folder: %w", err)
	}
	address, further := "127.0.0.1", []net.IP(nil)
	if opts.Address != nil {
		address, further = opts.Address.String(), []net.IP{opts.Address}
	}
	server := "https://" + net.JoinHostPort(address, ports[2])
	if err := writeFiles(pki, server, further...); err != nil {
		return nil, err
	}
	c := &Cluster{Kubeconfig: filepath.Join(pki, "admin.kubeconfig"), PKI: pki, Server: server, Etcd: "http://127.0.0.1:" + ports[0], Started: time.Now(), nodeAt: map[string]int{}}
	programs := arguments(opts.Dir, address, ports)
	programs[1] = append(programs[1], opts.APIFlags...)
	programs[2] = append(programs[2], opts.ManagerFlags...)
	if opts.APIOnly {
		programs = programs[:2]
	}
	if err := c.launchAll(opts, programs); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// launchAll starts programs, whose first words are their names.
func (c *Cluster) launchAll(opts Options, programs [][]string) error {
	for _, p := range programs {
		name := p[0]
		p = append([]string{filepath.Join(opts.Programs, name)}, p[1:]...)
		if err := c.launch(opts.Dir, name, inNetNS(opts.NetNS, p)); err != nil {
			return err
		}
	}
	return nil
}

// arguments are the command lines: what kubeadm writes, the clients' limits raised, and ten times
// the default number of workers in the controllers that the benchmarks drive.
func arguments(dir, address string, ports []string) [][]string {
	file := func(name string) string { return filepath.Join(dir, "pki", name) }
	etcd, peer, api, manager, scheduler := ports[0], ports[1], ports[2], ports[3], ports[4]
	limits := []string{
		"--kube-api-qps=5000", "--kube-api-burst=10000", "--bind-address=127.0.0.1", "--leader-elect=true",
		"--authentication-tolerate-lookup-failure=true", // they are started together with kube-apiserver
	}
	return [][]string{
		{
			"etcd", "--name=upstream", "--data-dir=" + filepath.Join(dir, "etcd"),
			"--listen-client-urls=http://127.0.0.1:" + etcd, "--advertise-client-urls=http://127.0.0.1:" + etcd,
			"--listen-peer-urls=http://127.0.0.1:" + peer, "--initial-advertise-peer-urls=http://127.0.0.1:" + peer,
			"--initial-cluster=upstream=http://127.0.0.1:" + peer, "--snapshot-count=10000", "--log-level=warn",
		},
		{
			"kube-apiserver", "--etcd-servers=http://127.0.0.1:" + etcd, "--bind-address=" + address,
			"--advertise-address=" + address, "--endpoint-reconciler-type=" + reconciler(address), "--secure-port=" + api,
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			"--client-ca-file=" + file("ca.crt"),
			"--kubelet-client-certificate=" + file("kubelet-client.crt"), "--kubelet-client-key=" + file("kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--tls-cert-file=" + file("apiserver.crt"), "--tls-private-key-file=" + file("apiserver.key"),
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + file("sa.pub"), "--service-account-signing-key-file=" + file("sa.key"),
			"--service-cluster-ip-range=10.96.0.0/12", "--encryption-provider-config=" + file("encryption.yaml"),
			"--requestheader-client-ca-file=" + file("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-username-headers=X-Remote-User",
			"--proxy-client-cert-file=" + file("front-proxy-client.crt"), "--proxy-client-key-file=" + file("front-proxy-client.key"),
		},
		append([]string{
			"kube-controller-manager", "--kubeconfig=" + file("controller-manager.kubeconfig"), "--secure-port=" + manager,
			"--authentication-kubeconfig=" + file("controller-manager.kubeconfig"),
			"--authorization-kubeconfig=" + file("controller-manager.kubeconfig"),
			"--use-service-account-credentials=true", "--controllers=*,bootstrapsigner,tokencleaner",
			"--root-ca-file=" + file("ca.crt"), "--service-account-private-key-file=" + file("sa.key"),
			"--cluster-signing-cert-file=" + file("ca.crt"), "--cluster-signing-key-file=" + file("ca.key"),
			"--concurrent-deployment-syncs=50", "--concurrent-replicaset-syncs=50",
		}, limits...),
		append([]string{
			"kube-scheduler", "--kubeconfig=" + file("scheduler.kubeconfig"), "--secure-port=" + scheduler,
			"--authentication-kubeconfig=" + file("scheduler.kubeconfig"),
			"--authorization-kubeconfig=" + file("scheduler.kubeconfig"),
		}, limits...),
	}
}

// reconciler says who keeps the endpoints of the Service kubernetes: kube-apiserver cannot name the loopback address there.
func reconciler(address string) string {
	if net.ParseIP(address).IsLoopback() {
		return "none"
	}
	return "lease"
}

// launch runs a program with its log in dir. It ends with this process.
func (c *Cluster) launch(dir, name string, args []string) error {
	log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("upstream: make a log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("upstream: start %s: %w", name, err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // how it ended is in its log
	}()
	c.commands, c.exited = append(c.commands, cmd), append(c.exited, exited)
	return nil
}

// PIDs are the process ids of the four programs, etcd's first.
func (c *Cluster) PIDs() []int {
	var pids []int
	for _, cmd := range c.commands {
		pids = append(pids, cmd.Process.Pid)
	}
	return pids
}

// Check returns an error that names the first program that has ended.
func (c *Cluster) Check() error {
	for i, exited := range c.exited {
		if slices.Contains(c.killed, i) {
			continue
		}
		select {
		case <-exited:
			return fmt.Errorf("upstream: %s ended: %v", filepath.Base(c.commands[i].Path), c.commands[i].ProcessState)
		default:
		}
	}
	return nil
}

// Kill ends all programs at once, as a machine does that loses its power.
func (c *Cluster) Kill() {
	for i, cmd := range c.commands {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-c.exited[i]
	}
	c.commands, c.exited = nil, nil
}

// Stop ends the nodes with their containers and the programs, etcd last, and waits for them.
func (c *Cluster) Stop() error {
	var failed []error
	for i := len(c.commands) - 1; i >= 0; i-- {
		failed = append(failed, stop(c.commands[i], c.exited[i]))
	}
	for _, node := range c.nodes {
		failed = append(failed, killNode(node))
	}
	c.commands, c.exited, c.nodes = nil, nil, nil
	return errors.Join(failed...)
}

func stop(cmd *exec.Cmd, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("upstream: stop %s: %w", filepath.Base(cmd.Path), err)
	}
	select {
	case <-exited:
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-exited
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what else it has started
	return nil
}

// freePorts finds ports that nothing listens on.
func freePorts(count int) ([]string, error) {
	var ports []string
	for range count {
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("upstream: find a free port: %w", err)
		}
		defer func() { _ = listener.Close() }()
		ports = append(ports, strconv.Itoa(listener.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}
