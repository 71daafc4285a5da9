package nodeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/agent/stats"
	"gantry.dev/gantry/internal/container"
)

// Pods knows the pods of the node, with their newest status.
type Pods interface {
	Pods() []*corev1.Pod
	Pod(namespace, name string) (*corev1.Pod, bool)
}

// Streamer runs commands in containers and attaches to them, by the runtime's container ID.
type Streamer interface {
	Exec(ctx context.Context, id string, cmd []string, streams container.Streams) (exitCode int, err error)
	Attach(ctx context.Context, id string, streams container.Streams) error
}

// Options configures a Handler.
type Options struct {
	NodeName string
	// DialPod connects to a port on a pod's loopback address, in its network namespace.
	DialPod func(ctx context.Context, pod *corev1.Pod, port int32) (net.Conn, error)
	// LogFile is the log of one attempt of a container; LogAttempts the attempts that have one.
	LogFile     func(pod *corev1.Pod, container string, attempt int) string
	LogAttempts func(pod *corev1.Pod, container string) []int
	Stats       *stats.Reader       // measures the node; nil reports nothing
	Probes      func() []ProbeCount // how the probes went; nil reports nothing
	// Gateway is what the node's gateway counts, in the text format of Prometheus; nil: there is none.
	Gateway func(ctx context.Context) ([]byte, error)
	// Extra serves what lies below /gantry/; nil: there is nothing.
	Extra        http.Handler
	Cores        int           // logical CPUs of the machine
	IdleTimeout  time.Duration // of streams; default 4h
	StreamsWait  time.Duration // for a client to open its streams; default 30s
	HealthErrors func() error  // nil is well
	Logger       *slog.Logger
}

// Handler serves the node's API.
type Handler struct {
	opts    Options
	pods    Pods
	runtime Streamer
	mux     *http.ServeMux
	started time.Time
}

// New checks opts and returns a Handler.
func New(pods Pods, runtime Streamer, opts Options) (*Handler, error) {
	if pods == nil || runtime == nil || opts.DialPod == nil || opts.LogFile == nil || opts.LogAttempts == nil {
		return nil, errors.New("nodeapi: a part is missing")
	}
	if opts.IdleTimeout == 0 {
		opts.IdleTimeout = 4 * time.Hour
	}
	if opts.StreamsWait == 0 {
		opts.StreamsWait = 30 * time.Second
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Handler{opts: opts, pods: pods, runtime: runtime, mux: http.NewServeMux(), started: time.Now()}
	h.routes()
	return h, nil
}

func (h *Handler) routes() {
	h.mux.HandleFunc("GET /healthz", h.healthz)
	h.mux.HandleFunc("GET /healthz/{check}", h.healthz)
	h.mux.HandleFunc("GET /pods", h.listPods)
	h.mux.HandleFunc("GET /pods/{$}", h.listPods)
	h.mux.HandleFunc("GET /runningpods/{$}", h.listRunning)
	h.mux.HandleFunc("GET /metrics", h.metrics)
	h.mux.HandleFunc("GET /metrics/resource", h.resourceMetrics)
	h.mux.HandleFunc("GET /metrics/cadvisor", h.cadvisorMetrics)
	h.mux.HandleFunc("GET /metrics/probes", h.probeMetrics)
	h.mux.HandleFunc("GET /metrics/gateway", h.gatewayMetrics)
	if h.opts.Extra != nil {
		h.mux.Handle("/gantry/", h.opts.Extra)
	}
	h.mux.HandleFunc("GET /stats/summary", h.summary)
	h.mux.HandleFunc("POST /stats/summary", h.summary)
	h.mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", h.logs)
	for _, method := range []string{"GET ", "POST "} {
		for _, uid := range []string{"", "{uid}/"} {
			h.mux.HandleFunc(method+"/exec/{namespace}/{pod}/"+uid+"{container}", h.exec)
			h.mux.HandleFunc(method+"/attach/{namespace}/{pod}/"+uid+"{container}", h.attach)
		}
		h.mux.HandleFunc(method+"/portForward/{namespace}/{pod}", h.portForward)
		h.mux.HandleFunc(method+"/portForward/{namespace}/{pod}/{uid}", h.portForward)
	}
	h.mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", h.run)
	h.mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", h.run)
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func (h *Handler) healthz(w http.ResponseWriter, r *http.Request) {
	if h.opts.HealthErrors != nil {
		if err := h.opts.HealthErrors(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	_, _ = io.WriteString(w, "ok")
}

// gatewayMetrics tells what the node's gateway counts.
func (h *Handler) gatewayMetrics(w http.ResponseWriter, r *http.Request) {
	if h.opts.Gateway == nil {
		http.Error(w, "this node has no gateway", http.StatusNotFound)
		return
	}
	page, err := h.opts.Gateway(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(page)
}

func (h *Handler) listPods(w http.ResponseWriter, _ *http.Request) { h.writePods(w, h.pods.Pods()) }

func (h *Handler) listRunning(w http.ResponseWriter, _ *http.Request) {
	var running []*corev1.Pod
	for _, pod := range h.pods.Pods() {
		if pod.Status.Phase == corev1.PodRunning {
			running = append(running, pod)
		}
	}
	h.writePods(w, running)
}

func (h *Handler) writePods(w http.ResponseWriter, pods []*corev1.Pod) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, pod := range pods {
		list.Items = append(list.Items, *pod)
	}
	writeJSON(w, list)
}

func writeJSON(w http.ResponseWriter, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data)
}

// target finds the pod and container that a request names.
func (h *Handler) target(w http.ResponseWriter, r *http.Request) (*corev1.Pod, *corev1.ContainerStatus, bool) {
	pod, ok := h.pods.Pod(r.PathValue("namespace"), r.PathValue("pod"))
	if uid := r.PathValue("uid"); !ok || uid != "" && string(pod.UID) != uid {
		http.Error(w, fmt.Sprintf("pod %q does not exist", r.PathValue("pod")), http.StatusNotFound)
		return nil, nil, false
	}
	name := r.PathValue("container")
	if !hasContainer(pod, name) {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", name, pod.Name), http.StatusNotFound)
		return nil, nil, false
	}
	return pod, statusOf(pod, name), true
}

func hasContainer(pod *corev1.Pod, name string) bool {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return true
			}
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return true
		}
	}
	return false
}

func statusOf(pod *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// runningID is the runtime's ID of a container that runs.
func runningID(status *corev1.ContainerStatus) (string, bool) {
	if status == nil || status.State.Running == nil {
		return "", false
	}
	_, id, ok := strings.Cut(status.ContainerID, "://")
	return id, ok
}
