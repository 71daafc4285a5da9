package plan_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/gantrytest"
	"gantry.dev/gantry/internal/plan"
)

// manifest is a Deployment of pods that each ask for that much CPU.
func manifest(name string, replicas int, cpu, more string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      containers:
      - name: main
        image: example.com/app:1
        resources: {requests: {cpu: "%[3]s"}}
%[4]s
---
`, name, replicas, cpu, more)
}

func options(c *gantrytest.Cluster) plan.Options {
	return plan.Options{Cluster: c.Config("root", "system:masters")}
}

// apply puts documents into the real cluster and waits until its pods have nodes.
func apply(t *testing.T, c *gantrytest.Cluster, replicas int, documents string) {
	t.Helper()
	result, err := plan.Manifest(t.Context(), strings.NewReader(documents), options(c))
	if err != nil {
		t.Fatal(err)
	}
	if n := count(result, plan.Created); n != replicas {
		t.Errorf("%d pods are planned, want %d: %+v", n, replicas, result)
	}
	var deployment appsv1.Deployment
	decode(t, documents, &deployment)
	deployment.Namespace = "default"
	if err := c.Client.Create(t.Context(), &deployment); err != nil {
		t.Fatal(err)
	}
	c.Eventually("the pods have nodes", func() error {
		bound := 0
		for _, pod := range pods(t, c) {
			if pod.Spec.NodeName != "" && pod.Labels["app"] == deployment.Name {
				bound++
			}
		}
		if bound != replicas {
			return fmt.Errorf("%d of %d", bound, replicas)
		}
		return nil
	})
}

func pods(t *testing.T, c *gantrytest.Cluster) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	if err := c.Client.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func count(result plan.Result, verb plan.Verb) int {
	n := 0
	for _, change := range result.Pods {
		if change.Verb == verb {
			n++
		}
	}
	return n
}

// state is everything that a plan may not change.
func state(t *testing.T, c *gantrytest.Cluster) string {
	t.Helper()
	var deployments appsv1.DeploymentList
	if err := c.Client.List(t.Context(), &deployments); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal([]any{pods(t, c), deployments.Items})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestManifest(t *testing.T) {
	c := gantrytest.Start(t, gantrytest.Options{Nodes: 2}) // of 8 CPUs
	apply(t, c, 6, manifest("low", 6, "2", ""))
	if err := c.Client.Create(t.Context(), priorityClass("urgent", 1000)); err != nil {
		t.Fatal(err)
	}
	before := state(t, c)
	for name, tc := range map[string]struct {
		documents string
		want      map[plan.Verb]int
		objects   []string
		message   string // in that of a pod that is left pending
	}{
		"room": {manifest("web", 2, "1", ""), map[plan.Verb]int{plan.Created: 2}, []string{"created Deployment/web"}, ""},
		"no room": {
			manifest("web", 3, "2", ""), map[plan.Verb]int{plan.Created: 2, plan.Pending: 1}, []string{"created Deployment/web"},
			"0/2 nodes are available: 2 Insufficient cpu.",
		},
		"a rollout": {
			manifest("low", 6, "1", ""), map[plan.Verb]int{plan.Created: 6, plan.Deleted: 6},
			[]string{"changed Deployment/low [spec.template.spec.containers]"}, "",
		},
		"scaled down": {manifest("low", 4, "2", ""), map[plan.Verb]int{plan.Deleted: 2}, []string{"changed Deployment/low [spec.replicas]"}, ""},
		"preemption": {
			manifest("big", 1, "8", "      priorityClassName: urgent"), map[plan.Verb]int{plan.Created: 2, plan.Preempted: 3, plan.Pending: 2}, // one that was preempted finds another place
			[]string{"created Deployment/big"}, "Insufficient cpu",
		},
		"a namespace of the same documents": {
			"apiVersion: v1\nkind: Namespace\nmetadata: {name: fresh}\n---\n" + strings.Replace(manifest("web", 1, "1", ""), "{name: web}", "{name: web, namespace: fresh}", 1),
			map[plan.Verb]int{plan.Created: 1},
			[]string{"created ConfigMap/kube-root-ca.crt", "created Deployment/web", "created Namespace/fresh", "created ServiceAccount/default"}, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := plan.Manifest(t.Context(), strings.NewReader(tc.documents), options(c))
			if err != nil {
				t.Fatal(err)
			}
			for _, verb := range []plan.Verb{plan.Created, plan.Deleted, plan.Placed, plan.Moved, plan.Replaced, plan.Preempted, plan.Pending} {
				if got := count(result, verb); got != tc.want[verb] {
					t.Errorf("%d pods are %s, want %d", got, verb, tc.want[verb])
				}
			}
			var objects []string
			for _, o := range result.Objects {
				line := fmt.Sprintf("%s %s/%s", o.Verb, o.Kind, o.Name)
				if len(o.Fields) > 0 {
					line += fmt.Sprint(" ", o.Fields)
				}
				objects = append(objects, line)
			}
			if !slices.Equal(objects, tc.objects) {
				t.Errorf("objects are %q, want %q", objects, tc.objects)
			}
			for _, pod := range result.Pods {
				if pod.Verb == plan.Pending && !strings.Contains(pod.Message, tc.message) || pod.Verb == plan.Created && pod.To == "" {
					t.Errorf("pod %+v, want the message %q", pod, tc.message)
				}
			}
			if !result.Settled || t.Failed() {
				t.Errorf("result %+v", result)
			}
		})
	}
	if after := state(t, c); after != before {
		t.Errorf("the cluster was changed:\n%s\n%s", before, after)
	}
	if left, err := os.ReadDir("/dev/shm"); err == nil {
		for _, entry := range left {
			if strings.HasPrefix(entry.Name(), "gantry-plan-") {
				t.Errorf("%s is left", entry.Name())
			}
		}
	}
}

const definition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  names: {kind: Widget, plural: widgets}
  scope: Cluster
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
`

// Kinds of the cluster are in the copy, and a kind of the same documents is served in it.
func TestCustomKinds(t *testing.T) {
	c := gantrytest.Start(t, gantrytest.Options{})
	widget := "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: a}\nsize: 3\n"
	result, err := plan.Manifest(t.Context(), strings.NewReader(definition+widget), options(c))
	if err != nil || len(result.Objects) != 2 || result.Objects[1].Kind != "Widget" {
		t.Fatalf("result %+v, %v", result, err)
	}
	var made apiextensionsv1.CustomResourceDefinition
	decode(t, definition, &made)
	if err := c.Client.Create(t.Context(), &made); err != nil {
		t.Fatal(err)
	}
	object := &unstructured.Unstructured{}
	decode(t, widget, &object.Object)
	c.Eventually("the kind is served", func() error { return c.Client.Create(t.Context(), object.DeepCopy()) })
	result, err = plan.Manifest(t.Context(), strings.NewReader(strings.Replace(widget, "3", "4", 1)), options(c))
	if err != nil || len(result.Objects) != 1 || result.Objects[0].Verb != plan.Changed || !slices.Equal(result.Objects[0].Fields, []string{"size"}) {
		t.Errorf("result %+v, %v", result, err)
	}
}

func TestBadManifests(t *testing.T) {
	c := gantrytest.Start(t, gantrytest.Options{})
	for name, tc := range map[string]struct{ documents, want string }{
		"no YAML":                         {"a: [", "document 1 is neither YAML nor JSON"},
		"no object":                       {"a: b", "document 1 is no object: it needs apiVersion, kind and metadata.name"},
		"nothing":                         {"---\n---\n", "there is no object in it"},
		"no name":                         {"apiVersion: v1\nkind: Pod\nmetadata: {generateName: a-}", "a Pod without metadata.name cannot be applied"},
		"invalid":                         {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}", "spec.containers: Required value"},
		"no namespace":                    {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: none}", `namespaces "none" not found`},
		"no kind, but another definition": {definition + "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}", "the cluster serves no example.com/v1, Kind=Thing"},
		"no kind":                         {"apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}", "the cluster serves no example.com/v1, Kind=Thing"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := plan.Manifest(t.Context(), strings.NewReader(tc.documents), options(c))
			var input *plan.InputError
			if !errors.As(err, &input) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("the error is %v, want one of the input with %q", err, tc.want)
			}
		})
	}
}

