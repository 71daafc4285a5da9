//go:build linux

package e2e

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The burner takes whatever CPU it gets, up to a tenth; its request is so small that any share of a
// slow machine is far above half of it.
const burnerManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: burner}
spec:
  replicas: 1
  selector: {matchLabels: {app: burner}}
  template:
    metadata: {labels: {app: burner}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: burn
        image: busybox:e2e
        command: [sh, -c, "while :; do :; done"]
        resources: {requests: {cpu: 1m}, limits: {cpu: 100m}}
      - {name: rest, image: "busybox:e2e", command: [sleep, "100000"], resources: {requests: {cpu: 1m}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: burner}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: burner}
  minReplicas: 1
  maxReplicas: 3
  metrics:
  - type: ContainerResource
    containerResource: {name: cpu, container: burn, target: {type: Utilization, averageUtilization: 50}}
`

// testAutoscale sees a burning pod in kubectl top, and its autoscaler add pods.
func testAutoscale(t *testing.T, c *cluster) {
	ns := c.namespace(t, "autoscale")
	c.apply(t, ns, burnerManifest)
	top := func(want string, args ...string) {
		t.Helper()
		eventually(t, "kubectl top "+strings.Join(args, " "), 90*time.Second, func() error {
			r := c.try(t, append([]string{"top"}, args...)...)
			if r.code != 0 || !regexp.MustCompile(want).MatchString(r.stdout) {
				return fmt.Errorf("it printed %v, want %s", r, want)
			}
			return nil
		})
	}
	top(`(?m)^burner-\S+ +burn +[1-9]\d*m +\d+Mi`, "pod", "-n", ns, "--containers")
	top(`(?m)^burner-\S+ +[1-9]\d*m +\d+Mi`, "pod", "-n", ns, "-l", "app=burner")
	top(`(?m)^\S+ +[1-9]\d*m +\d+% +\d+Mi +\d+%`, "node")
	client := c.client(t)
	eventually(t, "the autoscaler makes three of one", 3*time.Minute, func() error {
		h, err := client.AutoscalingV2().HorizontalPodAutoscalers(ns).Get(t.Context(), "burner", metav1.GetOptions{})
		if err != nil {
			return err
		}
		d, err := client.AppsV1().Deployments(ns).Get(t.Context(), "burner", metav1.GetOptions{})
		if err != nil || *d.Spec.Replicas != 3 {
			return fmt.Errorf("the deployment wants %d, %w; the autoscaler says %+v", *d.Spec.Replicas, err, h.Status)
		}
		return nil
	})
	for _, path := range []string{"metrics", "metrics/cadvisor", "metrics/resource", "metrics/probes", "stats/summary"} {
		out := c.kubectl(t, "get", "--raw", "/api/v1/nodes/"+c.nodeName(t)+"/proxy/"+path)
		if want := map[string]string{
			"metrics/cadvisor": `container_cpu_usage_seconds_total{cpu="total",container="burn"`, "metrics/resource": `container_memory_working_set_bytes{container="burn"`,
			"stats/summary": `"rootfs"`, "metrics": "kubelet_running_pods", "metrics/probes": "process_start_time_seconds",
		}[path]; !strings.Contains(out, want) {
			t.Errorf("%s has no %s:\n%s", path, want, out)
		}
	}
	c.kubectl(t, "delete", "namespace", ns, "--wait=false")
}

func (c *cluster) nodeName(t *testing.T) string {
	t.Helper()
	return c.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
}

const balancerManifest = `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: balanced}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: "app:e2e", args: [serve, ":8080"], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: balanced}, ports: [{port: 8088, targetPort: 8080}]}
`

// testLoadBalancer reaches a Service by the node's address.
func testLoadBalancer(t *testing.T, c *cluster) {
	ns := c.namespace(t, "balanced")
	c.apply(t, ns, balancerManifest)
	c.pod(t, ns, "web", "ready", func(pod *corev1.Pod) bool { return isTrue(pod, corev1.PodReady) })
	client := c.client(t)
	eventually(t, "the service answers on its load balancer's address", 30*time.Second, func() error {
		svc, err := client.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
		if err != nil || len(svc.Status.LoadBalancer.Ingress) != 1 {
			return fmt.Errorf("its status is %+v, %w", svc.Status, err)
		}
		address := net.JoinHostPort(svc.Status.LoadBalancer.Ingress[0].IP, "8088")
		conn, err := dialIn(c.ns)(t.Context(), "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	c.kubectl(t, "delete", "namespace", ns, "--wait=false")
}
