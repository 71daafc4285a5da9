//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recordEnv names a folder to which TestUpgrade writes what it would otherwise read: "make fixture".
const recordEnv = "GANTRY_E2E_RECORD"

// fixtureNamespace has everything that fixtures hold.
const fixtureNamespace = "fixture"

// fixtureKinds are compared before and after.
const fixtureKinds = "deployments,replicasets,services,configmaps,secrets,serviceaccounts,roles,rolebindings,leases"

const fixtureManifest = rolloutManifest + `
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30777}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {of: fixture}, annotations: {note: "as it was"}}
data: {greeting: hello}
binaryData: {blob: AAECAwQ=}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
immutable: true
stringData: {password: "correct horse battery staple"}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: worker}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: worker}]
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: held}
spec: {holderIdentity: someone, leaseDurationSeconds: 15}
`

// TestUpgrade starts this Gantry on the data dirs of earlier ones: what they held is there, and serves.
func TestUpgrade(t *testing.T) {
	if folder := os.Getenv(recordEnv); folder != "" {
		recordFixture(t, folder)
		return
	}
	folders, err := filepath.Glob("../fixtures/*/data.tar.gz")
	if err != nil || len(folders) == 0 {
		t.Fatalf("there are no fixtures: %v", err)
	}
	for _, archive := range folders {
		folder := filepath.Dir(archive)
		t.Run(filepath.Base(folder), func(t *testing.T) { upgradeFixture(t, folder) })
	}
}

func upgradeFixture(t *testing.T, folder string) {
	c := newCluster(t)
	if out, err := exec.Command("tar", "-C", c.dir, "-xzf", filepath.Join(folder, "data.tar.gz")).CombinedOutput(); err != nil {
		t.Fatalf("unpacking: %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(folder, "objects.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]any
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	c.up(t)
	if diff := cmp.Diff(want, c.fixtureObjects(t)); diff != "" {
		t.Errorf("objects of the data dir (-then +now):\n%s", diff)
	}
	c.load(t, true)
	c.kubectl(t, "rollout", "restart", "-n", fixtureNamespace, "deployment/web")
	c.kubectl(t, "rollout", "status", "-n", fixtureNamespace, "deployment/web", "--timeout=90s")
	if out, err := fetch(httpFrom(c.outside), "http://"+machineIP+":30777/"); err != nil {
		t.Errorf("the node port answers %q, %v", out, err)
	}
	if out := c.kubectl(t, "auth", "can-i", "list", "configmaps", "-n", fixtureNamespace, "--as=system:serviceaccount:"+fixtureNamespace+":worker"); strings.TrimSpace(out) != "yes" {
		t.Errorf("the role binding grants %q", out)
	}
}

// fixtureObjects is what must not change: identity and content, by kind and name.
func (c *cluster) fixtureObjects(t *testing.T) map[string]any {
	t.Helper()
	var list struct {
		Items []map[string]any `json:"items"`
	}
	if err := json.Unmarshal([]byte(c.kubectl(t, "get", fixtureKinds, "-n", fixtureNamespace, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]any)
	for _, item := range list.Items {
		meta, ok := item["metadata"].(map[string]any)
		if !ok {
			t.Fatalf("an object has no metadata: %v", item)
		}
		keep := map[string]any{"uid": meta["uid"], "labels": meta["labels"], "creationTimestamp": meta["creationTimestamp"]}
		for _, part := range []string{"spec", "data", "binaryData", "type", "immutable", "rules", "roleRef", "subjects"} {
			if value, ok := item[part]; ok {
				keep[part] = value
			}
		}
		found[fmt.Sprintf("%s/%s", item["kind"], meta["name"])] = keep
	}
	return found
}

// recordFixture writes the data dir of this Gantry, without what it can make anew.
func recordFixture(t *testing.T, folder string) {
	c := newCluster(t)
	c.up(t)
	c.load(t, true)
	c.namespace(t, fixtureNamespace)
	c.apply(t, fixtureNamespace, fixtureManifest)
	c.kubectl(t, "rollout", "status", "-n", fixtureNamespace, "deployment/web", "--timeout=60s")
	objects, err := json.MarshalIndent(c.fixtureObjects(t), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	c.kill(t, syscall.SIGTERM)
	node, err := os.ReadFile(filepath.Join(c.dir, "node.json"))
	if err != nil {
		t.Fatal(err)
	}
	var identity map[string]string
	if err := json.Unmarshal(node, &identity); err != nil {
		t.Fatal(err)
	}
	delete(identity, "machine") // it is for every machine
	if node, err = json.Marshal(identity); err != nil {
		t.Fatal(err)
	}
	copied := t.TempDir()
	for _, part := range []string{"etcd", "pki"} {
		if err := os.CopyFS(filepath.Join(copied, part), os.DirFS(filepath.Join(c.dir, part))); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string][]byte{filepath.Join(copied, "node.json"): node, filepath.Join(folder, "objects.json"): append(objects, '\n')} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Files of etcd are made larger than they are; zeros pack well.
	out, err := exec.Command("sh", "-c", `tar -C "$0" --sort=name --owner=0 --group=0 -cSf - . | gzip -9n >"$1/data.tar.gz"`, copied, folder).CombinedOutput()
	if err != nil {
		t.Fatalf("packing: %v\n%s", err, out)
	}
}
