//go:build linux

package foreign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry.dev/gantry/test/upstream"
)

const (
	nodeName    = "up1"
	nodeAddress = "10.201.0.1"
	patience    = 3 * time.Minute
)

// cluster is upstream's Kubernetes of one node in a network namespace.
type cluster struct {
	*upstream.Cluster
	ns  string // path of the namespace
	bin string // folder with kubectl and gantry
}

// start makes a machine and starts upstream on it. Images are archives that the node has.
func start(t *testing.T, images ...string) *cluster {
	t.Helper()
	bin := os.Getenv("GANTRY_TEST_BIN")
	if bin == "" {
		t.Fatal("GANTRY_TEST_BIN is not set: run `make conformance PARTS=foreign`")
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	programs, err := upstream.BuildNode(t.Context(), filepath.Join(root, "test/upstream"), filepath.Join(root, ".cache/upstream"), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	runc, err := filepath.Glob(filepath.Join(root, ".cache/programs/*/runc"))
	if err != nil || len(runc) == 0 {
		t.Fatalf("there is no runc in .cache/programs (%v): run `make build`", err)
	}
	c := &cluster{ns: machine(t), bin: bin}
	dir, err := os.MkdirTemp("/tmp", "up-") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	address := net.ParseIP(nodeAddress)
	c.Cluster, err = upstream.Start(upstream.Options{
		Programs: programs.Kubernetes, Dir: dir, Address: address, NetNS: c.ns,
		APIFlags: []string{"--enable-aggregator-routing=true"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			explain(t, dir)
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	err = c.StartNode(upstream.NodeOptions{
		Programs: programs, Runc: runc[0], Dir: filepath.Join(dir, nodeName), Name: nodeName, Address: address,
		PodCIDR: "10.244.1.0/24", NetNS: c.ns, Images: images,
	})
	if err != nil {
		t.Fatal(err)
	}
	c.eventually(t, "the node is Ready", func() error {
		out, err := c.kubectl(t.Context(), "", "wait", "--for=condition=Ready", "--timeout=2s", "node/"+nodeName)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return c
}

// machine makes a network namespace with an address and returns its path.
func machine(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("foreign-%d", os.Getpid())
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	ip("netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	ip("-n", name, "link", "set", "lo", "up")
	ip("-n", name, "link", "add", "eth0", "type", "bridge")
	ip("-n", name, "addr", "add", nodeAddress+"/24", "dev", "eth0")
	ip("-n", name, "link", "set", "eth0", "up")
	ip("-n", name, "route", "add", "default", "dev", "eth0")
	return "/run/netns/" + name
}

// run runs a program on the machine.
func (c *cluster) run(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + c.ns}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// kubectl runs kubectl as the administrator.
func (c *cluster) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.run(ctx, stdin, append([]string{filepath.Join(c.bin, "kubectl"), "--kubeconfig", c.Kubeconfig}, args...)...)
}

// eventually polls until probe has no error.
func (c *cluster) eventually(t *testing.T, what string, probe func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		err := errors.Join(c.Check(), probe())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v (after %s)", what, err, patience)
		}
	}
}

// explain logs the end of each program's log.
func explain(t *testing.T, dir string) {
	for _, pattern := range []string{"*.log", "*/*.log"} {
		logs, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, path := range logs {
			content, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			t.Logf("%s:\n%s", filepath.Base(path), content[max(0, len(content)-3000):])
		}
	}
}
