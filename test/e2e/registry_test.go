//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestRegistry pushes an image to the cluster's registry, runs it from there, and again after the node lost its copy and the
// server was killed; a pod of another project gets it only by a right.
func TestRegistry(t *testing.T) {
	c := newCluster(t)
	c.up(t)
	archive := busyboxArchive(t)
	out := c.mustGantry(t, "image", "push", archive, "default/web:v1")
	_, byDigest, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if !strings.HasPrefix(byDigest, "registry.gantry.internal/default/web@sha256:") {
		t.Fatalf("image push says %q", out)
	}
	pod := func(name, image string) string {
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `"},"spec":{"restartPolicy":"Never","terminationGracePeriodSeconds":0,
			"containers":[{"name":"main","image":"` + image + `","command":["/bin/true"]}]}}`
	}
	c.apply(t, "default", pod("one", byDigest))
	c.pod(t, "default", "one", "to succeed", succeeded)
	c.kubectl(t, "delete", "pod", "one")

	// One file on the disk, whoever calls it his.
	links := 0
	_ = filepath.WalkDir(filepath.Join(c.dir, "registry", "blobs"), func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			if info, err := entry.Info(); err == nil && info.Sys().(*syscall.Stat_t).Nlink == 2 {
				links++
			}
		}
		return err
	})
	if links < 3 {
		t.Errorf("%d blobs of manifest, config and layer are shared with the node", links)
	}
	c.mustGantry(t, "image", "rm", byDigest[:strings.Index(byDigest, "@")]+":v1")
	c.mustGantry(t, "image", "push", archive, "default/web:v2")
	c.kill(t, syscall.SIGKILL)
	c.up(t)
	c.apply(t, "default", pod("two", "registry.gantry.internal/default/web:v2"))
	c.pod(t, "default", "two", "to succeed", succeeded)

	// Another project: not without a right, though the node has the image.
	c.kubectl(t, "create", "namespace", "other")
	c.kubectl(t, "-n", "other", "create", "serviceaccount", "puller")
	refused := func(pod *corev1.Pod) bool {
		for _, status := range pod.Status.ContainerStatuses {
			if w := status.State.Waiting; w != nil && strings.Contains(w.Message, "gantry:image-puller") {
				return true
			}
		}
		return false
	}
	other := strings.Replace(pod("three", byDigest), `"spec":{`, `"spec":{"serviceAccountName":"puller",`, 1)
	c.apply(t, "other", other)
	c.pod(t, "other", "three", "to be refused", refused)
	c.kubectl(t, "create", "rolebinding", "other-may", "--clusterrole=gantry:image-puller", "--serviceaccount=other:puller")
	c.kubectl(t, "-n", "other", "delete", "pod", "three")
	c.apply(t, "other", other)
	c.pod(t, "other", "three", "to succeed", succeeded)

	// From the node's own images, by links; and everything is shown.
	c.mustGantry(t, "image", "load", archive)
	c.mustGantry(t, "image", "push", busyboxImage, "default/local:v1")
	list := c.mustGantry(t, "image", "ls")
	for _, want := range []string{"registry.gantry.internal/default/web:v2", "registry.gantry.internal/default/local:v1", "docker.io/library/" + busyboxImage} {
		if !strings.Contains(list, want) {
			t.Errorf("image ls does not show %s:\n%s", want, list)
		}
	}
	if out := c.mustGantry(t, "image", "prune"); !strings.HasPrefix(out, "removed 0 images") {
		t.Errorf("prune removed what came just now: %s", out)
	}
}