func TestPod(t *testing.T) {
	c := gantrytest.Start(t, gantrytest.Options{Nodes: 2})
	for name, tc := range map[string]struct {
		change  func(*corev1.Pod)
		node    func(*corev1.Node)
		message string
		cure    string
	}{
		"too large": {change: func(p *corev1.Pod) { request(p, "cpu", "10") }, message: "2 Insufficient cpu",
			cure: "ask for at most 8 of cpu, or free some on a node (the containers ask for 10)"},
		"too much memory": {change: func(p *corev1.Pod) { request(p, "memory", "40Gi") }, message: "2 Insufficient memory", cure: "ask for at most 32Gi of memory"},
		"far too large":   {change: func(p *corev1.Pod) { request(p, "cpu", "10k") }, message: "2 Insufficient cpu", cure: "ask for at most 8 of cpu"},
		"selector": {change: func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} },
			message: "didn't match Pod's node affinity/selector", cure: "drop spec.nodeSelector, or give a node its labels: then node-"},
		"no device": {change: func(p *corev1.Pod) { request(p, "example.com/gpu", "1") }, message: "2 Insufficient example.com/gpu",
			cure: "ask for no example.com/gpu, or free some on a node"},
		"gate": {change: func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}} },
			message: "it waits for its scheduling gates to be removed: example.com/wait"},
		"other scheduler": {change: func(p *corev1.Pod) { p.Spec.SchedulerName = "mine" }, message: `it waits for the scheduler "mine"`},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
			pod.Namespace, pod.Name = "default", strings.ReplaceAll(name, " ", "-")
			tc.change(pod)
			if err := c.Client.Create(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
			answer, err := plan.Pod(t.Context(), ctrlclient.ObjectKeyFromObject(pod), options(c))
			if err != nil {
				t.Fatal(err)
			}
			cured := tc.cure == "" && len(answer.Cures) == 0 || slices.ContainsFunc(answer.Cures, func(cure string) bool { return strings.Contains(cure, tc.cure) })
			if !strings.Contains(answer.Message, tc.message) || !cured || len(answer.Nodes) != 2 {
				t.Errorf("answer %+v, want the message %q and the cure %q", answer, tc.message, tc.cure)
			}
		})
	}
	placed := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	placed.Namespace, placed.Name = "default", "placed"
	if err := c.Client.Create(t.Context(), placed); err != nil {
		t.Fatal(err)
	}
	c.Eventually("the pod has a node", func() error {
		var pod corev1.Pod
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(placed), &pod); err != nil || pod.Spec.NodeName == "" {
			return fmt.Errorf("it has none: %w", err)
		}
		return nil
	})
	answer, err := plan.Pod(t.Context(), ctrlclient.ObjectKeyFromObject(placed), options(c))
	if err != nil || answer.Node == "" || answer.Best == "" || len(answer.Nodes) != 2 || answer.Nodes[0].Score == 0 || len(answer.Nodes[0].Scores) == 0 {
		t.Errorf("answer %+v, %v", answer, err)
	}
	if _, err := plan.Pod(t.Context(), types.NamespacedName{Namespace: "default", Name: "none"}, options(c)); !apierrors.IsNotFound(err) {
		t.Errorf("a pod that does not exist: %v", err)
	}
}

// A node that is cordoned or tainted is named with its cure.
func TestPodOnTaintedNodes(t *testing.T) {
	c := gantrytest.Start(t, gantrytest.Options{Nodes: 2})
	change(t, c, "node-0", func(n *corev1.Node) { n.Spec.Unschedulable = true })
	change(t, c, "node-1", func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "team", Value: "a", Effect: corev1.TaintEffectNoSchedule})
	})
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	pod.Namespace, pod.Name = "default", "kept-out"
	if err := c.Client.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	answer, err := plan.Pod(t.Context(), ctrlclient.ObjectKeyFromObject(pod), options(c))
	want := []string{"kubectl uncordon node-0: then node-0 takes it", "tolerate the taint team=a:NoSchedule, or remove it: then node-1 takes it"}
	if err != nil || !slices.Equal(answer.Cures, want) {
		t.Errorf("answer %+v, %v; want the cures %q", answer, err, want)
	}
}
