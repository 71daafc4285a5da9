package gantrytest

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	toolscache "k8s.io/client-go/tools/cache"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

func podOf(name, cpu string, change ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "app:1", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)},
		}}}},
	}
	for _, f := range change {
		f(pod)
	}
	return pod
}

func withClass(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.PriorityClassName = name }
}

func withDevices(n string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"example.com/device": resource.MustParse(n)}
	}
}

func (c *Cluster) podIs(name string, check func(*corev1.Pod) bool) {
	c.t.Helper()
	c.Eventually(name, func() error {
		var pod corev1.Pod
		if err := c.Client.Get(c.t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: name}, &pod); err != nil {
			return err
		}
		if !check(&pod) {
			return fmt.Errorf("node %q, nominated %q, conditions %+v", pod.Spec.NodeName, pod.Status.NominatedNodeName, pod.Status.Conditions)
		}
		return nil
	})
}

func scheduledCondition(p *corev1.Pod) corev1.PodCondition {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c
		}
	}
	return corev1.PodCondition{}
}

func TestSchedulingGates(t *testing.T) {
	c := Start(t, Options{Nodes: 1})
	mustCreate(t, c, podOf("p", "1", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/later"}} }))
	c.podIs("p", func(p *corev1.Pod) bool {
		s := scheduledCondition(p)
		return s.Status == corev1.ConditionFalse && s.Reason == corev1.PodReasonSchedulingGated &&
			s.Message == "Scheduling is blocked due to non-empty scheduling gates"
	})
	body := []byte(`{"spec":{"schedulingGates":null}}`)
	if err := c.Client.Patch(t.Context(), podOf("p", "1"), ctrlclient.RawPatch("application/merge-patch+json", body)); err != nil {
		t.Fatal(err)
	}
	c.podIs("p", func(p *corev1.Pod) bool {
		return p.Spec.NodeName == "node-0" && scheduledCondition(p).Status == corev1.ConditionTrue
	})
}

func TestPreemptionThroughTheAPI(t *testing.T) {
	c := Start(t, Options{Nodes: 1})
	mustCreate(t, c, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 1000},
		podOf("low", "6"))
	c.podIs("low", func(p *corev1.Pod) bool { return p.Spec.NodeName == "node-0" })
	mustCreate(t, c, podOf("high", "6", withClass("high")))
	c.podIs("low", func(p *corev1.Pod) bool {
		for _, condition := range p.Status.Conditions {
			if condition.Type == corev1.DisruptionTarget && condition.Reason == corev1.PodReasonPreemptionByScheduler {
				return p.DeletionTimestamp != nil
			}
		}
		return false
	})
	c.podIs("high", func(p *corev1.Pod) bool {
		return p.Status.NominatedNodeName == "node-0" && scheduledCondition(p).Message == "0/1 nodes are available: 1 Insufficient cpu."
	})
	none := int64(0)
	if err := c.Client.Delete(t.Context(), podOf("low", "6"), &ctrlclient.DeleteOptions{GracePeriodSeconds: &none}); err != nil {
		t.Fatal(err)
	}
	c.podIs("high", func(p *corev1.Pod) bool { return p.Spec.NodeName == "node-0" && p.Status.NominatedNodeName == "" })
	config := c.Config("root", user.SystemPrivilegedGroup)
	answer, err := (&http.Client{Transport: config.Transport}).Get(config.Host + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`scheduler_schedule_attempts_total{profile="default-scheduler",result="scheduled"} 2`, `scheduler_preemption_victims_sum 1`,
		`scheduler_pending_pods{queue="unschedulable"} 0`, `scheduler_preemption_attempts_total 1`, "process_resident_memory_bytes",
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("/metrics (%s) lacks %s", answer.Status, want)
		}
	}
}

