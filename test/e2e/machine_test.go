//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	link "gantry.dev/gantry/test/machines"
)

// binEnv names the folder of the programs under test.
const binEnv = "GANTRY_TEST_BIN"

const (
	machineIP = link.FirstIP
	outsideIP = link.OutsideIP
)

// machine is a network namespace that a node takes for its machine: lo, eth0 with machineIP, and
// a default route to a second namespace, the world outside, with outsideIP.
type machine struct {
	ns, outside string // paths
	bin         string
	enter       []string // nsenter's flags for what the machine has of its own beside the network
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	bin := os.Getenv(binEnv)
	if bin == "" {
		t.Skipf("%s does not say where the programs are; \"make e2e\" does", binEnv)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces and containers")
	}
	name := "ge-" + strings.ToLower(rand.Text()[:6])
	m := &machine{ns: "/run/netns/" + name, outside: "/run/netns/" + name + "-o", bin: bin}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	for _, ns := range []string{name, name + "-o"} {
		run("netns", "add", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		run("-n", ns, "link", "set", "lo", "up")
	}
	run("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", name+"-o")
	run("-n", name, "addr", "add", machineIP+"/24", "dev", "eth0")
	run("-n", name+"-o", "addr", "add", outsideIP+"/24", "dev", "eth0")
	run("-n", name, "link", "set", "eth0", "up")
	run("-n", name+"-o", "link", "set", "eth0", "up")
	run("-n", name, "route", "add", "default", "via", outsideIP)
	return m
}

// result is what a program said and how it ended.
type result struct {
	stdout, stderr string
	code           int
}

// output is all it said, for messages.
func (r result) String() string {
	return fmt.Sprintf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
}

// command is a program on the machine; it gets SIGTERM when ctx ends.
func (m *machine) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", slices.Concat([]string{"--net=" + m.ns}, m.enter, []string{"--", name}, args)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	// The tests' own settings are none of Gantry's, which refuses what it does not know.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "GANTRY_") })
	cmd.Env = append(cmd.Env, "KUBECONFIG=/nonexistent/kubeconfig", "HOME=/nonexistent")
	// A test must not depend on how full this machine's disk is.
	cmd.Env = append(cmd.Env, "GANTRY_EVICTION_HARD=memory.available<100Mi,nodefs.available<256Mi")
	return cmd
}

// run runs a program on the machine to its end.
func (m *machine) run(t *testing.T, stdin, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 3*time.Minute)
	defer cancel()
	return runCommand(t, m.command(ctx, name, args...), stdin)
}

func runCommand(t *testing.T, cmd *exec.Cmd, stdin string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args[1:], " "), err, stdout.String(), stderr.String())
	}
	return result{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
}

// in calls fn on a thread inside of the network namespace that is mounted on path. Sockets that
// fn opens stay in that namespace.
func in(path string, fn func() error) error { return link.In(path, fn) }

// dialIn connects from inside of a namespace. The address must be an IP address.
func dialIn(path string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return link.DialIn(path)
}

// httpFrom is a client in a namespace that makes a new connection for each request.
func httpFrom(path string) *http.Client {
	return &http.Client{
		Transport: &http.Transport{DialContext: dialIn(path), DisableKeepAlives: true}, Timeout: 10 * time.Second,
	}
}

// fetch gets url's body.
func fetch(client *http.Client, url string) (string, error) {
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return string(body), err
}

// eventually calls check until it returns nil, or fails the test with its last error.
func eventually(t *testing.T, what string, limit time.Duration, check func() error) {
	t.Helper()
	if err := poll(limit, check); err != nil {
		t.Fatalf("%s: %v (after %v)", what, err, limit)
	}
}

func poll(limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond) // between two looks, not instead of one
	}
}

// processes are the command lines, by pid, of the processes for which match is true.
func processes(match func(pid int, cmdline string) bool) map[int]string { return link.Processes(match) }

// mountsUnder are the mount points at or below a folder.
func mountsUnder(t *testing.T, folder string) []string {
	t.Helper()
	found, err := link.MountsUnder(folder)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }
