package gantrytest

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/clientcmd"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/config"
)

// record names the kubeconfig of an upstream control plane without nodes: what it does is
// written down as what Gantry has to do.
var record = flag.String("record-workloads", "", "kubeconfig of upstream's control plane; rewrites testdata/workloads.golden")

// TestWorkloadsAreUpstreams takes workloads through their life and compares every object
// and event with what kube-controller-manager 1.36.3 made of the same. It runs in real time:
// events of one virtual moment would get one name.
func TestWorkloadsAreUpstreams(t *testing.T) {
	golden := filepath.Join("testdata", "workloads.golden")
	if *record != "" {
		config, err := clientcmd.BuildConfigFromFlags("", *record)
		if err != nil {
			t.Fatal(err)
		}
		config.QPS, config.Burst = 1000, 1000
		c, err := ctrlclient.New(config, ctrlclient.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		workloadLives(t, &Cluster{Client: c, t: t}, func(step string, now func() string) {
			fmt.Fprintf(&out, "%s%s\n%s", stepMark, step, atRest(now))
		})
		if err := os.WriteFile(golden, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	recorded, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for part := range strings.SplitSeq(string(recorded), stepMark) {
		step, lines, _ := strings.Cut(part, "\n")
		want[step] = lines
	}
	upstreams := &config.Tolerations{NotReady: 300, Unreachable: 300}
	workloadLives(t, Start(t, Options{Tolerations: upstreams}), func(step string, now func() string) {
		for end := time.Now().Add(time.Minute); now() != want[step] && time.Now().Before(end); {
			<-time.After(20 * time.Millisecond)
		}
		if diff := cmp.Diff(strings.Split(want[step], "\n"), strings.Split(now(), "\n")); diff != "" {
			t.Errorf("%s: other than upstream (-upstream +gantry):\n%s", step, diff)
		}
	})
}

// stepMark begins a step in the golden file.
const stepMark = "## "

// atRest returns what now says once that has not changed for two seconds.
func atRest(now func() string) string {
	last, since := now(), time.Now()
	for time.Since(since) < 2*time.Second {
		<-time.After(50 * time.Millisecond)
		if next := now(); next != last {
			last, since = next, time.Now()
		}
	}
	return last
}

// workloadLives starts, rolls and scales a workload of each kind and tells reach of every
// step, with a function that says what there is.
func workloadLives(t *testing.T, c *Cluster, reach func(step string, now func() string)) {
	t.Helper()
	c.AddNode("node-0")
	c.AddNode("node-1")
	ctx, cancel := context.WithCancel(t.Context())
	played := make(chan struct{})
	go func() {
		defer close(played)
		for ctx.Err() == nil {
			for _, pod := range podsIn(ctx, c) {
				makeReady(ctx, c, &pod)
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	defer func() { cancel(); <-played }()
	for _, life := range []func(*testing.T, *Cluster, func(string)){statefulLife, daemonLife, replicationLife, deploymentLife} {
		life(t, c, func(step string) { reach(step, func() string { return picture(t, c) }) })
	}
	reach("events", func() string { return eventPicture(t, c) })
}

// makeReady plays the node: every pod runs, whether it has a node or not.
func makeReady(ctx context.Context, c *Cluster, pod *corev1.Pod) {
	switch {
	case pod.DeletionTimestamp != nil:
		_ = c.Client.Delete(ctx, pod.DeepCopy(), ctrlclient.GracePeriodSeconds(0))
	case pod.Status.Phase == corev1.PodPending:
		next := pod.DeepCopy()
		next.Status.Phase = corev1.PodRunning
		next.Status.Conditions = append(next.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
		_ = c.Client.Status().Update(ctx, next)
	}
}

// settles waits until a workload's status satisfies done.
func settles[T any, P object[T]](t *testing.T, c *Cluster, obj P, done func(P) bool) {
	t.Helper()
	c.Eventually(obj.GetName()+" settles", func() error {
		stored := P(new(T))
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(obj), stored); err != nil {
			return err
		}
		if !done(stored) {
			return fmt.Errorf("it is %s", text(stored))
		}
		return nil
	})
}

type object[T any] interface {
	*T
	ctrlclient.Object
}

func statefulLife(t *testing.T, c *Cluster, note func(string)) {
	three, noClass := int32(3), ""
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db", Annotations: map[string]string{"team": "shop"}},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &three, Selector: selects("db"), Template: podTemplate("db", "a:1"), ServiceName: "db",
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{
				ObjectMeta: metav1.ObjectMeta{Name: "data", Labels: map[string]string{"tier": "fast"}},
				Spec: corev1.PersistentVolumeClaimSpec{
					StorageClassName: &noClass, // upstream brings no class, so nobody fills the claims
					AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
				},
			}},
			PersistentVolumeClaimRetentionPolicy: &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: "Delete", WhenScaled: "Retain"},
		},
	}
	mustCreate(t, c, set)
	settled := func(n int32) func(*appsv1.StatefulSet) bool {
		return func(s *appsv1.StatefulSet) bool {
			return s.Status.ObservedGeneration == s.Generation && s.Status.AvailableReplicas == n && s.Status.Replicas == n && s.Status.CurrentRevision == s.Status.UpdateRevision
		}
	}
	settles(t, c, set, settled(3))
	note("stateful set started")
	change(t, c, set, func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = "a:2" })
	settles(t, c, set, settled(3))
	note("stateful set rolled")
	two := int32(2)
	change(t, c, set, func(s *appsv1.StatefulSet) {
		s.Spec.Template.Spec.Containers[0].Image = "a:1"
		s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: &two}
	})
	settles(t, c, set, func(s *appsv1.StatefulSet) bool {
		return s.Status.ObservedGeneration == s.Generation && s.Status.UpdatedReplicas == 1 && s.Status.AvailableReplicas == 3
	})
	note("stateful set rolled back, but for a partition")
	change(t, c, set, func(s *appsv1.StatefulSet) { *s.Spec.Replicas = 1 })
	settles(t, c, set, func(s *appsv1.StatefulSet) bool {
		return s.Status.ObservedGeneration == s.Generation && s.Status.Replicas == 1
	})
	note("stateful set scaled down")
	gone(t, c, set)
}

