//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// laptop is a person's machine in the world outside, with a home of its own.
type laptop struct {
	*cluster
	home string
	env  []string
}

func (l *laptop) gantry(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + l.outside, "--", filepath.Join(l.bin, "gantry")}, args...)...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "GANTRY_") })
	cmd.Env = append(append(cmd.Env, "HOME="+l.home, "XDG_CONFIG_HOME="), l.env...)
	cmd.Dir = l.home
	return runCommand(t, cmd, stdin)
}

// wants runs a command that must end with a code and say something.
func (l *laptop) wants(t *testing.T, code int, want, stdin string, args ...string) result {
	t.Helper()
	r := l.gantry(t, stdin, args...)
	if r.code != code || !strings.Contains(r.stdout+r.stderr, want) {
		t.Fatalf("gantry %s: want code %d and %q, got %v", strings.Join(args, " "), code, want, r)
	}
	return r
}

// startSSHD runs OpenSSH's server on the machine's port 22 and returns the settings of a client that it lets in.
func startSSHD(t *testing.T, c *cluster, home string) (config, hostKey string) {
	t.Helper()
	const sshd = "/usr/sbin/sshd"
	if _, err := os.Stat(sshd); err != nil {
		t.Skip("needs openssh-server")
	}
	file := func(name string) string { return filepath.Join(home, name) }
	for _, name := range []string{"host", "key"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file(name)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("sshd_config", fmt.Sprintf("ListenAddress %s:22\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPidFile none\nSetEnv PATH=%s:/usr/bin:/bin\n",
		machineIP, file("host"), file("key.pub"), c.bin))
	write("ssh_config", fmt.Sprintf("Host *\n  IdentityFile %s\n  IdentitiesOnly yes\n  UserKnownHostsFile %s\n  GlobalKnownHostsFile /dev/null\n", file("key"), file("known_hosts")))
	log, err := os.Create(file("sshd.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net="+c.ns, "--", sshd, "-D", "-e", "-f", file("sshd_config"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(file("sshd.log"))
			t.Logf("sshd: %s", text)
		}
	})
	eventually(t, "sshd listens", 10*time.Second, func() error {
		connection, err := dialIn(c.outside)(t.Context(), "tcp", machineIP+":22")
		if err == nil {
			_ = connection.Close()
		}
		return err
	})
	public, err := os.ReadFile(file("host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	return file("ssh_config"), string(public)
}

// TestLaptop reaches a cluster whose API port is closed to the world, adds a user, and is that user when the port is open.
func TestLaptop(t *testing.T) {
	c := newCluster(t)
	home := t.TempDir()
	config, hostKey := startSSHD(t, c, home)
	c.up(t)
	l := &laptop{cluster: c, home: home, env: []string{"GANTRY_SSH_COMMAND=ssh -F " + config}}
	rule := []string{"-n", filepath.Base(c.outside), "rule", "add", "ipproto", "tcp", "dport", "6443", "prohibit"}
	if out, err := exec.Command("ip", rule...).CombinedOutput(); err != nil {
		t.Fatalf("closing the port: %v: %s", err, out)
	}
	l.wants(t, 8, "nobody answers", "x\n", "login", "https://"+machineIP, "--fingerprint", "sha256:0")
	target := "ssh://root@" + machineIP + c.dir
	l.wants(t, 8, "not known yet", "", "login", target)
	if err := os.WriteFile(filepath.Join(home, "known_hosts"), []byte(machineIP+" "+hostKey), 0o600); err != nil {
		t.Fatal(err)
	}
	l.wants(t, 0, "logged in to prod as", "", "login", target, "--name", "prod")
	l.wants(t, 0, "ready", "", "status")
	l.wants(t, 0, "→ project shop on prod ("+machineIP+")", "", "project", "create", "shop")
	l.wants(t, 0, "shop", "", "kubectl", "get", "namespaces")
	added := l.wants(t, 0, "gantry login https://", "", "user", "add", "ann", "--role", "viewer", "-p", "shop")
	_, print, _ := strings.Cut(added.stderr, "--fingerprint ")
	print, _, _ = strings.Cut(print, " ")
	if out, err := exec.Command("ip", append(rule[:3:3], append([]string{"del"}, rule[4:]...)...)...).CombinedOutput(); err != nil {
		t.Fatalf("opening the port: %v: %s", err, out)
	}
	l.wants(t, 2, "--fingerprint "+print, added.stdout, "login", "https://"+machineIP)
	l.wants(t, 8, "is not the server that you mean", added.stdout, "login", "https://"+machineIP, "--fingerprint", "sha256:00")
	l.wants(t, 8, "log in", "nonsense\n", "login", "https://"+machineIP, "--fingerprint", print)
	l.wants(t, 0, "logged in to ann as ann", added.stdout, "login", "https://"+machineIP, "--fingerprint", print, "--name", "ann")
	l.wants(t, 0, "", "", "app", "ls", "-p", "shop")
	l.wants(t, 8, "", "", "user", "ls")
	l.wants(t, 0, "is removed", "", "user", "rm", "ann", "--yes", "--context", "prod")
	l.wants(t, 8, "", "", "app", "ls", "-p", "shop")
	l.wants(t, 0, "logged out of ann", "", "logout")
	if left := processes(func(_ int, cmdline string) bool { return strings.Contains(cmdline, config) }); len(left) > 1 { // sshd's own is not among them
		t.Errorf("commands left %v", left)
	}
}
