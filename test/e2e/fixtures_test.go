//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recordEnv names a folder to which TestUpgrade writes what it would otherwise read: "make fixture".
const recordEnv = "GANTRY_E2E_RECORD"

// fixtureNamespace has everything that fixtures hold.
const fixtureNamespace = "fixture"

// recordedKinds are those that a new fixture has.
const recordedKinds = "deployment,replicaset,service,configmap,secret,serviceaccount,role,rolebinding,lease,statefulset,cronjob," +
	"horizontalpodautoscaler,poddisruptionbudget,ingress,networkpolicy,resourcequota,limitrange,podtemplate,widget," +
	"daemonset,job,replicationcontroller,persistentvolumeclaim"

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
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 0
  serviceName: db
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: db, image: "app:e2e"}]}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  suspend: true
  schedule: "0 3 * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "app:e2e"}]}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template: {metadata: {labels: {app: everywhere}}, spec: {nodeSelector: {no: such}, containers: [{name: c, image: "app:e2e"}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: later}
spec:
  suspend: true
  completions: 3
  completionMode: Indexed
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "app:e2e"}]}}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: old}
spec: {replicas: 0, selector: {app: old}, template: {metadata: {labels: {app: old}}, spec: {containers: [{name: c, image: "app:e2e"}]}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: waits}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, minReplicas: 2, maxReplicas: 5}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{}]}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: pods}
spec: {hard: {pods: "50"}}
---
apiVersion: v1
kind: LimitRange
metadata: {name: limits}
spec: {limits: [{type: Container, defaultRequest: {cpu: 10m}}]}
---
apiVersion: v1
kind: PodTemplate
metadata: {name: some}
template: {metadata: {labels: {app: some}}, spec: {containers: [{name: c, image: "app:e2e"}]}}
---
apiVersion: fixture.example.com/v1
kind: Widget
metadata: {name: large}
spec: {size: 7}
`

// fixtureDefinition comes before what is of its kind.
const fixtureDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.fixture.example.com}
spec:
  group: fixture.example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {size: {type: integer, minimum: 1}, color: {type: string, default: blue}}}
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
	kinds := map[string]bool{}
	for key := range want {
		kind, _, _ := strings.Cut(key, "/")
		kinds[strings.ToLower(kind)] = true
	}
	if diff := cmp.Diff(want, c.fixtureObjects(t, strings.Join(slices.Sorted(maps.Keys(kinds)), ","))); diff != "" {
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
func (c *cluster) fixtureObjects(t *testing.T, kinds string) map[string]any {
	t.Helper()
	var list struct {
		Items []map[string]any `json:"items"`
	}
	if err := json.Unmarshal([]byte(c.kubectl(t, "get", kinds, "-n", fixtureNamespace, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]any)
	for _, item := range list.Items {
		meta, ok := item["metadata"].(map[string]any)
		if !ok {
			t.Fatalf("an object has no metadata: %v", item)
		}
		keep := map[string]any{"uid": meta["uid"], "labels": meta["labels"], "creationTimestamp": meta["creationTimestamp"]}
		for _, part := range []string{"spec", "data", "binaryData", "type", "immutable", "rules", "roleRef", "subjects", "template"} {
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
	c.apply(t, fixtureNamespace, fixtureDefinition)
	c.kubectl(t, "wait", "--for=condition=Established", "crd/widgets.fixture.example.com", "--timeout=30s")
	c.apply(t, fixtureNamespace, fixtureManifest)
	c.kubectl(t, "rollout", "status", "-n", fixtureNamespace, "deployment/web", "--timeout=60s")
	objects, err := json.MarshalIndent(c.fixtureObjects(t, recordedKinds), "", " ")
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