func daemonLife(t *testing.T, c *Cluster, note func(string)) {
	zero, one := intstr.FromInt32(0), intstr.FromInt32(1)
	ds := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "log", Annotations: map[string]string{"team": "shop"}},
		Spec:       appsv1.DaemonSetSpec{Selector: selects("log"), Template: podTemplate("log", "a:1")},
	}
	mustCreate(t, c, ds)
	settled := func(s *appsv1.DaemonSet) bool {
		return s.Status.ObservedGeneration == s.Generation && s.Status.NumberAvailable == 2 && s.Status.UpdatedNumberScheduled == 2
	}
	settles(t, c, ds, settled)
	note("daemon set started")
	change(t, c, ds, func(s *appsv1.DaemonSet) { s.Spec.Template.Spec.Containers[0].Image = "a:2" })
	settles(t, c, ds, settled)
	note("daemon set rolled")
	change(t, c, ds, func(s *appsv1.DaemonSet) {
		s.Spec.Template.Spec.Containers[0].Image = "a:1"
		s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxSurge: &one, MaxUnavailable: &zero}
	})
	settles(t, c, ds, settled)
	note("daemon set rolled back with surge")
	change(t, c, ds, func(s *appsv1.DaemonSet) {
		s.Spec.Template.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "node-1"}
	})
	settles(t, c, ds, func(s *appsv1.DaemonSet) bool {
		return s.Status.ObservedGeneration == s.Generation && s.Status.DesiredNumberScheduled == 1 && s.Status.NumberAvailable == 1 && s.Status.UpdatedNumberScheduled == 1 && s.Status.NumberMisscheduled == 0
	})
	note("daemon set on one node")
	gone(t, c, ds)
}

