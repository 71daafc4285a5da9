//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRegistryReplicas: an image is pushed to one of three servers, which is then lost with its disk. Pods with that image
// start on the others. What was pushed before the others joined is there too.
func TestRegistryReplicas(t *testing.T) {
	m := newMachines(t, 3)
	m.node[0].up(t)
	archive := busyboxArchive(t)
	m.node[0].mustGantry(t, "image", "push", archive, "default/early:v1")
	for i := 1; i < 3; i++ {
		command := strings.Fields(strings.TrimSpace(m.node[0].mustGantry(t, "token", "create", "--server")))
		m.node[i].up(t, command[2:]...)
	}
	eventually(t, "the image from before at the server that joined last", time.Minute, func() error {
		_, err := os.Stat(filepath.Join(m.node[2].dir, "registry/repos/default/early/_tags/v1"))
		return err
	})
	_, byDigest, _ := strings.Cut(strings.TrimSpace(m.node[1].mustGantry(t, "image", "push", archive, "default/web:v1")), "\n")
	if m.node[1].mustGantry(t, "image", "push", archive, "default/brief:v1"); true {
		m.node[2].mustGantry(t, "image", "rm", "registry.gantry.internal/default/brief:v1") // any server will do
	}

	m.signal(1, syscall.SIGKILL) // all that runs there
	if err := errors.Join(os.RemoveAll(filepath.Join(m.node[1].dir, "registry")), os.RemoveAll(filepath.Join(m.node[1].dir, "etcd"))); err != nil {
		t.Fatal(err)
	}
	pod := func(name, node, image string) string {
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `"},"spec":{"nodeName":"` + node + `","restartPolicy":"Never",
			"terminationGracePeriodSeconds":0,"containers":[{"name":"main","image":"` + image + `","command":["/bin/true"]}]}}`
	}
	eventually(t, "a write after the loss", 30*time.Second, func() error {
		if r := m.node[2].try(t, "create", "configmap", "after"); r.code != 0 && !strings.Contains(r.stderr, "already exists") {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	m.node[2].apply(t, "default", pod("by-digest", m.name(2), byDigest))
	m.node[2].apply(t, "default", pod("by-tag", m.name(0), "registry.gantry.internal/default/web:v1"))
	m.node[2].pod(t, "default", "by-digest", "to succeed", succeeded)
	m.node[2].pod(t, "default", "by-tag", "to succeed", succeeded)
	if list := m.node[2].mustGantry(t, "image", "ls"); !strings.Contains(list, "default/web:v1") || !strings.Contains(list, "default/early:v1") || strings.Contains(list, "default/brief:v1") {
		t.Errorf("the registry holds:\n%s", list)
	}
	m.node[0].mustGantry(t, "image", "push", archive, "default/web:v2") // two of three are most of them
}
