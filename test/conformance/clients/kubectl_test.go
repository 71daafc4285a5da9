//go:build linux

package clients

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gantry.dev/gantry/test/conformance"
	"gantry.dev/gantry/test/conformance/cluster"
	"gantry.dev/gantry/test/upstream"
)

// kubectl is one release of kubectl with a namespace of its own.
type kubectl struct {
	cluster            *cluster.Cluster
	program, namespace string
}

func TestKubectl(t *testing.T) {
	c := needCluster(t)
	for _, release := range []struct {
		name    string
		program func(*testing.T) string
	}{
		{"1.36", func(*testing.T) string { return c.Kubectl() }},
		{"1.32", oldKubectl},
	} {
		t.Run(release.name, func(t *testing.T) {
			k := kubectl{c, release.program(t), "kubectl-" + strings.ReplaceAll(release.name, ".", "-")}
			k.run(t, "create", "namespace", k.namespace)
			for name, test := range map[string]func(*testing.T, kubectl){
				"versions": testVersions, "create, get, describe": testCreate, "label, annotate, patch": testPatch,
				"apply": testApply, "server-side apply": testServerSideApply, "diff": testDiff, "edit": testEdit, "explain": testExplain,
				"auth": testAuth, "kustomize": testKustomize, "wait": testWait, "rollout and scale": testRollout,
				"logs, exec, cp": testRunning, "custom resources": testCustomResources,
			} {
				t.Run(name, func(t *testing.T) { test(t, k) })
			}
			t.Run("drain", func(t *testing.T) { testDrain(t, k) }) // last: nothing can be scheduled meanwhile
			k.run(t, "delete", "namespace", k.namespace, "--timeout=60s")
		})
	}
}

// oldKubectl builds the oldest kubectl that is supported.
func oldKubectl(t *testing.T) string {
	t.Helper()
	dir, err := upstream.Build(t.Context(), upstream.BuildOptions{
		Module: root + "/test/conformance/kubectl132", Cache: root + "/.cache/kubectl", Log: t.Output(),
		Programs: conformance.KubectlPrograms(), Version: conformance.OldKubectl,
	})
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "kubectl")
}

