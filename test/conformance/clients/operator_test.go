//go:build linux

package clients

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gantry.dev/gantry/test/conformance"
	"gantry.dev/gantry/test/conformance/cluster"
	"gantry.dev/gantry/test/upstream"
)

// Two instances of a controller-runtime manager with webhooks: one leads, and when it is killed the
// other does.
func TestControllerRuntimeManager(t *testing.T) {
	c := needCluster(t)
	dir, err := upstream.Build(t.Context(), upstream.BuildOptions{
		Module: root + "/test/conformance/operator", Cache: root + "/.cache/clients", Log: t.Output(), Programs: conformance.OperatorPrograms(),
	})
	if err != nil {
		t.Fatal(err)
	}
	k := kubectl{c, c.Kubectl(), "operator"}
	k.run(t, "create", "namespace", k.namespace)
	k.feed(t, k.manifest(t, "gauge-crd.yaml"), "apply", "-f", "-")
	k.run(t, "wait", "--for=condition=Established", "crd/gauges.operator.example.com", "--timeout=10s")
	t.Cleanup(func() {
		k.try(t, "", nil, "delete", "mutatingwebhookconfiguration/gauges", "validatingwebhookconfiguration/gauges", "--ignore-not-found")
		k.try(t, "", nil, "patch", "gauge", "boiler", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
		k.try(t, "", nil, "delete", "crd/gauges.operator.example.com", "namespace/"+k.namespace, "--ignore-not-found", "--timeout=60s")
	})
	certs, ca := webhookCertificate(t)
	instances := make(map[string]*exec.Cmd)
	for i, name := range []string{"one", "two"} {
		instances[name] = startOperator(t, c, filepath.Join(dir, "operator"), "-name="+name, "-namespace="+k.namespace, "-certs="+certs, fmt.Sprintf("-port=%d", 19443+i))
	}
	get := func(path string) string {
		return strings.TrimSpace(k.try(t, "", nil, "get", "gauge/boiler", "-o", "jsonpath={"+path+"}").stdout)
	}
	shows := func(want string) {
		t.Helper()
		eventually(t, "the gauge shows "+want, 30*time.Second, func() error {
			if got := get(".status.shown"); got != want {
				return errNot(got)
			}
			return nil
		})
	}

	// The webhooks of instance "two" are asked, whichever leads.
	k.feed(t, k.manifest(t, "gauge-webhooks.yaml", "PORT", "19444", "CA", ca), "apply", "-f", "-")
	eventually(t, "the webhooks answer", 30*time.Second, func() error {
		if r := k.try(t, k.manifest(t, "gauge.yaml", "LEVEL", "1"), nil, "create", "--dry-run=server", "-f", "-"); r.code != 0 {
			return errNot(r.String())
		}
		return nil
	})
	r := k.try(t, k.manifest(t, "gauge.yaml", "LEVEL", "101"), nil, "apply", "-f", "-")
	if r.code == 0 || !strings.Contains(r.stderr, `admission webhook "validate.operator.example.com" denied the request: a level of 101 is too high`) {
		t.Errorf("a level that is too high: %v", r)
	}
	r = k.try(t, k.manifest(t, "gauge.yaml", "LEVEL", "60"), nil, "apply", "-f", "-")
	if r.code != 0 || !strings.Contains(r.stderr, "Warning: that is high") {
		t.Errorf("a level that is high: %v", r)
	}
	shows("60 bar") // the unit is the webhook's
	k.run(t, "delete", "configmap", "boiler")
	eventually(t, "the config map is made again", 30*time.Second, func() error {
		if r := k.try(t, "", nil, "get", "configmap", "boiler"); r.code != 0 {
			return errNot(r.String())
		}
		return nil
	})

	leader, follower := get(".status.by"), "one"
	if leader == "one" {
		follower = "two"
		// The webhooks must outlive the leader, or nothing could be changed.
	}
	if leader == "two" {
		k.feed(t, k.manifest(t, "gauge-webhooks.yaml", "PORT", "19443", "CA", ca), "apply", "-f", "-")
	}
	if err := instances[leader].Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatalf("the leader is %q: %v", leader, err)
	}
	k.run(t, "patch", "gauge", "boiler", "--type=merge", "-p", `{"spec":{"level":7}}`)
	shows("7 bar")
	if got := get(".status.by"); got != follower {
		t.Errorf("%q did it, want %q", got, follower)
	}
	k.run(t, "delete", "gauge", "boiler", "--timeout=30s") // the finalizer is taken away, and what it owns goes with it
	k.run(t, "wait", "--for=delete", "configmap/boiler", "--timeout=30s")
}

type errNot string

func (e errNot) Error() string { return "it is " + string(e) }

// webhookCertificate makes a folder with a certificate for the loopback address. It returns the
// authority for a webhook configuration.
func webhookCertificate(t *testing.T) (dir, ca string) {
	t.Helper()
	authority, err := upstream.NewAuthority("webhooks")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Server("webhook")
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for name, content := range map[string][]byte{"tls.crt": pair.Cert, "tls.key": pair.Key} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, base64.StdEncoding.EncodeToString(authority.CertPEM())
}

// startOperator starts an instance that is killed when the test ends.
func startOperator(t *testing.T, c *cluster.Cluster, program string, args ...string) *exec.Cmd {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.Command(context.WithoutCancel(t.Context()), program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("the log of %s:\n%s", strings.Join(args, " "), text[max(0, len(text)-3000):])
		}
	})
	return cmd
}
