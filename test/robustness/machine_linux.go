package robustness

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"gantry.dev/gantry/test/machines"
)

// binEnv names the folder of the programs under test.
const binEnv = "GANTRY_TEST_BIN"

// machine is a namespace with a data dir in which gantry runs as a process of the test.
type machine struct {
	number   int
	name     string
	ns       string
	dir, bin string
	disk     *disk // which dir lies on; nil for a worker
	log      string

	mu    sync.Mutex // guards the fields below
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
}

// cluster is servers, the first of the machines, and workers, the rest.
type cluster struct {
	t       testing.TB
	link    *machines.Link
	all     []*machine
	servers int

	kubeconfig []byte // the administrator's, from outside
}

// newCluster makes machines, nothing runs on them.
func newCluster(t testing.TB, servers, workers int) *cluster {
	t.Helper()
	bin := os.Getenv(binEnv)
	if bin == "" {
		t.Skipf("%s does not say where the programs are; \"make robustness\" does", binEnv)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces and loop devices")
	}
	c := &cluster{t: t, link: machines.New(t, servers+workers), servers: servers}
	root, err := os.MkdirTemp("/tmp", "rb-") // short: sockets have their paths below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	for i := range servers + workers {
		m := &machine{
			number: i, name: fmt.Sprintf("m%d", i), ns: c.link.NS[i], dir: filepath.Join(root, fmt.Sprint(i), "d"), bin: bin,
			log: filepath.Join(root, fmt.Sprintf("m%d.log", i)),
		}
		c.all = append(c.all, m)
		t.Cleanup(func() { c.remove(m) })
		if i < servers {
			if m.disk, err = newDisk(filepath.Join(root, fmt.Sprintf("m%d.disk", i)), filepath.Dir(m.dir)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return c
}

// remove takes a machine away with all that runs there.
func (c *cluster) remove(m *machine) {
	if c.t.Failed() {
		c.t.Logf("the end of the log of %s:\n%s", m.name, m.logEnd(25))
	}
	if m.disk != nil {
		_ = m.disk.freeze(false)
	}
	m.signal(syscall.SIGCONT)
	m.powerCut()
	if out, err := m.gantry(time.Minute, "", "down", "--purge", "--yes"); err != nil {
		c.t.Logf("gantry down: %v: %s", err, out)
	}
	mounts, _ := machines.MountsUnder(m.dir)
	slices.Reverse(mounts)
	for _, mount := range mounts {
		_ = syscall.Unmount(mount, syscall.MNT_DETACH)
	}
	if m.disk != nil {
		if err := m.disk.remove(); err != nil {
			c.t.Logf("disk of %s: %v", m.name, err)
		}
	}
}

func (m *machine) logEnd(lines int) string {
	text, _ := os.ReadFile(m.log)
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (m *machine) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", slices.Concat([]string{"--net=" + m.ns, "--", filepath.Join(m.bin, "gantry"), "--data-dir", m.dir}, args)...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "GANTRY_") })
	cmd.Env = append(cmd.Env, "KUBECONFIG=/nonexistent/kubeconfig", "HOME=/nonexistent",
		"GANTRY_EVICTION_HARD=memory.available<100Mi,nodefs.available<1Mi") // a full disk is about the store here
	return cmd
}

// gantry runs a command to its end and returns its standard output.
func (m *machine) gantry(limit time.Duration, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := m.command(ctx, args...)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("gantry %s: %w: %s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// start starts gantry, if it does not run.
func (m *machine) start(flags ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		select {
		case <-m.ended:
		default:
			return nil
		}
	}
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", m.name, err)
	}
	defer func() { _ = log.Close() }()
	cmd := m.command(context.Background(), append([]string{"up", "--node-name", m.name}, flags...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", m.name, err)
	}
	m.cmd, m.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		_ = cmd.Wait() // how it ended does not matter
		close(ended)
	}(m.ended)
	return nil
}

// running reports whether the process of start is there.
func (m *machine) running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd == nil {
		return false
	}
	select {
	case <-m.ended:
		return false
	default:
		return true
	}
}

// signal sends a signal to gantry alone; after a SIGKILL it waits until it is gone.
func (m *machine) signal(signal syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd == nil {
		return
	}
	select {
	case <-m.ended:
		return
	default:
	}
	_ = m.cmd.Process.Signal(signal)
	if signal == syscall.SIGKILL {
		<-m.ended
	}
}

// powerCut kills everything on the machine at once.
func (m *machine) powerCut() {
	m.signal(syscall.SIGKILL)
	for range 100 {
		left := machines.Everything(m.ns, m.dir)
		for pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}

// joinFlags are those with which a machine becomes part of the cluster of a server.
func (m *machine) joinFlags(kind ...string) ([]string, error) {
	out, err := m.gantry(30*time.Second, "", append([]string{"token", "create"}, kind...)...)
	if err != nil {
		return nil, err
	}
	words := strings.Fields(strings.TrimSpace(out))
	if len(words) < 6 || words[0] != "gantry" || words[1] != "up" {
		return nil, fmt.Errorf("token create says %q", out)
	}
	return words[2:], nil
}

// up starts everything and waits until all servers are ready.
func (c *cluster) up(ctx context.Context) error {
	if err := c.all[0].start(); err != nil {
		return err
	}
	if err := c.awaitReady(ctx, 0, 90*time.Second); err != nil {
		return err
	}
	for _, m := range c.all[1:] {
		if err := c.join(ctx, 0, m.number); err != nil {
			return err
		}
	}
	return nil
}

// join makes a machine what its number says, through a server.
func (c *cluster) join(ctx context.Context, through, number int) error {
	var kind []string
	if number < c.servers {
		kind = []string{"--server"}
	}
	flags, err := c.all[through].joinFlags(kind...)
	if err != nil {
		return err
	}
	if err := c.all[number].start(flags...); err != nil {
		return err
	}
	if number < c.servers {
		return c.awaitReady(ctx, number, 90*time.Second)
	}
	return nil
}

// awaitReady waits until a server says that it is ready.
func (c *cluster) awaitReady(ctx context.Context, number int, limit time.Duration) error {
	return await(ctx, limit, func() error {
		m := c.all[number]
		if !m.running() {
			return fmt.Errorf("%s has ended: %s", m.name, m.logEnd(5))
		}
		_, err := m.gantry(5*time.Second, "", "kubectl", "--request-timeout=3s", "get", "--raw", "/readyz")
		return err
	})
}

// await asks until the answer is nil.
func await(ctx context.Context, limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v: %w", limit, err)
		}
		time.Sleep(50 * time.Millisecond) // between two looks
	}
}

