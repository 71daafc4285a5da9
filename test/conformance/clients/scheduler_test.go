//go:build linux

package clients

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"gantry.dev/gantry/test/conformance/cluster"
	"gantry.dev/gantry/test/upstream"
)

const (
	machines     = 8
	coresEach    = 4
	podsEach     = 5 * machines // of each scheduler: 500m each, so that there is room for 4 of 5
	podMilli     = 500
	otherName    = "upstream"
	machineLabel = "example.com/pretended"
)

// Upstream's kube-scheduler and ours place pods on the same nodes at the same time, more than fit. Each must
// leave the other's pods alone and count them. Both may choose the last room of a node at the same moment;
// then the node refuses a pod, as a kubelet does (OutOfcpu). No node is overcommitted, and in the end
// all are full.
func TestKubeSchedulerBesideOurs(t *testing.T) {
	c := needCluster(t)
	programs, err := upstream.Build(t.Context(), upstream.BuildOptions{
		Module: filepath.Join(root, "test", "upstream", "programs"), Cache: filepath.Join(root, ".cache", "upstream"), Log: os.Stderr,
		Programs: []upstream.Program{{Name: "kube-scheduler", Package: "k8s.io/kubernetes/cmd/kube-scheduler"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	config, err := c.Rest()
	if err != nil {
		t.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(config)
	pretendMachines(t, client)
	runKubeScheduler(t, c, programs)
	namespace, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "two-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		none := int64(0)
		ctx := context.WithoutCancel(t.Context())
		_ = client.CoreV1().Pods(namespace.Name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &none}, metav1.ListOptions{})
		_ = client.CoreV1().Namespaces().Delete(ctx, namespace.Name, metav1.DeleteOptions{})
	})
	pods := client.CoreV1().Pods(namespace.Name)
	var group sync.WaitGroup
	for i := range 2 * podsEach {
		group.Go(func() {
			pod := contender(fmt.Sprintf("p%03d", i), []string{corev1.DefaultSchedulerName, otherName}[i%2])
			if _, err := pods.Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	refused := 0
	eventually(t, "the nodes are full, and none is too full", 90*time.Second, func() error {
		list, err := pods.List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		refused += playKubelets(t, client, list.Items)
		return full(list.Items)
	})
	t.Logf("the nodes have refused %d pods", refused)
	eventually(t, "an event of each placed pod's own scheduler", 30*time.Second, func() error {
		return placedByTheirOwn(t.Context(), client, namespace.Name)
	})
}

// pretendMachines makes nodes without an agent that only the pods of this test tolerate.
func pretendMachines(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	resources := corev1.ResourceList{
		corev1.ResourceCPU: *resource.NewQuantity(coresEach, resource.DecimalSI), corev1.ResourceMemory: resource.MustParse("64Gi"),
		corev1.ResourcePods: resource.MustParse("110"),
	}
	for i := range machines {
		name := fmt.Sprintf("pretended-%d", i)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{machineLabel: "yes", corev1.LabelHostname: name}}}
		node.Spec.Taints = []corev1.Taint{{Key: machineLabel, Effect: corev1.TaintEffectNoSchedule}}
		if _, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = client.CoreV1().Nodes().Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{})
		})
		err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
			current, err := client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			current.Status.Capacity, current.Status.Allocatable = resources, resources
			_, err = client.CoreV1().Nodes().UpdateStatus(t.Context(), current, metav1.UpdateOptions{})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// runKubeScheduler runs upstream's scheduler for its own pods until the test ends.
func runKubeScheduler(t *testing.T, c *cluster.Cluster, programs string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := fmt.Sprintf(`apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection: {leaderElect: false}
clientConnection: {kubeconfig: %s, qps: 1000, burst: 1000}
profiles: [{schedulerName: %s}]
`, c.Kubeconfig(), otherName)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := c.Command(ctx, filepath.Join(programs, "kube-scheduler"), "--config="+file, "--bind-address=127.0.0.1", "--cert-dir="+t.TempDir())
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was asked to end
		if t.Failed() {
			t.Logf("kube-scheduler: %s", said.String()[max(0, said.Len()-4000):])
		}
	})
}

func contender(name, scheduler string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			SchedulerName: scheduler, NodeSelector: map[string]string{machineLabel: "yes"},
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{Name: "c", Image: "none", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(podMilli, resource.DecimalSI)},
			}}},
		},
	}
}

func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

// onMachines are the pods of each node that are not over, in the order in which they were bound.
func onMachines(pods []corev1.Pod) map[string][]*corev1.Pod {
	placed := map[string][]*corev1.Pod{}
	for i := range pods {
		if pod := &pods[i]; pod.Spec.NodeName != "" && !terminal(pod) {
			placed[pod.Spec.NodeName] = append(placed[pod.Spec.NodeName], pod)
		}
	}
	for _, there := range placed {
		slices.SortFunc(there, func(a, b *corev1.Pod) int { // revisions of one etcd are comparable, as numbers of one length
			return cmp.Or(cmp.Compare(len(a.ResourceVersion), len(b.ResourceVersion)), cmp.Compare(a.ResourceVersion, b.ResourceVersion))
		})
	}
	return placed
}

// playKubelets refuses the pods that a node has no room for, and says how many.
func playKubelets(t *testing.T, client kubernetes.Interface, pods []corev1.Pod) (refused int) {
	t.Helper()
	for _, there := range onMachines(pods) {
		for _, pod := range there[min(len(there), coresEach*1000/podMilli):] {
			pod.Status.Phase, pod.Status.Reason = corev1.PodFailed, "OutOfcpu"
			pod.Status.Message = "Pod was rejected: Node didn't have enough resource: cpu"
			if _, err := client.CoreV1().Pods(pod.Namespace).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err == nil {
				refused++ // a conflict waits for the next round
			}
		}
	}
	return refused
}

// full says whether all nodes are full, none too full, and the rest of the pods wait and are told why.
func full(pods []corev1.Pod) error {
	placed := onMachines(pods)
	for i := range machines {
		name := fmt.Sprintf("pretended-%d", i)
		if n := len(placed[name]); n != coresEach*1000/podMilli {
			return fmt.Errorf("%d pods are on %s, want %d", n, name, coresEach*1000/podMilli)
		}
	}
	for i := range pods {
		pod := &pods[i]
		if pod.Spec.NodeName != "" {
			continue
		}
		told := slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable
		})
		if !told {
			return fmt.Errorf("%s waits without a reason: %+v", pod.Name, pod.Status.Conditions)
		}
	}
	return nil
}

// placedByTheirOwn says whether each pod with a node has one Scheduled event, of its own scheduler.
func placedByTheirOwn(ctx context.Context, client kubernetes.Interface, namespace string) error {
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	events, err := client.EventsV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=Scheduled"})
	if err != nil {
		return err
	}
	by := map[string][]string{}
	for i := range events.Items {
		e := &events.Items[i]
		by[e.Regarding.Name] = append(by[e.Regarding.Name], e.ReportingController)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Spec.NodeName != "" && !slices.Equal(by[pod.Name], []string{pod.Spec.SchedulerName}) {
			return fmt.Errorf("%s of %s was placed by %v", pod.Name, pod.Spec.SchedulerName, by[pod.Name])
		}
	}
	return nil
}