func replicationLife(t *testing.T, c *Cluster, note func(string)) {
	two, pods := int32(2), podTemplate("old", "a:1")
	rc := &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "old"},
		Spec:       corev1.ReplicationControllerSpec{Replicas: &two, Template: &pods},
	}
	mustCreate(t, c, rc)
	settled := func(n int32) func(*corev1.ReplicationController) bool {
		return func(rc *corev1.ReplicationController) bool {
			return rc.Status.ObservedGeneration == rc.Generation && rc.Status.AvailableReplicas == n && rc.Status.Replicas == n
		}
	}
	settles(t, c, rc, settled(2))
	note("replication controller started")
	change(t, c, rc, func(rc *corev1.ReplicationController) { *rc.Spec.Replicas = 1 })
	settles(t, c, rc, settled(1))
	note("replication controller scaled down")
	gone(t, c, rc)
}

func deploymentLife(t *testing.T, c *Cluster, note func(string)) {
	web := deployment("web", 2)
	web.Annotations = map[string]string{"team": "shop"}
	mustCreate(t, c, web)
	settled := func(d *appsv1.Deployment) bool {
		s := d.Status
		return s.ObservedGeneration == d.Generation && s.AvailableReplicas == *d.Spec.Replicas && s.UpdatedReplicas == *d.Spec.Replicas && s.Replicas == *d.Spec.Replicas
	}
	settles(t, c, web, settled)
	note("deployment started")
	change(t, c, web, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "example.test/app:2" })
	settles(t, c, web, settled)
	note("deployment rolled")
	change(t, c, web, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "example.test/app:1" })
	settles(t, c, web, settled)
	note("deployment rolled back")
	change(t, c, web, func(d *appsv1.Deployment) { d.Spec.Paused, *d.Spec.Replicas = true, 3 })
	settles(t, c, web, settled)
	note("deployment paused and scaled")
}

// gone deletes a workload and waits until its pods are gone.
func gone(t *testing.T, c *Cluster, obj ctrlclient.Object) {
	t.Helper()
	if err := c.Client.Delete(t.Context(), obj, ctrlclient.PropagationPolicy(metav1.DeletePropagationForeground)); err != nil {
		t.Fatal(err)
	}
	c.Eventually("pods go", func() error {
		var pods corev1.PodList
		return count(t, c, &pods, "default", func() int { return len(pods.Items) })
	})
}

