//go:build linux

package clients

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testWait(t *testing.T, k kubectl) {
	k.feed(t, k.manifest(t, "deployment.yaml", "NAME", "awaited", "REPLICAS", "1"), "apply", "-f", "-")
	want(t, k.run(t, "wait", "--for=condition=Available", "deployment/awaited", "--timeout=60s"), `^deployment.apps/awaited condition met$`)
	want(t, k.run(t, "wait", "--for=jsonpath={.status.readyReplicas}=1", "deployment/awaited", "--timeout=60s"), `condition met`)
	if r := k.try(t, "", nil, "wait", "--for=condition=Never", "deployment/awaited", "--timeout=1s"); r.code != 1 || !strings.Contains(r.stderr, "timed out waiting") {
		t.Errorf("a wait in vain: %v", r)
	}
	done := make(chan result, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		cmd := k.cluster.Command(ctx, k.program, "--namespace="+k.namespace, "wait", "--for=delete", "deployment/awaited", "--timeout=60s")
		done <- finish(t, cmd)
	}()
	k.run(t, "delete", "deployment", "awaited", "--wait=false")
	if r := <-done; r.code != 0 {
		t.Errorf("wait for the deletion: %v", r)
	}
	k.run(t, "wait", "--for=delete", "pod", "-l", "app=awaited", "--timeout=60s")
}

func testRollout(t *testing.T, k kubectl) {
	k.feed(t, k.manifest(t, "deployment.yaml", "NAME", "rolled", "REPLICAS", "1"), "apply", "-f", "-")
	k.run(t, "annotate", "deployment", "rolled", "kubernetes.io/change-cause=first")
	want(t, k.run(t, "rollout", "status", "deployment/rolled", "--timeout=60s"), `successfully rolled out`)
	k.run(t, "set", "env", "deployment/rolled", "COLOR=blue")
	k.run(t, "rollout", "status", "deployment/rolled", "--timeout=60s")
	want(t, k.run(t, "rollout", "history", "deployment/rolled"), `^1 +first$`, `^2 +first$`)
	want(t, k.run(t, "rollout", "history", "deployment/rolled", "--revision=2"), `COLOR:\s+blue`)
	want(t, k.run(t, "rollout", "undo", "deployment/rolled"), `rolled back`)
	k.run(t, "rollout", "status", "deployment/rolled", "--timeout=60s")
	want(t, k.run(t, "get", "deployment", "rolled", "-o", `jsonpath={.spec.template.spec.containers[0].env} {.metadata.annotations.deployment\.kubernetes\.io/revision}`), `^ *3$`)
	k.run(t, "rollout", "restart", "deployment/rolled")
	k.run(t, "rollout", "status", "deployment/rolled", "--timeout=60s")
	want(t, k.run(t, "scale", "deployment/rolled", "--replicas=2", "--current-replicas=1"), `scaled$`)
	k.run(t, "rollout", "status", "deployment/rolled", "--timeout=60s")
	want(t, k.run(t, "get", "deployment", "rolled"), `^NAME +READY +UP-TO-DATE +AVAILABLE +AGE$`, `^rolled +2/2 +2 +2 `)
	want(t, k.run(t, "get", "pods", "-l", "app=rolled", "-o", "wide"), `^NAME +READY +STATUS +RESTARTS +AGE +IP +NODE +NOMINATED NODE +READINESS GATES$`, `^rolled-\w+-\w+ +1/1 +Running +0 `)
	want(t, k.run(t, "describe", "deployment", "rolled"), `^Replicas: +2 desired \| 2 updated \| 2 total \| 2 available \| 0 unavailable$`, `ScalingReplicaSet`)
	k.run(t, "delete", "deployment", "rolled")
}

