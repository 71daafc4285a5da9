package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/podconfig"
	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/volume"
)

// The bounds of the wait between restarts, and after how long a run it starts anew.
const (
	firstBackoff = 10 * time.Second
	maxBackoff   = 5 * time.Minute
	resetBackoff = 10 * time.Minute
)

// backoff computes the wait before a container may start again after last has ended: until
// when, and what the wait after that will be. It needs nothing but what the runtime keeps, so
// it goes on over a restart of the agent.
func backoff(last container.Status) (until time.Time, next time.Duration) {
	previous, err := time.ParseDuration(last.Annotations[annotationBackoff])
	if err != nil || previous <= 0 || last.FinishedAt.Sub(last.CreatedAt) > resetBackoff {
		return time.Time{}, firstBackoff
	}
	return last.FinishedAt.Add(previous), min(2*previous, maxBackoff)
}

// start starts one container. wait is how long it must wait instead; what it waits for is in
// w.waiting. An error means that the whole pod must wait.
func (w *worker) start(ctx context.Context, pod *corev1.Pod, c *corev1.Container) (wait time.Duration, err error) {
	a := w.agent
	attempt, annotations := 0, map[string]string{}
	if last, ok := w.observed.Latest(c.Name); ok {
		attempt = last.Attempt + 1
		if last.State == container.StateExited {
			until, next := backoff(last)
			if left := time.Until(until); left > 0 {
				w.waitForBackoff(pod, c, until.Sub(last.FinishedAt))
				return left, nil
			}
			annotations[annotationBackoff] = next.String()
		}
	} else {
		attempt = w.lostAttempts(pod, c.Name)
	}
	image, failure := a.puller.ensure(ctx, pod, c)
	if failure == nil {
		failure = w.imageVolumes(ctx, pod, c)
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if failure != nil {
		w.waiting[c.Name] = podstatus.Waiting{Reason: failure.reason, Message: failure.message}
		a.events.container(pod, c, corev1.EventTypeWarning, "Failed", "Error: "+failure.reason)
		return failure.wait, nil
	}
	fail := func(reason string, err error) (time.Duration, error) {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		w.waiting[c.Name] = podstatus.Waiting{Reason: reason, Message: err.Error()}
		a.events.container(pod, c, corev1.EventTypeWarning, "Failed", "Error: "+err.Error())
		return retryAfter, nil
	}
	config, err := w.config(ctx, pod, c, image, attempt)
	if err != nil {
		return fail("CreateContainerConfigError", err)
	}
	if err := w.addDevices(ctx, pod, c, &config); err != nil {
		return fail("CreateContainerConfigError", err)
	}
	maps.Copy(annotations, config.Annotations)
	config.Annotations = annotations
	if err := a.fence.guard(ctx, w); err != nil {
		return fail("CutOff", err)
	}
	id, err := a.runtime.CreateContainer(ctx, config)
	if err != nil {
		w.sandbox = false // it may be the sandbox that is broken: it is ensured again first
		return fail("CreateContainerError", err)
	}
	a.events.container(pod, c, corev1.EventTypeNormal, "Created", "Container created")
	if err := a.runtime.StartContainer(ctx, id); err != nil {
		w.sandbox = false
		if err := w.dropUnstarted(ctx, id); err != nil {
			return 0, err
		}
		w.failures[c.Name] = min(max(2*w.failures[c.Name], firstBackoff), maxBackoff)
		_, err := fail("RunContainerError", err)
		return w.failures[c.Name], err
	}
	delete(w.waiting, c.Name)
	delete(w.failures, c.Name)
	a.events.container(pod, c, corev1.EventTypeNormal, "Started", "Container started")
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		return w.postStart(ctx, pod, c, id)
	}
	return 0, nil
}

