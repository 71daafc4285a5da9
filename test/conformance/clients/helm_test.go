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

// helm is a program around Helm's library, with a home of its own.
type helm struct {
	cluster       *cluster.Cluster
	program, home string
}

func newHelm(t *testing.T, c *cluster.Cluster) helm {
	t.Helper()
	dir, err := upstream.Build(t.Context(), upstream.BuildOptions{
		Module: root + "/test/conformance/helm", Cache: root + "/.cache/clients", Log: t.Output(), Programs: conformance.HelmPrograms(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return helm{c, filepath.Join(dir, "helm"), t.TempDir()}
}

func (h helm) try(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 3*time.Minute)
	defer cancel()
	cmd := h.cluster.Command(ctx, h.program, args...)
	cmd.Env = append(cmd.Env, "HOME="+h.home)
	return finish(t, cmd)
}

// run is a command that must work; it returns what it printed.
func (h helm) run(t *testing.T, args ...string) string {
	t.Helper()
	r := h.try(t, args...)
	if r.code != 0 {
		t.Fatalf("helm %q: %v", args, r)
	}
	return r.stdout
}

// Helm 4, which applies on the server, installs, upgrades, fails, rolls back and uninstalls.
func TestHelm(t *testing.T) {
	c := needCluster(t)
	h, k := newHelm(t, c), kubectl{c, c.Kubectl(), "helm"}
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

	want(t, h.run(t, "install", "helm", "shop", "testdata/chart", image), `^revision 1 deployed, applied by ssa$`, `^It is red\.$`)
	is("installed", "red red true red 1 red")
	want(t, h.run(t, "upgrade", "helm", "shop", "testdata/chart", image, "color=blue", "replicas=2"), `^revision 2 deployed`, `^It is blue\.$`)
	is("upgraded", "blue red true blue 2 blue")
	if r := h.try(t, "upgrade", "helm", "shop", "testdata/chart", image, "broken=true"); r.code == 0 {
		t.Errorf("an upgrade that the schema refuses: %v", r)
	} else {
		want(t, r.stderr, `Unsupported value: "green"`)
	}
	want(t, h.run(t, "rollback", "helm", "shop", "1"), `^revision 4 deployed`)
	is("rolled back", "red red true red 1 red")
	want(t, k.run(t, "get", "configmap/shop-hook", "-o", "jsonpath={.data.revision}"), `^1$`) // hooks of the revision that is rolled back to
	want(t, k.run(t, "get", "secrets", "-l", "owner=helm", "-o", "name"), `sh\.helm\.release\.v1\.shop\.v4$`)
	h.run(t, "uninstall", "helm", "shop")
	want(t, k.run(t, "get", "deployments,gadgets,pods", "-o", "name"), `^$`)
	want(t, k.run(t, "get", "crd", "gadgets.helm.example.com", "-o", "name"), `gadgets\.helm\.example\.com$`) // Helm leaves definitions
	k.run(t, "delete", "crd/gadgets.helm.example.com", "namespace/helm", "--timeout=60s")
}
