//go:build linux

package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

const (
	imageName    = "bench.local/busybox:1"
	busyboxPath  = "/bin/busybox" // static; scripts/deps.sh installs it
	startPods    = 40
	realPods     = "bench-real"
	logTimeForm  = time.RFC3339Nano
	containerRun = "echo started; exec sleep 100000"
)

// writeImage makes an archive of an image that holds busybox as /bin/sh and /bin/sleep.
func writeImage(path string) error {
	program, err := os.ReadFile(busyboxPath)
	if err != nil {
		return fmt.Errorf("read busybox (Debian: apt-get install busybox-static): %w", err)
	}
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	headers := []*tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))},
		{Name: "bin/sh", Typeflag: tar.TypeLink, Linkname: "bin/busybox", Mode: 0o755},
		{Name: "bin/sleep", Typeflag: tar.TypeLink, Linkname: "bin/busybox", Mode: 0o755},
	}
	for _, header := range headers {
		if err := archive.WriteHeader(header); err != nil {
			return fmt.Errorf("write the image's layer: %w", err)
		}
		if header.Size > 0 {
			if _, err := archive.Write(program); err != nil {
				return fmt.Errorf("write the image's layer: %w", err)
			}
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("write the image's layer: %w", err)
	}
	layerPath := path + ".layer"
	if err := os.WriteFile(layerPath, layer.Bytes(), 0o600); err != nil {
		return fmt.Errorf("write the image's layer: %w", err)
	}
	added, err := tarball.LayerFromFile(layerPath)
	if err != nil {
		return fmt.Errorf("read the image's layer: %w", err)
	}
	image, err := mutate.AppendLayers(empty.Image, added)
	if err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config.Env = []string{"PATH=/bin"}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	tag, err := name.NewTag(imageName)
	if err != nil {
		return fmt.Errorf("name the image: %w", err)
	}
	if err := tarball.WriteToFile(path, tag, image); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	return nil
}

// loadImage gives the image to a running gantry node.
func loadImage(ctx context.Context, opts options, s *system, path string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, opts.gantryBin, "image", "load", path, "--data-dir", filepath.Join(s.dir, "data")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("load the image: %w\n%s", err, out)
	}
	return nil
}

// realPod is a pod that really runs, on the node that is no simulated one.
func realPod(name string) *corev1.Pod {
	none := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: realPods, Labels: map[string]string{"app": "real"}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &none,
			Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
					{Key: simulated, Operator: corev1.NodeSelectorOpDoesNotExist},
				}}},
			}}},
			Containers: []corev1.Container{{
				Name: "main", Image: imageName, ImagePullPolicy: corev1.PullNever, Command: []string{"/bin/sh", "-c", containerRun},
			}},
		},
	}
}

// podStart is how long one pod took, from sending its CREATE.
type podStart struct {
	process time.Duration // until the container's process wrote its first line
	running time.Duration // until a watcher was told that the pod is Running
}

// startPod creates a pod and waits until it runs.
func startPod(ctx context.Context, s *system, name string) (podStart, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	pods := s.client.CoreV1().Pods(realPods)
	begun := time.Now()
	made, err := pods.Create(ctx, realPod(name), metav1.CreateOptions{})
	if err != nil {
		return podStart{}, fmt.Errorf("create a pod: %w", err)
	}
	if err := awaitRunning(ctx, s, made); err != nil {
		return podStart{}, err
	}
	running := time.Since(begun)
	var first time.Time
	err = await(ctx, s.check, func(ctx context.Context) error {
		content, err := pods.GetLogs(name, &corev1.PodLogOptions{Timestamps: true}).DoRaw(ctx)
		if err != nil {
			return err
		}
		stamp, _, found := strings.Cut(string(content), " ")
		if !found {
			return errors.New("the container has written nothing")
		}
		first, err = time.Parse(logTimeForm, stamp)
		return err
	})
	if err != nil {
		return podStart{}, fmt.Errorf("read the log of pod %s: %w", name, err)
	}
	return podStart{process: first.Sub(begun), running: running}, nil
}

// awaitRunning follows a pod from the state that made it until it is Running.
func awaitRunning(ctx context.Context, s *system, made *corev1.Pod) error {
	watch, err := s.client.CoreV1().Pods(realPods).Watch(ctx, metav1.ListOptions{
		ResourceVersion: made.ResourceVersion, FieldSelector: fields.OneTermEqualSelector("metadata.name", made.Name).String(),
	})
	if err != nil {
		return fmt.Errorf("watch pod %s: %w", made.Name, err)
	}
	defer watch.Stop()
	last := made
	for event := range watch.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		if !ok {
			return fmt.Errorf("the watch of pod %s ended with %v", made.Name, event.Object)
		}
		if last = pod; pod.Status.Phase == corev1.PodRunning {
			return nil
		}
	}
	return fmt.Errorf("pod %s does not run: %s; %w", made.Name, last.Status.String(), cmp.Or(ctx.Err(), s.check()))
}

// removePods deletes the pods that really run and waits until they are gone.
func removePods(ctx context.Context, s *system) error {
	pods, none := s.client.CoreV1().Pods(realPods), int64(0)
	if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &none}, metav1.ListOptions{}); err != nil {
		return fmt.Errorf("delete the pods: %w", err)
	}
	return await(ctx, s.check, func(ctx context.Context) error {
		list, err := pods.List(ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d pods are left", len(list.Items))
		}
		return err
	})
}
