//go:build linux

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// testRestarts kills a container again and again: the first restart comes at once, later ones
// wait longer and longer.
func testRestarts(t *testing.T, c *cluster) {
	ns := c.namespace(t, "restarts")
	c.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: killed}
spec:
  containers:
  - {name: main, image: "busybox:e2e", command: [sleep, "100000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: crashing}
spec:
  containers:
  - {name: main, image: "busybox:e2e", command: [sh, -c, "echo attempt; exit 3"]}
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: "busybox:e2e", command: [sh, -c, "echo why > /dev/termination-log; exit 4"]}
---
apiVersion: v1
kind: Pod
metadata: {name: reaper}
spec:
  containers:
  - {name: main, image: "app:e2e", args: [serve, ":8080"]}
`)
	pod := c.pod(t, ns, "killed", "ready", running)
	first := pod.Status.ContainerStatuses[0].ContainerID
	c.killContainer(t, pod)
	pod = c.pod(t, ns, "killed", "restarted", func(pod *corev1.Pod) bool {
		return running(pod) && pod.Status.ContainerStatuses[0].RestartCount == 1
	})
	s := pod.Status.ContainerStatuses[0]
	if s.ContainerID == first || s.LastTerminationState.Terminated == nil || s.LastTerminationState.Terminated.ExitCode != 137 {
		t.Errorf("after kill -9 the container's status is %+v", s)
	}
	c.killContainer(t, pod)
	c.pod(t, ns, "killed", "waiting to be restarted", func(pod *corev1.Pod) bool {
		w := pod.Status.ContainerStatuses[0].State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff" && strings.Contains(w.Message, "back-off 10s")
	})
	c.pod(t, ns, "killed", "restarted once more", func(pod *corev1.Pod) bool {
		return running(pod) && pod.Status.ContainerStatuses[0].RestartCount == 2
	})
	c.pod(t, ns, "crashing", "in back-off", func(pod *corev1.Pod) bool {
		w := pod.Status.ContainerStatuses[0].State.Waiting
		return pod.Status.ContainerStatuses[0].RestartCount >= 1 && w != nil && w.Reason == "CrashLoopBackOff"
	})
	if out := c.kubectl(t, "logs", "-n", ns, "crashing", "--previous"); out != "attempt\n" {
		t.Errorf("logs --previous: %q", out)
	}
	pod = c.pod(t, ns, "once", "failed", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodFailed })
	if end := pod.Status.ContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 4 || end.Message != "why\n" || end.Reason != "Error" {
		t.Errorf("a container that exits 4: %+v", end)
	}
}

// testMissingImages asks for images that are not there.
func testMissingImages(t *testing.T, c *cluster) {
	ns := c.namespace(t, "missing")
	c.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: missing}
spec:
  containers: [{name: main, image: "127.0.0.1:1/no/such:1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: never}
spec:
  containers: [{name: main, image: "no/such:2", imagePullPolicy: Never}]
---
apiVersion: v1
kind: Pod
metadata: {name: invalid}
spec:
  containers: [{name: main, image: "no//such:3"}]
`)
	for name, want := range map[string][]string{
		"missing": {"ImagePullBackOff", "127.0.0.1:1/no/such:1"}, "never": {"ErrImageNeverPull", "no/such:2"}, "invalid": {"InvalidImageName", "no//such:3"},
	} {
		c.pod(t, ns, name, want[0], func(pod *corev1.Pod) bool {
			if len(pod.Status.ContainerStatuses) == 0 {
				return false
			}
			w := pod.Status.ContainerStatuses[0].State.Waiting
			return w != nil && w.Reason == want[0] && strings.Contains(w.Message, want[1])
		})
	}
	eventually(t, "an event says why the pull failed", 10*time.Second, func() error {
		list, err := c.client(t).CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{
			FieldSelector: fields.Set{"reason": "Failed", "involvedObject.name": "missing"}.String(),
		})
		if err != nil {
			return err
		}
		for _, event := range list.Items {
			if strings.Contains(event.Message, "connection refused") {
				return nil
			}
		}
		return fmt.Errorf("the events are %+v", list.Items)
	})
}

