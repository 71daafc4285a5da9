package metrics_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/api/metrics"
)

// objects has nodes and pods.
type objects struct {
	client.Reader
	nodes []corev1.Node
	pods  map[string]corev1.Pod
}

func (o objects) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	list.(*corev1.NodeList).Items = o.nodes
	return nil
}

func (o objects) Get(_ context.Context, key client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	pod, ok := o.pods[key.Name]
	if !ok {
		return apierrors.NewNotFound(corev1.Resource("pods"), key.Name)
	}
	*obj.(*corev1.Pod) = pod
	return nil
}

// agents answers for nodes by their address.
type agents struct {
	answers map[string]string
	asked   atomic.Int32
}

func (a *agents) RoundTrip(r *http.Request) (*http.Response, error) {
	a.asked.Add(1)
	body, ok := a.answers[r.URL.Host]
	if !ok || r.URL.RawQuery != "only_cpu_and_memory=true" {
		return nil, fmt.Errorf("nobody listens at %s", r.URL)
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(body))}, nil
}

func node(name, address string, ready corev1.ConditionStatus) corev1.Node {
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": "a"}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: address}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}},
		},
	}
}

func summary(node string, pods ...string) string {
	return `{"node":{"nodeName":"` + node + `","cpu":{"time":"2026-01-01T00:00:00Z","usageNanoCores":250000000},"memory":{"time":"2026-01-01T00:00:00Z","workingSetBytes":1048576}},"pods":[` + strings.Join(pods, ",") + `]}`
}

func podStats(name, uid, cpu string) string {
	container := `{"name":"app","cpu":{"time":"2026-01-01T00:00:00Z"` + cpu + `},"memory":{"time":"2026-01-01T00:00:00Z","workingSetBytes":2048}}`
	return `{"podRef":{"namespace":"default","name":"` + name + `","uid":"` + uid + `"},"containers":[` + container + `]}`
}

func TestSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := func(uid types.UID) corev1.Pod {
			return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: uid, Labels: map[string]string{"app": "web"}}}
		}
		reader := objects{
			nodes: []corev1.Node{node("a", "10.0.0.1", corev1.ConditionTrue), node("down", "10.0.0.2", corev1.ConditionTrue), node("lost", "10.0.0.3", corev1.ConditionUnknown)},
			pods:  map[string]corev1.Pod{"web": pod("1"), "young": pod("2"), "replaced": pod("3")},
		}
		transport := &agents{answers: map[string]string{"10.0.0.1:10250": summary("a",
			podStats("web", "1", `,"usageNanoCores":1500000`), podStats("young", "2", ""), podStats("replaced", "old", `,"usageNanoCores":1`), podStats("gone", "4", `,"usageNanoCores":1`))}}
		source, err := metrics.New(metrics.Options{Reader: reader, Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		nodes, err := source.Nodes(t.Context(), "")
		if err != nil || len(nodes) != 1 || nodes[0].Name != "a" || nodes[0].Usage.Cpu().MilliValue() != 250 || nodes[0].Usage.Memory().String() != "1Mi" || nodes[0].Labels["zone"] != "a" {
			t.Errorf("Nodes = %v, %v; want node a with 250m and 1Mi", nodes, err)
		}
		pods, err := source.Pods(t.Context(), "default", "")
		if err != nil || len(pods) != 1 || pods[0].Name != "web" || pods[0].Labels["app"] != "web" || pods[0].Containers[0].Usage.Cpu().String() != "1500u" {
			t.Errorf("Pods = %v, %v; want web alone with 1500u", pods, err)
		}
		if pods, _ := source.Pods(t.Context(), "other", ""); len(pods) != 0 {
			t.Errorf("another namespace has %v", pods)
		}
		if n := transport.asked.Load(); n != 2 {
			t.Errorf("agents were asked %d times, want 2: each that may answer, once", n)
		}
		time.Sleep(11 * time.Second)
		if _, err := source.Nodes(t.Context(), ""); err != nil || transport.asked.Load() != 4 {
			t.Errorf("after eleven seconds agents were asked %d times, %v; want 4", transport.asked.Load(), err)
		}
	})
}