// dropUnstarted removes a container that could not be started, unless the runtime keeps it as
// one that has ended: then that shows in the status and the usual back-off follows.
func (w *worker) dropUnstarted(ctx context.Context, id string) error {
	s, _, err := w.agent.status(ctx, string(w.uid))
	if err != nil {
		return fmt.Errorf("looking at a container that did not start: %w", err)
	}
	for _, c := range s.Containers {
		if c.ID != id || c.State != container.StateCreated {
			continue
		}
		if err := w.agent.runtime.RemoveContainer(ctx, id); err != nil {
			return fmt.Errorf("removing a container that did not start: %w", err)
		}
	}
	return nil
}

func (w *worker) waitForBackoff(pod *corev1.Pod, c *corev1.Container, delay time.Duration) {
	w.waiting[c.Name] = podstatus.Waiting{
		Reason:  "CrashLoopBackOff",
		Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", delay, c.Name, podconfig.PodRef(pod)),
	}
	w.agent.events.container(pod, c, corev1.EventTypeWarning, "BackOff",
		fmt.Sprintf("Back-off restarting failed container %s in pod %s", c.Name, podconfig.PodRef(pod)))
}

// lostAttempts is the attempt to go on with when the runtime has no container of that name:
// what the status has counted, and never one that has a log already.
func (w *worker) lostAttempts(pod *corev1.Pod, name string) int {
	attempt := 0
	w.mu.Lock()
	status := &pod.Status
	if w.reported != nil {
		status = w.reported
	}
	for _, s := range slices.Concat(status.InitContainerStatuses, status.ContainerStatuses) {
		if s.Name == name {
			attempt = int(s.RestartCount)
		}
	}
	w.mu.Unlock()
	entries, err := os.ReadDir(filepath.Join(w.agent.podLogDir(pod.Namespace, pod.Name, pod.UID), name))
	if err != nil {
		return attempt
	}
	for _, entry := range entries {
		number, _, _ := strings.Cut(entry.Name(), ".log")
		if n, err := strconv.Atoi(number); err == nil {
			attempt = max(attempt, n+1)
		}
	}
	return attempt
}