const configuredManifest = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue, "file.txt": "a file\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hunter2}
---
apiVersion: v1
kind: Pod
metadata: {name: configured, labels: {app: configured}, annotations: {note: hello}}
spec:
  restartPolicy: Never
  securityContext: {fsGroup: 2000}
  hostAliases: [{ip: 10.1.2.3, hostnames: [elsewhere]}]
  initContainers:
  - name: first
    image: busybox:e2e
    command: [sh, -c, "echo init > /shared/order"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: main
    image: busybox:e2e
    workingDir: /tmp
    securityContext: {runAsUser: 1000, runAsGroup: 1000, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 250m, memory: 64Mi}}
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    - {name: BOTH, value: "$(COLOR)-$(POD)-$$(COLOR)"}
    envFrom: [{configMapRef: {name: settings}, prefix: S_}]
    command: [sh, -c]
    args:
    - |
      echo env $COLOR $PASSWORD $POD $MEMORY $BOTH $S_color $FROM_IMAGE ip=$IP
      echo files $(cat /config/file.txt) $(cat /secret/password) $(cat /projected/color) $(cat /projected/labels) $(cat /shared/order) $(cat /one/file.txt)
      echo id $(id -u) $(id -g) $(id -G) in $(readlink /proc/self/cwd)
      echo mode $(stat -L -c %a /secret/password) $(stat -c %g /shared)
      touch /cannot 2>/dev/null && echo the root is writable
      touch /shared/can && echo shared is writable
      grep -q elsewhere /etc/hosts && echo alias
      echo host $(hostname) $(cat /host/marker)
      grep -E "^Cap(Eff|Prm)|NoNewPrivs" /proc/self/status
      echo token $(head -c 3 /var/run/secrets/kubernetes.io/serviceaccount/token)
    volumeMounts:
    - {name: config, mountPath: /config}
    - {name: config, mountPath: /one/file.txt, subPath: file.txt}
    - {name: secret, mountPath: /secret, readOnly: true}
    - {name: projected, mountPath: /projected}
    - {name: shared, mountPath: /shared}
    - {name: host, mountPath: /host, readOnly: true}
  volumes:
  - {name: config, configMap: {name: settings}}
  - {name: secret, secret: {secretName: keys, defaultMode: 0440}}
  - {name: shared, emptyDir: {}}
  - {name: host, hostPath: {path: HOSTPATH}}
  - name: projected
    projected:
      sources:
      - {configMap: {name: settings, items: [{key: color, path: color}]}}
      - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
`

// testConfigured looks at a pod with configuration from all sources, from its inside.
func testConfigured(t *testing.T, c *cluster) {
	ns := c.namespace(t, "configured")
	host := t.TempDir()
	if err := os.WriteFile(host+"/marker", []byte("marked"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(host, 0o755); err != nil {
		t.Fatal(err)
	}
	c.apply(t, ns, strings.Replace(configuredManifest, "HOSTPATH", host, 1))
	out := c.logs(t, ns, "configured")
	for _, want := range []string{
		"env blue hunter2 configured 67108864 blue-configured-$(COLOR) blue yes ip=10.244.0.",
		`files a file hunter2 blue app="configured" init a file`,
		"id 1000 1000 1000 2000 in /tmp", "mode 440 2000", "shared is writable", "alias", "host configured marked",
		"CapEff:\t0000000000000000", "NoNewPrivs:\t1", "token eyJ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the pod says\n%swithout %q", out, want)
		}
	}
	if strings.Contains(out, "the root is writable") {
		t.Error("a read-only root file system can be written")
	}
}

const lifecycleManifest = `
apiVersion: v1
kind: ConfigMap
metadata: {name: live}
data: {value: old}
---
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: main
    image: busybox:e2e
    command: [sh, -c, "trap 'echo got TERM >> /host/end; exit 0' TERM; touch /tmp/live; while true; do sleep 0.1; done"]
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 250m, memory: 64Mi}}
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo postStart >> /host/begin"]}}
      preStop: {exec: {command: [sh, -c, "echo preStop >> /host/end"]}}
    startupProbe: {exec: {command: [test, -e, /tmp/live]}, periodSeconds: 1, failureThreshold: 30}
    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}
    livenessProbe: {exec: {command: [test, -e, /tmp/live]}, periodSeconds: 1, failureThreshold: 2}
    volumeMounts: [{name: host, mountPath: /host}, {name: live, mountPath: /live}]
  volumes:
  - {name: host, hostPath: {path: HOSTPATH}}
  - {name: live, configMap: {name: live}}
