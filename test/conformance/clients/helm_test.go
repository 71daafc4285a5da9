//go:build linux

package clients

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"gantry.dev/gantry/test/conformance"
	"gantry.dev/gantry/test/conformance/cluster"
	"gantry.dev/gantry/test/upstream"
)

// Helm 4, which applies on the server, installs, upgrades, fails, rolls back and uninstalls.
func TestHelm(t *testing.T) {
	c := needCluster(t)
	dir, err := upstream.Build(t.Context(), upstream.BuildOptions{
		Module: root + "/test/conformance/helm", Cache: root + "/.cache/clients", Log: t.Output(), Programs: conformance.HelmPrograms(),
	})
	if err != nil {
		t.Fatal(err)
	}
	k := kubectl{c, c.Kubectl(), "helm"}
	home := t.TempDir()
	helm := func(args ...string) result {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 3*time.Minute)
		defer cancel()
		cmd := c.Command(ctx, filepath.Join(dir, "helm"), args...)
		cmd.Env = append(cmd.Env, "HOME="+home)
		return finish(t, cmd)
	}
	run := func(args ...string) string {
		t.Helper()
		r := helm(args...)
		if r.code != 0 {
			t.Fatalf("helm %q: %v", args, r)
		}
		return r.stdout
	}
	state := func() string {
		return k.run(t, "get", "configmap/shop-settings", "-o", "jsonpath={.data.color} {.data.first} {.data.serves} ") +
			k.run(t, "get", "gadgets/shop", "-o", "jsonpath={.spec.color} ") +
			k.run(t, "get", "deployment/shop", "-o", "jsonpath={.status.readyReplicas} {.spec.template.spec.containers[0].env[0].value}")
	}
	is := func(when, want string) {
		t.Helper()
		if got := state(); got != want {
			t.Errorf("%s: it is %q, want %q", when, got, want)
		}
	}
	image := "image=" + cluster.Busybox

	want(t, run("install", "helm", "shop", "testdata/chart", image), `^revision 1 deployed, applied by ssa$`, `^It is red\.$`)
	is("installed", "red red true red 1 red")
	want(t, run("upgrade", "helm", "shop", "testdata/chart", image, "color=blue", "replicas=2"), `^revision 2 deployed`, `^It is blue\.$`)
	is("upgraded", "blue red true blue 2 blue")
	if r := helm("upgrade", "helm", "shop", "testdata/chart", image, "broken=true"); r.code == 0 {
		t.Errorf("an upgrade that the schema refuses: %v", r)
	} else {
		want(t, r.stderr, `Unsupported value: "green"`)
	}
	want(t, run("rollback", "helm", "shop", "1"), `^revision 4 deployed`)
	is("rolled back", "red red true red 1 red")
	want(t, k.run(t, "get", "configmap/shop-hook", "-o", "jsonpath={.data.revision}"), `^1$`) // hooks of the revision that is rolled back to
	want(t, k.run(t, "get", "secrets", "-l", "owner=helm", "-o", "name"), `sh\.helm\.release\.v1\.shop\.v4$`)
	run("uninstall", "helm", "shop")
	want(t, k.run(t, "get", "deployments,gadgets,pods", "-o", "name"), `^$`)
	want(t, k.run(t, "get", "crd", "gadgets.helm.example.com", "-o", "name"), `gadgets\.helm\.example\.com$`) // Helm leaves definitions
	k.run(t, "delete", "crd/gadgets.helm.example.com", "namespace/helm", "--timeout=60s")
}