// postStart runs the hook; a container whose hook fails is killed, and restarted by policy.
func (w *worker) postStart(ctx context.Context, pod *corev1.Pod, c *corev1.Container, id string) (time.Duration, error) {
	w.stale.Store(true)
	if err := w.observe(ctx, pod); err != nil {
		return 0, err
	}
	message, err := w.runHook(ctx, pod, c, id, c.Lifecycle.PostStart)
	if err == nil {
		return 0, nil
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	w.agent.events.container(pod, c, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
	w.waiting[c.Name] = podstatus.Waiting{Reason: "PostStartHookError", Message: message}
	return time.Millisecond, w.killOne(ctx, pod, podstatus.Kill{ID: id, Name: c.Name, Message: "FailedPostStartHook"})
}

// config makes the runtime's description of a container.
func (w *worker) config(ctx context.Context, pod *corev1.Pod, c *corev1.Container, image container.Image, attempt int) (container.Config, error) {
	a := w.agent
	env, asked, err := w.environment(ctx, pod, c)
	if !asked && w.env[c.Name] != nil {
		env, err = w.env[c.Name], nil // what it was: a container must be able to restart without the API
	}
	if err != nil {
		return container.Config{}, err
	}
	w.env[c.Name] = env
	security, err := podconfig.Security(pod, c, image.User, a.opts.SeccompDir)
	if err != nil {
		return container.Config{}, err
	}
	mounts, err := w.mounts(pod, c, env, attempt)
	if err != nil {
		return container.Config{}, err
	}
	logDir := filepath.Join(a.podLogDir(pod.Namespace, pod.Name, pod.UID), c.Name)
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return container.Config{}, fmt.Errorf("making the log folder: %w", err)
	}
	memory := a.capacity[corev1.ResourceMemory]
	config := container.Config{
		SandboxID:  string(w.uid),
		Name:       c.Name,
		Attempt:    attempt,
		Image:      image.ID,
		ImageRef:   c.Image,
		Command:    podconfig.ExpandAll(c.Command, env),
		Args:       podconfig.ExpandAll(c.Args, env),
		WorkingDir: c.WorkingDir,
		Env:        env,
		Mounts:     mounts,
		Resources:  podconfig.ContainerResources(pod, c, memory.Value()),
		Security:   security,
		TTY:        c.TTY,
		Stdin:      c.Stdin,
		StdinOnce:  c.StdinOnce,
		LogPath:    filepath.Join(logDir, strconv.Itoa(attempt)+".log"),
		LogMaxSize: a.opts.LogMaxBytes,
		LogMaxFile: a.opts.LogMaxFiles,
		Labels:     map[string]string{"io.kubernetes.pod.uid": string(w.uid)},
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		config.StopSignal = string(*c.Lifecycle.StopSignal)
	}
	return config, nil
}

// environment makes a container's environment; asked is false when the API could not be asked.
func (w *worker) environment(ctx context.Context, pod *corev1.Pod, c *corev1.Container) (env []string, asked bool, err error) {
	a := w.agent
	services, err := a.services(ctx, pod)
	if err != nil && isStatic(pod) && unreachable(err) {
		err = nil // such a pod may be what brings the API up
	}
	if err != nil {
		return nil, !unreachable(err), err
	}
	asked = true
	note := func(err error) error {
		if err != nil && unreachable(err) {
			asked = false
		}
		return err
	}
	env, err = podconfig.Environment(podconfig.EnvInput{
		Pod: pod, Container: c, PodIPs: w.podIPs(pod), Services: services,
		Node: podconfig.Node{IPs: a.opts.NodeIPs, Allocatable: a.allocatable()},
		ConfigMap: func(name string) (*corev1.ConfigMap, error) {
			object, err := a.configMap(ctx, pod.Namespace, name)
			return object, note(err)
		},
		Secret: func(name string) (*corev1.Secret, error) {
			object, err := a.secret(ctx, pod.Namespace, name)
			return object, note(err)
		},
		File: w.volumeFile,
	})
	if err != nil {
		return nil, asked, err
	}
	hostname := a.opts.Hostname
	if !pod.Spec.HostNetwork {
		hostname, _ = podconfig.Hostname(pod, a.opts.ClusterDomain)
	}
	base := []string{"HOSTNAME=" + hostname}
	if c.TTY {
		base = append(base, "TERM=xterm")
	}
	return append(base, env...), true, nil
}

// volumeFile opens a file of one of the pod's volumes. Links that lead out of it are refused.
func (w *worker) volumeFile(name, path string) (io.ReadCloser, error) {
	v, ok := w.volumes[name]
	if !ok {
		return nil, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", name)
	}
	root, err := os.OpenRoot(v.HostPath)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	return root.Open(path)
}

func (w *worker) podIPs(pod *corev1.Pod) []string {
	if pod.Spec.HostNetwork {
		return w.agent.opts.NodeIPs
	}
	return w.ips
}

// mounts lists a container's mounts: its volumes, then the files that every container gets.
func (w *worker) mounts(pod *corev1.Pod, c *corev1.Container, env []string, attempt int) ([]container.Mount, error) {
	var list []container.Mount
	taken := map[string]bool{}
	for i, m := range c.VolumeMounts {
		v, ok := w.volumes[m.Name]
		if !ok {
			return nil, fmt.Errorf("cannot find volume %q to mount into container %q", m.Name, c.Name)
		}
		source, err := w.mountSource(c, i, v, env)
		if err != nil {
			return nil, err
		}
		path := m.MountPath
		if !filepath.IsAbs(path) {
			path = "/" + path
		}
		taken[filepath.Clean(path)] = true
		list = append(list, container.Mount{
			HostPath:      source,
			ContainerPath: path,
			ReadOnly:      m.ReadOnly || v.ReadOnly,
			Recursive:     m.RecursiveReadOnly != nil && *m.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled,
			Propagation:   propagation(m.MountPropagation),
		})
	}
	files, err := w.podFiles(pod)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if !taken[f.ContainerPath] {
			list = append(list, f)
		}
	}
	if c.TerminationMessagePath != "" {
		path := w.terminationPath(c.Name, attempt)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return nil, fmt.Errorf("making the folder of the termination log: %w", err)
		}
		if err := writeFile(path, nil, 0o666); err != nil {
			return nil, fmt.Errorf("making the termination log: %w", err)
		}
		list = append(list, container.Mount{HostPath: path, ContainerPath: filepath.Join("/", c.TerminationMessagePath)})
	}
	return list, nil
}