// picture prints the workloads of the namespace without what differs from run to run.
func picture(t *testing.T, c *Cluster) string {
	t.Helper()
	var lines []string
	add := func(list ctrlclient.ObjectList, items func() []ctrlclient.Object) {
		if err := c.Client.List(t.Context(), list, ctrlclient.InNamespace("default")); err != nil {
			t.Fatal(err)
		}
		for _, obj := range items() {
			lines = append(lines, text(obj))
		}
	}
	var sets appsv1.StatefulSetList
	add(&sets, func() []ctrlclient.Object { return objects(sets.Items) })
	var daemons appsv1.DaemonSetList
	add(&daemons, func() []ctrlclient.Object { return objects(daemons.Items) })
	var replicas appsv1.ReplicaSetList
	add(&replicas, func() []ctrlclient.Object { return objects(replicas.Items) })
	var deployments appsv1.DeploymentList
	add(&deployments, func() []ctrlclient.Object { return objects(deployments.Items) })
	var controllers corev1.ReplicationControllerList
	add(&controllers, func() []ctrlclient.Object { return objects(controllers.Items) })
	var revisions appsv1.ControllerRevisionList
	add(&revisions, func() []ctrlclient.Object { return objects(revisions.Items) })
	var pods corev1.PodList
	add(&pods, func() []ctrlclient.Object { return objects(pods.Items) })
	var claims corev1.PersistentVolumeClaimList
	add(&claims, func() []ctrlclient.Object { return objects(claims.Items) })
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func objects[T any, P object[T]](items []T) []ctrlclient.Object {
	var out []ctrlclient.Object
	for i := range items {
		out = append(out, P(&items[i]))
	}
	return out
}

// text prints one object on a line: kind, name, metadata, what matters of its spec, status.
func text(obj ctrlclient.Object) string {
	keep := map[string]any{"labels": obj.GetLabels(), "annotations": obj.GetAnnotations(), "finalizers": obj.GetFinalizers(), "from": obj.GetGenerateName()}
	var owners []string
	for _, ref := range obj.GetOwnerReferences() {
		owners = append(owners, fmt.Sprintf("%s %s %s %v %v", ref.APIVersion, ref.Kind, ref.Name, ref.Controller != nil && *ref.Controller, ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion))
	}
	keep["owners"] = owners
	kind, name := "", obj.GetName()
	switch o := obj.(type) {
	case *appsv1.StatefulSet:
		kind, keep["status"] = "StatefulSet", o.Status
	case *appsv1.DaemonSet:
		kind, keep["status"] = "DaemonSet", o.Status
	case *appsv1.ReplicaSet:
		kind, keep["status"], keep["spec"] = "ReplicaSet", o.Status, o.Spec
	case *appsv1.Deployment:
		kind, keep["status"] = "Deployment", o.Status
	case *corev1.ReplicationController:
		kind, keep["status"] = "ReplicationController", o.Status
	case *appsv1.ControllerRevision:
		kind, keep["revision"], keep["data"] = "ControllerRevision", o.Revision, string(o.Data.Raw)
	case *corev1.PersistentVolumeClaim:
		kind = "PersistentVolumeClaim"
	case *corev1.Pod:
		kind, keep["spec"] = "Pod", withoutPlace(o.Spec)
		if o.GenerateName != "" && !slices.Contains(slices.Collect(maps.Keys(o.Labels)), appsv1.StatefulSetPodNameLabel) {
			name = o.GenerateName + "*"
		}
	}
	data, err := json.Marshal(keep)
	if err != nil {
		return err.Error()
	}
	return kind + " " + name + " " + normal(string(data))
}

// withoutPlace is a pod's spec without what admission and the scheduler put in.
func withoutPlace(spec corev1.PodSpec) corev1.PodSpec {
	spec.NodeName = ""
	spec.Volumes = slices.DeleteFunc(slices.Clone(spec.Volumes), func(v corev1.Volume) bool { return strings.HasPrefix(v.Name, "kube-api-access-") })
	spec.Containers = slices.Clone(spec.Containers)
	for i := range spec.Containers {
		spec.Containers[i].VolumeMounts = nil
	}
	return spec
}

// normal blots out times.
func normal(s string) string {
	return regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:]+Z`).ReplaceAllString(s, "TIME")
}

// eventPicture prints the events of the controllers, each text once, with its count.
func eventPicture(t *testing.T, c *Cluster) string {
	t.Helper()
	suffix := regexp.MustCompile(`((?:log|old|web-[0-9a-z]{8,10})-)[0-9a-z]{5}\b`)
	var list corev1.EventList
	if err := c.Client.List(t.Context(), &list, ctrlclient.InNamespace("default")); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int32{}
	for _, e := range list.Items {
		switch e.InvolvedObject.Kind {
		case "StatefulSet", "DaemonSet", "ReplicationController", "ReplicaSet", "Deployment":
			key := fmt.Sprintf("%s %s %s %s %s (%s)", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Type, e.Reason,
				suffix.ReplaceAllString(e.Message, "$1*"), e.Source.Component)
			counts[key] += max(e.Count, 1)
		}
	}
	var out strings.Builder
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&out, "%d %s\n", counts[key], key)
	}
	return out.String()
}
