package nodeapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/agent/crilog"
)

func (h *Handler) logs(w http.ResponseWriter, r *http.Request) {
	pod, status, ok := h.target(w, r)
	if !ok {
		return
	}
	options, err := logOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	name := r.PathValue("container")
	attempt, err := h.attempt(pod, status, name, options.Previous)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	read := crilog.Options{Follow: options.Follow, Tail: -1, Timestamps: options.Timestamps}
	if options.TailLines != nil {
		read.Tail = *options.TailLines
	}
	if options.LimitBytes != nil {
		read.LimitBytes = *options.LimitBytes
	}
	if options.SinceSeconds != nil {
		read.Since = time.Now().Add(-time.Duration(*options.SinceSeconds) * time.Second)
	}
	if options.SinceTime != nil {
		read.Since = options.SinceTime.Time
	}
	if options.Stream != nil {
		read.Stream = *options.Stream
	}
	read.Done = func() bool { return h.ended(pod, name, attempt) }
	w.Header().Set("Content-Type", "text/plain")
	out := &flusher{w: w}
	if options.Follow {
		out.flush() // a client that waits for the first line learns that it is being served
	}
	err = crilog.Read(r.Context(), h.opts.LogFile(pod, name, attempt), read, out, out)
	if err != nil && r.Context().Err() == nil {
		if out.wrote {
			h.opts.Logger.Debug("a log could not be read to its end", "namespace", pod.Namespace, "name", pod.Name, "error", err)
			return
		}
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

// ended reports whether an attempt of a container runs no more.
func (h *Handler) ended(pod *corev1.Pod, name string, attempt int) bool {
	now, ok := h.pods.Pod(pod.Namespace, pod.Name)
	if !ok || now.UID != pod.UID {
		return true
	}
	status := statusOf(now, name)
	return status == nil || status.State.Running == nil || int(status.RestartCount) != attempt
}

// attempt is which attempt's log a request means, or why there is none.
func (h *Handler) attempt(pod *corev1.Pod, status *corev1.ContainerStatus, name string, previous bool) (int, error) {
	if status == nil {
		return 0, fmt.Errorf("container %q in pod %q is not available", name, pod.Name)
	}
	last := status.LastTerminationState.Terminated
	hadLast := last != nil && last.ContainerID != ""
	count := int(status.RestartCount)
	switch {
	case previous && !hadLast:
		return 0, fmt.Errorf("previous terminated container %q in pod %q not found", name, pod.Name)
	case previous && status.ContainerID == last.ContainerID:
		return count, nil // it waits: the newest container is the one that ended
	case previous:
		return h.before(pod, name, count), nil
	case status.State.Running != nil:
		return count, nil
	case status.State.Terminated != nil:
		if status.State.Terminated.ContainerID == "" && !hadLast {
			return 0, fmt.Errorf("container %q in pod %q is terminated", name, pod.Name)
		}
		return count, nil
	case hadLast:
		return count, nil
	case last != nil:
		return 0, fmt.Errorf("container %q in pod %q is terminated", name, pod.Name)
	case status.State.Waiting != nil:
		switch reason := status.State.Waiting.Reason; reason {
		case "ErrImagePull":
			return 0, fmt.Errorf("container %q in pod %q is waiting to start: image can't be pulled", name, pod.Name)
		case "ImagePullBackOff":
			return 0, fmt.Errorf("container %q in pod %q is waiting to start: trying and failing to pull image", name, pod.Name)
		default:
			return 0, fmt.Errorf("container %q in pod %q is waiting to start: %v", name, pod.Name, reason)
		}
	default:
		return 0, fmt.Errorf("container %q in pod %q is waiting to start - no logs yet", name, pod.Name)
	}
}

// before is the newest attempt below count that has a log.
func (h *Handler) before(pod *corev1.Pod, name string, count int) int {
	attempts := h.opts.LogAttempts(pod, name)
	slices.Sort(attempts)
	best := count - 1
	for _, a := range attempts {
		if a < count {
			best = a
		}
	}
	return best
}

// logOptions reads the query of a log request, as PodLogOptions spells it.
func logOptions(r *http.Request) (*corev1.PodLogOptions, error) {
	query := r.URL.Query()
	if tail := query.Get("tail"); tail != "" && tail != "all" {
		query.Set("tailLines", tail)
	}
	options := &corev1.PodLogOptions{}
	var errs []error
	flag := func(name string, into *bool) {
		if value := query.Get(name); query.Has(name) {
			// As for all flags in queries of the API, anything but false and 0 is true.
			*into = value != "false" && value != "0"
		}
	}
	number := func(name string, into **int64) {
		if value := query.Get(name); value != "" {
			n, err := strconv.ParseInt(value, 10, 64)
			errs = append(errs, err)
			*into = &n
		}
	}
	flag("follow", &options.Follow)
	flag("previous", &options.Previous)
	flag("timestamps", &options.Timestamps)
	number("sinceSeconds", &options.SinceSeconds)
	number("tailLines", &options.TailLines)
	number("limitBytes", &options.LimitBytes)
	if value := query.Get("sinceTime"); value != "" {
		at, err := time.Parse(time.RFC3339, value)
		errs = append(errs, err)
		options.SinceTime = &metav1.Time{Time: at}
	}
	if value := query.Get("stream"); value != "" {
		options.Stream = &value
	}
	if errors.Join(errs...) != nil {
		return nil, errors.New(`{"message": "Unable to decode query."}`)
	}
	switch {
	case options.TailLines != nil && *options.TailLines < 0,
		options.LimitBytes != nil && *options.LimitBytes < 1,
		options.SinceSeconds != nil && *options.SinceSeconds < 1,
		options.SinceSeconds != nil && options.SinceTime != nil:
		return nil, errors.New(`{"message": "Invalid request."}`)
	}
	return options, nil
}

// flusher sends what is written at once.
type flusher struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	wrote bool
}

func (f *flusher) flush() {
	if fl, ok := f.w.(http.Flusher); ok {
		fl.Flush()
	}
}

// Write implements io.Writer.
func (f *flusher) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wrote = true
	n, err := f.w.Write(p)
	f.flush()
	return n, err
}

var _ io.Writer = (*flusher)(nil)