func (w *worker) mountSource(c *corev1.Container, index int, v volume.Mounted, env []string) (string, error) {
	m := c.VolumeMounts[index]
	sub := m.SubPath
	if m.SubPathExpr != "" {
		expanded, err := podconfig.ExpandSubPath(m.SubPathExpr, env)
		if err != nil {
			return "", err
		}
		sub = expanded
	}
	if sub == "" {
		return v.HostPath, nil
	}
	if filepath.IsAbs(sub) {
		return "", fmt.Errorf("error SubPath `%s` must not be an absolute path", sub)
	}
	if slices.Contains(strings.Split(filepath.ToSlash(sub), "/"), "..") {
		return "", fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", sub)
	}
	path, err := w.agent.volumes.SubPath(w.uid, volume.SubPath{
		Volume: m.Name, Root: v.HostPath, Path: sub, Container: c.Name, Index: index,
	})
	if err != nil {
		w.agent.log.Warn("cannot use a subPath", "uid", w.uid, "volume", m.Name, "error", err)
		return "", fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q", m.Name, c.Name)
	}
	return path, nil
}

func propagation(mode *corev1.MountPropagationMode) string {
	switch {
	case mode == nil:
		return "private"
	case *mode == corev1.MountPropagationHostToContainer:
		return "rslave"
	case *mode == corev1.MountPropagationBidirectional:
		return "rshared"
	}
	return "private"
}

// podFiles writes and mounts the files that all containers of the pod share.
func (w *worker) podFiles(pod *corev1.Pod) ([]container.Mount, error) {
	a := w.agent
	dir := a.podDir(w.uid)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("making the pod's folder: %w", err)
	}
	nodeHosts, err := os.ReadFile(a.opts.HostsFile)
	if err != nil && pod.Spec.HostNetwork && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading the node's hosts file: %w", err)
	}
	name, domain := podconfig.Hostname(pod, a.opts.ClusterDomain)
	text, err := os.ReadFile(a.opts.ResolvConf)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading the node's resolver file: %w", err)
	}
	resolver, warnings := podconfig.PodResolver(pod, podconfig.ParseResolver(string(text)), a.opts.ClusterDNS, a.opts.ClusterDomain)
	if !w.warnedDNS {
		w.warnedDNS = true
		for _, warning := range warnings {
			a.events.pod(pod, corev1.EventTypeWarning, "DNSConfigForming", warning)
		}
	}
	hostname := name
	if pod.Spec.HostNetwork {
		hostname = a.opts.Hostname
	}
	files := []struct {
		name, target string
		content      []byte
	}{
		{"etc-hosts", "/etc/hosts", podconfig.HostsFile(pod, w.ips, name, domain, nodeHosts)},
		{"hostname", "/etc/hostname", []byte(hostname + "\n")},
		{"resolv.conf", "/etc/resolv.conf", []byte(resolver.String())},
	}
	var mounts []container.Mount
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if err := writeFile(path, f.content, 0o644); err != nil {
			return nil, fmt.Errorf("writing the pod's %s: %w", f.target, err)
		}
		mounts = append(mounts, container.Mount{HostPath: path, ContainerPath: f.target})
	}
	return mounts, nil
}

// writeFile writes in place, because containers hold the file by its inode, and sets the mode
// whatever the umask.
func writeFile(path string, content []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err != nil || string(old) != string(content) {
		if err := os.WriteFile(path, content, mode); err != nil {
			return err
		}
	}
	return os.Chmod(path, mode)
}
