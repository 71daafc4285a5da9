package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/volume"
)

// ImageMounter is what Images may have beside: images as volumes. Without it pods with such
// volumes wait.
type ImageMounter interface {
	// MountImage mounts an image's files on target, read-only, unless something is mounted there.
	MountImage(ctx context.Context, pod, volume, image, target string) error
	// ReleaseImages gives up the images of a pod's volumes, which are not mounted any more.
	ReleaseImages(ctx context.Context, pod string) error
}

// imageVolumes pulls and mounts the images that a container mounts as volumes.
func (w *worker) imageVolumes(ctx context.Context, pod *corev1.Pod, c *corev1.Container) *imageFailure {
	for i := range c.VolumeMounts {
		v := imageVolume(pod, c.VolumeMounts[i].Name)
		if v == nil {
			continue
		}
		if v.Image.Reference == "" {
			continue // of a template that something else was to complete
		}
		failed := func(err error) *imageFailure {
			message := fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", v.Name, err)
			w.agent.events.pod(pod, corev1.EventTypeWarning, "FailedMount", message)
			return &imageFailure{"CreateContainerConfigError", message, retryAfter}
		}
		mounter, ok := w.agent.images.(ImageMounter)
		if !ok {
			return failed(errors.New("images are not supported as volumes by the node"))
		}
		wanted := corev1.Container{Name: c.Name, Image: v.Image.Reference, ImagePullPolicy: v.Image.PullPolicy}
		image, failure := w.agent.puller.ensure(ctx, pod, &wanted)
		if failure != nil {
			return failure
		}
		target := filepath.Join(w.agent.imageVolumesDir(w.uid), v.Name)
		if err := mounter.MountImage(ctx, string(w.uid), v.Name, image.ID, target); err != nil {
			return failed(err)
		}
		w.volumes[v.Name] = volume.Mounted{HostPath: target, ReadOnly: true}
	}
	return nil
}

func imageVolume(pod *corev1.Pod, name string) *corev1.Volume {
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.Name == name && v.Image != nil {
			return v
		}
	}
	return nil
}

// tearDownVolumes unmounts and removes a pod's volumes. Images are given up before the folder
// goes that tells of them, so a crash between leaves nothing behind.
func (a *Agent) tearDownVolumes(ctx context.Context, pod types.UID) error {
	dir := a.imageVolumesDir(pod)
	if _, err := os.Lstat(dir); err == nil {
		if err := volume.Unmount(ctx, dir); err != nil {
			return err
		}
		if mounter, ok := a.images.(ImageMounter); ok {
			if err := mounter.ReleaseImages(ctx, string(pod)); err != nil {
				return err
			}
		}
	}
	return a.volumes.TearDown(ctx, pod)
}

func (a *Agent) imageVolumesDir(pod types.UID) string {
	return filepath.Join(a.podDir(pod), "volumes", "kubernetes.io~image")
}