func testRunning(t *testing.T, k kubectl) {
	k.feed(t, k.manifest(t, "pod.yaml", "NAME", "box"), "apply", "-f", "-")
	k.run(t, "wait", "--for=condition=Ready", "pod/box", "--timeout=60s")
	want(t, k.run(t, "logs", "box"), `^hello from box$`)
	want(t, k.run(t, "logs", "box", "--tail=1", "--timestamps"), `^\d{4}-\d\d-\d\dT\S+ hello from box$`)
	want(t, k.run(t, "exec", "box", "--", "hostname"), `^box$`)
	want(t, k.feed(t, "through standard input", "exec", "-i", "box", "--", "cat"), `^through standard input$`)
	if r := k.try(t, "", nil, "exec", "box", "--", "sh", "-c", "echo oh >&2; exit 7"); r.code != 7 || !strings.Contains(r.stderr, "oh") {
		t.Errorf("exec of what fails: %v", r)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "out"), []byte("a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	k.run(t, "cp", filepath.Join(dir, "out"), k.namespace+"/box:/tmp/in")
	want(t, k.run(t, "exec", "box", "--", "cat", "/tmp/in"), `^a file$`)
	k.run(t, "cp", k.namespace+"/box:/tmp/in", filepath.Join(dir, "back"))
	if back, err := os.ReadFile(filepath.Join(dir, "back")); err != nil || string(back) != "a file\n" {
		t.Errorf("copied back: %q, %v", back, err)
	}
	want(t, k.run(t, "describe", "pod", "box"), `^Status: +Running$`, `Normal +Started +\d+s +kubelet +.*Container started`)
	want(t, k.run(t, "events", "--for=pod/box"), `Scheduled`)
	want(t, k.run(t, "get", "pod", "box", "-o", "jsonpath={.status.qosClass}"), `^BestEffort$`)
	k.run(t, "delete", "pod", "box", "--grace-period=0", "--force")
}

// testCustomResources uses a kind that a file defines.
func testCustomResources(t *testing.T, k kubectl) {
	group := k.namespace + ".example.com"
	k.feed(t, k.manifest(t, "crd.yaml", "GROUP", group), "apply", "-f", "-")
	t.Cleanup(func() { k.try(t, "", nil, "delete", "crd", "widgets."+group, "--timeout=60s") })
	k.run(t, "wait", "--for=condition=Established", "crd/widgets."+group, "--timeout=10s")
	widget := k.manifest(t, "widget.yaml", "GROUP", group)
	want(t, k.feed(t, widget, "apply", "-f", "-"), `^widget\.`+k.namespace+`\.example\.com/first created$`)
	want(t, k.feed(t, widget, "apply", "-f", "-"), `unchanged$`)
	want(t, k.run(t, "get", "widgets."+group), `^NAME +SIZE$`, `^first +3$`)
	want(t, k.run(t, "explain", "widgets.spec.size", "--api-version="+group+"/v1"), `^FIELD: size <integer>$`, `How large it is`)
	k.run(t, "scale", "widgets."+group+"/first", "--replicas=5")
	want(t, k.run(t, "get", "widgets."+group+"/first", "-o", "jsonpath={.spec.size}"), `^5$`)
	if r := k.try(t, strings.ReplaceAll(widget, "note:", "nota:"), nil, "apply", "-f", "-"); r.code != 1 || !strings.Contains(r.stderr, `unknown field "spec.nota"`) {
		t.Errorf("an unknown field: %v", r)
	}
	if r := k.try(t, "", nil, "patch", "widgets."+group, "first", "--type=merge", "-p", `{"spec":{"size":11}}`); r.code != 1 || !strings.Contains(r.stderr, "should be less than or equal to 10") {
		t.Errorf("a size that is too large: %v", r)
	}
}

func testDrain(t *testing.T, k kubectl) {
	node := strings.TrimSpace(k.run(t, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"))
	k.feed(t, k.manifest(t, "deployment.yaml", "NAME", "drained", "REPLICAS", "2"), "apply", "-f", "-")
	k.run(t, "rollout", "status", "deployment/drained", "--timeout=60s")
	before := k.run(t, "get", "pods", "-l", "app=drained", "-o", "name")
	t.Cleanup(func() { k.try(t, "", nil, "uncordon", node) })
	want(t, k.run(t, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector=app=drained", "--timeout=90s"), `^node/`+node+` drained$`)
	want(t, k.run(t, "get", "node", node), `Ready,SchedulingDisabled`)
	eventually(t, "the new pods wait", 30*time.Second, func() error {
		pods := k.run(t, "get", "pods", "-l", "app=drained", "-o", "jsonpath={range .items[*]}{.metadata.name} {.status.phase}{\"\\n\"}{end}")
		if strings.Count(pods, " Pending") != 2 {
			return fmt.Errorf("they are\n%sbefore the drain they were\n%s", pods, before)
		}
		return nil
	})
	want(t, k.run(t, "uncordon", node), `^node/`+node+` uncordoned$`)
	k.run(t, "rollout", "status", "deployment/drained", "--timeout=60s")
	k.run(t, "delete", "deployment", "drained")
}