// try runs kubectl with an input and settings.
func (k kubectl) try(t *testing.T, stdin string, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	defer cancel()
	cmd := k.cluster.Command(ctx, k.program, append([]string{"--namespace=" + k.namespace}, args...)...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Env = append(cmd.Env, "HOME="+t.TempDir()) // its cache of discovery is its own
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	return finish(t, cmd)
}

// run is a command that must work; it returns what it printed.
func (k kubectl) run(t *testing.T, args ...string) string {
	t.Helper()
	return k.feed(t, "", args...)
}

func (k kubectl) feed(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	r := k.try(t, stdin, nil, args...)
	if r.code != 0 {
		t.Fatalf("kubectl %s: %v", strings.Join(args, " "), r)
	}
	return r.stdout
}

// want fails the test unless text matches each pattern.
func want(t *testing.T, text string, patterns ...string) {
	t.Helper()
	for _, pattern := range patterns {
		if !regexp.MustCompile(`(?m)` + pattern).MatchString(text) {
			t.Errorf("%q is not in\n%s", pattern, text)
		}
	}
}

// manifest is a file of testdata with the placeholders filled in.
func (k kubectl) manifest(t *testing.T, name string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(append(replace, "BUSYBOX", cluster.Busybox, "NAMESPACE", k.namespace)...).Replace(string(text))
}

func testVersions(t *testing.T, k kubectl) {
	want(t, k.run(t, "version"), `^Server Version: v1\.36\.`)
	want(t, k.run(t, "api-versions"), `^v1$`, `^apps/v1$`, `^rbac\.authorization\.k8s\.io/v1$`)
	want(t, k.run(t, "api-resources"), `^pods +po +v1 +true +Pod$`, `^deployments +deploy +apps/v1 +true +Deployment$`)
	want(t, k.run(t, "cluster-info"), `Kubernetes control plane.* is running at .*https://127\.0\.0\.1:6443`)
	want(t, k.run(t, "get", "--raw", "/readyz"), `^ok$`)
}

func testCreate(t *testing.T, k kubectl) {
	want(t, k.run(t, "create", "configmap", "made", "--from-literal=color=red"), `^configmap/made created$`)
	k.run(t, "create", "secret", "generic", "hidden", "--from-literal=password=abc")
	k.run(t, "create", "serviceaccount", "robot")
	want(t, k.run(t, "create", "token", "robot"), `^ey[\w-]+\.[\w-]+\.[\w-]+`)
	want(t, k.run(t, "get", "configmap", "made"), `^NAME +DATA +AGE$`, `^made +1 +\d+s$`)
	want(t, k.run(t, "get", "configmap", "made", "-o", "jsonpath={.data.color}"), `^red$`)
	want(t, k.run(t, "get", "cm/made", "-o", "yaml"), `^  color: red$`, `^kind: ConfigMap$`)
	want(t, k.run(t, "get", "secrets", "-o", "custom-columns=N:.metadata.name,T:.type"), `^hidden +Opaque$`)
	want(t, k.run(t, "describe", "configmap", "made"), `^Name: +made$`, `^color:$`, `^red$`)
	want(t, k.run(t, "describe", "secret", "hidden"), `^password: +3 bytes$`)
	if r := k.try(t, "", nil, "create", "configmap", "made"); r.code != 1 || !strings.Contains(r.stderr, `configmaps "made" already exists`) {
		t.Errorf("create again: %v", r)
	}
	if r := k.try(t, "", nil, "get", "configmap", "absent"); r.code != 1 || !strings.Contains(r.stderr, `(NotFound): configmaps "absent" not found`) {
		t.Errorf("get of what is absent: %v", r)
	}
	want(t, k.run(t, "create", "configmap", "dry", "--dry-run=server", "-o", "name"), `^configmap/dry$`)
	if r := k.try(t, "", nil, "get", "configmap", "dry"); r.code != 1 {
		t.Errorf("a dry run has stored something: %v", r)
	}
	want(t, k.run(t, "delete", "configmap/made", "secret/hidden"), `^configmap "made" deleted`, `^secret "hidden" deleted`)
}

func testPatch(t *testing.T, k kubectl) {
	k.run(t, "create", "configmap", "patched", "--from-literal=a=1")
	k.run(t, "label", "configmap", "patched", "team=web")
	if r := k.try(t, "", nil, "label", "configmap", "patched", "team=db"); r.code != 1 || !strings.Contains(r.stderr, "--overwrite is false") {
		t.Errorf("a label is changed without --overwrite: %v", r)
	}
	k.run(t, "label", "configmap", "patched", "team=db", "--overwrite")
	k.run(t, "annotate", "configmap", "patched", "note=hello there")
	want(t, k.run(t, "get", "configmap", "-l", "team=db", "-o", "name"), `^configmap/patched$`)
	want(t, k.run(t, "get", "configmap", "-l", "team!=db", "-o", "name"), `^configmap/kube-root-ca\.crt$`)
	k.run(t, "patch", "configmap", "patched", "--type=merge", "-p", `{"data":{"b":"2"}}`)
	k.run(t, "patch", "configmap", "patched", "--type=json", "-p", `[{"op":"remove","path":"/data/a"}]`)
	k.run(t, "patch", "configmap", "patched", "-p", `{"metadata":{"annotations":{"note":null}}}`)
	want(t, k.run(t, "get", "configmap", "patched", "-o", "jsonpath={.data} {.metadata.annotations}"), `^\{"b":"2"\} *$`)
	want(t, k.run(t, "get", "configmap", "--field-selector=metadata.name=patched", "-o", "name"), `^configmap/patched$`)
}

func testApply(t *testing.T, k kubectl) {
	red := k.manifest(t, "settings.yaml", "COLOR", "red")
	want(t, k.feed(t, red, "apply", "-f", "-"), `^configmap/settings created$`)
	want(t, k.feed(t, red, "apply", "-f", "-"), `^configmap/settings unchanged$`)
	want(t, k.feed(t, k.manifest(t, "settings.yaml", "COLOR", "blue"), "apply", "-f", "-"), `^configmap/settings configured$`)
	want(t, k.run(t, "apply", "view-last-applied", "configmap/settings"), `color: blue`)
	if r := k.try(t, strings.ReplaceAll(red, "\ndata:", "\ndada: {}\ndata:"), nil, "apply", "-f", "-"); r.code != 1 || !strings.Contains(r.stderr, `unknown field "dada"`) {
		t.Errorf("an unknown field: %v", r)
	}
	want(t, k.feed(t, red, "replace", "-f", "-"), `^configmap/settings replaced$`)
	want(t, k.feed(t, red, "delete", "-f", "-"), `^configmap "settings" deleted`)
}

func testServerSideApply(t *testing.T, k kubectl) {
	red, blue := k.manifest(t, "settings.yaml", "COLOR", "red", "name: settings", "name: applied"), k.manifest(t, "settings.yaml", "COLOR", "blue", "name: settings", "name: applied")
	want(t, k.feed(t, red, "apply", "--server-side", "-f", "-"), `^configmap/applied serverside-applied$`)
	r := k.try(t, blue, nil, "apply", "--server-side", "--field-manager=other", "-f", "-")
	if r.code != 1 || !strings.Contains(r.stderr, `conflict with "kubectl": .data.color`) {
		t.Errorf("two managers: %v", r)
	}
	k.feed(t, blue, "apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-")
	want(t, k.run(t, "get", "configmap", "applied", "-o", "jsonpath={.data.color}"), `^blue$`)
	want(t, k.run(t, "get", "configmap", "applied", "-o", "yaml", "--show-managed-fields"), `manager: other`, `f:color: \{\}`)
}

func testDiff(t *testing.T, k kubectl) {
	red := k.manifest(t, "settings.yaml", "COLOR", "red", "name: settings", "name: compared")
	k.feed(t, red, "apply", "-f", "-")
	if r := k.try(t, red, nil, "diff", "-f", "-"); r.code != 0 || r.stdout != "" {
		t.Errorf("no difference: %v", r)
	}
	r := k.try(t, strings.ReplaceAll(red, "color: red", "color: green"), nil, "diff", "-f", "-")
	if r.code != 1 {
		t.Errorf("a difference: %v", r)
	}
	want(t, r.stdout, `^-  color: red$`, `^\+  color: green$`)
	want(t, k.run(t, "get", "configmap", "compared", "-o", "jsonpath={.data.color}"), `^red$`)
}

func testEdit(t *testing.T, k kubectl) {
	k.run(t, "create", "configmap", "edited", "--from-literal=color=red")
	r := k.try(t, "", []string{"KUBE_EDITOR=sed -i s/red/green/"}, "edit", "configmap", "edited")
	if r.code != 0 {
		t.Fatalf("edit: %v", r)
	}
	want(t, r.stdout, `^configmap/edited edited$`)
	want(t, k.run(t, "get", "configmap", "edited", "-o", "jsonpath={.data.color}"), `^green$`)
	if r := k.try(t, "", []string{"KUBE_EDITOR=true"}, "edit", "configmap", "edited"); r.code != 0 || !strings.Contains(r.stdout+r.stderr, "no changes made") {
		t.Errorf("edit without a change: %v", r)
	}
}

func testExplain(t *testing.T, k kubectl) {
	want(t, k.run(t, "explain", "deployment.spec.replicas"), `^GROUP: +apps$`, `^FIELD: replicas <integer>$`, `Number of desired pods`)
	want(t, k.run(t, "explain", "pods", "--recursive"), `^    containers\t<\[\]Container> -required-$`, `^      livenessProbe\t<Probe>$`)
	if r := k.try(t, "", nil, "explain", "pods.nothing"); r.code != 1 {
		t.Errorf("explain of a field that is not there: %v", r)
	}
}

func testAuth(t *testing.T, k kubectl) {
	want(t, k.run(t, "auth", "can-i", "create", "pods"), `^yes$`)
	want(t, k.run(t, "auth", "whoami"), `^Username +kubernetes-admin$`)
	if r := k.try(t, "", nil, "auth", "can-i", "create", "pods", "--as=jane"); r.code != 1 || strings.TrimSpace(r.stdout) != "no" {
		t.Errorf("jane may create pods: %v", r)
	}
	k.run(t, "create", "role", "looker", "--verb=get,list", "--resource=configmaps,deployments.apps")
	k.run(t, "create", "rolebinding", "jane-looks", "--role=looker", "--user=jane")
	want(t, k.run(t, "auth", "can-i", "list", "deployments.apps", "--as=jane"), `^yes$`)
	want(t, k.run(t, "auth", "can-i", "--list", "--as=jane"), `^configmaps +\[\] +\[\] +\[get list\]$`)
	if r := k.try(t, "", nil, "get", "secrets", "--as=jane"); r.code != 1 || !strings.Contains(r.stderr, `(Forbidden): secrets is forbidden: User "jane" cannot list resource "secrets" in API group "" in the namespace "`+k.namespace+`"`) {
		t.Errorf("jane lists secrets: %v", r)
	}
	want(t, k.feed(t, k.manifest(t, "role.yaml"), "auth", "reconcile", "-f", "-"), `role.rbac.authorization.k8s.io/reconciled reconciled`)
}

func testKustomize(t *testing.T, k kubectl) {
	want(t, k.run(t, "kustomize", "testdata/kustomize"), `^  name: shop-settings-\w+$`)
	out := k.run(t, "apply", "-k", "testdata/kustomize")
	want(t, out, `^configmap/shop-settings-\w+ created$`, `^service/shop-web created$`)
	want(t, k.run(t, "get", "service", "shop-web", "-o", "jsonpath={.metadata.labels.team}"), `^web$`)
	want(t, k.run(t, "delete", "-k", "testdata/kustomize"), `^service "shop-web" deleted`)
}