// TestDevicesAreExclusive has many pods compete for few devices while holders come and go. At no revision
// may more devices be in use than there are.
func TestDevicesAreExclusive(t *testing.T) {
	const nodes, devices, pods = 3, 2, 60
	c := Start(t, Options{Nodes: nodes})
	for i := range nodes {
		c.changeNode(fmt.Sprintf("node-%d", i), func(node *corev1.Node) error {
			node.Status.Capacity = node.Status.Capacity.DeepCopy()
			node.Status.Allocatable = node.Status.Allocatable.DeepCopy()
			node.Status.Capacity["example.com/device"] = *resource.NewQuantity(devices, resource.DecimalSI)
			node.Status.Allocatable["example.com/device"] = *resource.NewQuantity(devices, resource.DecimalSI)
			return c.Client.Status().Update(t.Context(), node)
		})
	}
	var mu sync.Mutex
	holders, served := map[string]int{}, 0
	_, informers, err := c.ControlPlane.As(&user.DefaultInfo{Name: "root", Groups: []string{user.SystemPrivilegedGroup}}, "test")
	if err != nil {
		t.Fatal(err)
	}
	informer, err := informers.GetInformer(t.Context(), &corev1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	took := make(chan string, pods)
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		UpdateFunc: func(before, after any) {
			old, pod := before.(*corev1.Pod), after.(*corev1.Pod)
			if old.Spec.NodeName != "" || pod.Spec.NodeName == "" {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if holders[pod.Spec.NodeName]++; holders[pod.Spec.NodeName] > devices {
				t.Errorf("%d pods have one of %d devices on %s", holders[pod.Spec.NodeName], devices, pod.Spec.NodeName)
			}
			served++
			took <- pod.Name
		},
		DeleteFunc: func(obj any) {
			if pod, ok := obj.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
				mu.Lock()
				defer mu.Unlock()
				holders[pod.Spec.NodeName]--
			}
		},
	}); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range pods {
		group.Go(func() {
			if err := c.Client.Create(t.Context(), podOf(fmt.Sprintf("p%d", i), "1m", withDevices("1"))); err != nil {
				t.Error(err)
			}
		})
	}
	none := int64(0)
	for range pods { // whoever has had a device gives it back
		select {
		case name := <-took:
			if err := c.Client.Delete(t.Context(), podOf(name, "1m"), &ctrlclient.DeleteOptions{GracePeriodSeconds: &none}); err != nil && !apierrors.IsNotFound(err) {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%d of %d pods have had a device", served, pods)
		}
	}
	group.Wait()
}

func TestProfilesFromAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "scheduler.yaml")
	text := `apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: packed
  pluginConfig:
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 1}]}}
  plugins: {score: {disabled: [{name: "*"}], enabled: [{name: NodeResourcesFit, weight: 1}]}, preScore: {disabled: [{name: "*"}], enabled: [{name: NodeResourcesFit}]}}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Start(t, Options{Nodes: 3, SchedulerFile: file})
	packed := func(p *corev1.Pod) { p.Spec.SchedulerName = "packed" }
	mustCreate(t, c, podOf("first", "1"))
	first := ""
	c.podIs("first", func(p *corev1.Pod) bool { first = p.Spec.NodeName; return first != "" })
	for i := range 5 {
		mustCreate(t, c, podOf(fmt.Sprint("packed", i), "1", packed))
		c.podIs(fmt.Sprint("packed", i), func(p *corev1.Pod) bool { return p.Spec.NodeName == first })
	}
	mustCreate(t, c, podOf("spread", "1"))
	c.podIs("spread", func(p *corev1.Pod) bool { return p.Spec.NodeName != "" && p.Spec.NodeName != first })
	mustCreate(t, c, podOf("nobodys", "1", func(p *corev1.Pod) { p.Spec.SchedulerName = "other" }), podOf("last", "1"))
	c.podIs("last", func(p *corev1.Pod) bool { return p.Spec.NodeName != "" })
	c.podIs("nobodys", func(p *corev1.Pod) bool { return p.Spec.NodeName == "" && len(p.Status.Conditions) == 0 })
}