`

// testLifecycle takes a pod through probes, hooks, changed configuration and its end.
func testLifecycle(t *testing.T, c *cluster) {
	ns := c.namespace(t, "lifecycle")
	host := t.TempDir()
	c.apply(t, ns, strings.Replace(lifecycleManifest, "HOSTPATH", host, 1))
	pod := c.pod(t, ns, "probed", "running but not ready", func(pod *corev1.Pod) bool {
		return pod.Status.Phase == corev1.PodRunning && *pod.Status.ContainerStatuses[0].Started && !isTrue(pod, corev1.PodReady)
	})
	if text, _ := os.ReadFile(host + "/begin"); string(text) != "postStart\n" {
		t.Errorf("the postStart hook wrote %q", text)
	}
	testLimits(t, c, pod)
	c.kubectl(t, "exec", "-n", ns, "probed", "--", "touch", "/tmp/ready")
	c.pod(t, ns, "probed", "ready", running)
	c.kubectl(t, "exec", "-n", ns, "probed", "--", "rm", "/tmp/ready")
	c.pod(t, ns, "probed", "unready", func(pod *corev1.Pod) bool { return !isTrue(pod, corev1.PodReady) })
	c.kubectl(t, "patch", "configmap", "-n", ns, "live", "-p", `{"data":{"value":"new"}}`)
	eventually(t, "the changed ConfigMap reaches the pod", 90*time.Second, func() error {
		if out := c.try(t, "exec", "-n", ns, "probed", "--", "cat", "/live/value"); out.stdout != "new" {
			return fmt.Errorf("%v", out)
		}
		return nil
	})
	c.kubectl(t, "exec", "-n", ns, "probed", "--", "rm", "/tmp/live")
	c.pod(t, ns, "probed", "restarted by its liveness probe", func(pod *corev1.Pod) bool {
		return pod.Status.ContainerStatuses[0].RestartCount == 1 && pod.Status.ContainerStatuses[0].State.Running != nil
	})
	begun := time.Now()
	c.kubectl(t, "delete", "pod", "-n", ns, "probed", "--timeout=60s")
	if took := time.Since(begun); took > 18*time.Second {
		t.Errorf("a pod that ends on TERM took %v to be deleted", took)
	}
	if text, _ := os.ReadFile(host + "/end"); !strings.HasSuffix(string(text), "preStop\ngot TERM\n") {
		t.Errorf("preStop hook and TERM wrote %q", text)
	}
}

// testLimits looks for a pod's limits in its container's cgroup.
func testLimits(t *testing.T, c *cluster, pod *corev1.Pod) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.processOf(t, pod)))
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, root := range []string{"/sys/fs/cgroup/" + parts[1], "/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			for _, file := range []string{"memory.limit_in_bytes", "memory.max", "cpu.cfs_quota_us", "cpu.max"} {
				if value, err := os.ReadFile(root + parts[2] + "/" + file); err == nil {
					found[file] = strings.TrimSpace(string(value))
				}
			}
		}
	}
	if found["memory.limit_in_bytes"] != "67108864" && found["memory.max"] != "67108864" {
		t.Errorf("a limit of 64Mi is not in the cgroup: %v", found)
	}
	if found["cpu.cfs_quota_us"] != "25000" && found["cpu.max"] != "25000 100000" {
		t.Errorf("a limit of 250m is not in the cgroup: %v", found)
	}
}