// rest is how the administrator reaches a server from outside.
func (c *cluster) rest(number int) (*rest.Config, error) {
	if c.kubeconfig == nil {
		text, err := os.ReadFile(filepath.Join(c.all[0].dir, "admin.kubeconfig"))
		if err != nil {
			return nil, fmt.Errorf("read the admin's kubeconfig: %w", err)
		}
		c.kubeconfig = text
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(c.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read the admin's kubeconfig: %w", err)
	}
	config.Host, config.Dial = "https://"+machines.IP(number)+":6443", machines.DialIn(c.link.Outside)
	return config, nil
}

// apis are new clients of all servers, for one reader or writer.
func (c *cluster) apis(namespace string) ([]*api, error) {
	var out []*api
	for i := range c.servers {
		config, err := c.rest(i)
		if err != nil {
			return nil, err
		}
		trust, err := rest.TLSConfigFor(config)
		if err != nil {
			return nil, fmt.Errorf("read the admin's kubeconfig: %w", err)
		}
		trust.MinVersion = tls.VersionTLS12
		out = append(out, newAPI(i, machines.IP(i)+":6443", namespace, trust, config.Dial))
	}
	return out, nil
}

// leader is the server that leads, as any of them says.
func (c *cluster) leader(ctx context.Context, servers []*api) (int, error) {
	var all error
	for _, a := range servers {
		got, outcome, message := a.holder(ctx, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-scheduler")
		if outcome != Done {
			all = errors.Join(all, errors.New(message))
			continue
		}
		for i := range c.servers {
			if c.all[i].name == got {
				return i, nil
			}
		}
		all = errors.Join(all, fmt.Errorf("%q leads", got))
	}
	return 0, fmt.Errorf("who leads: %w", all)
}
