package agent

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/lifecycle"
)

// maxQueuedEvents bounds the events that wait to be written; more are dropped.
const maxQueuedEvents = 1000

// recorder writes Events, counting repeats and holding back floods as client-go does.
type recorder struct {
	client   client.Client
	nodeName string
	log      *slog.Logger
	queue    chan *corev1.Event
	last     atomic.Int64 // nanoseconds in the newest event's name, which must be unique
}

func newRecorder(c client.Client, nodeName string, log *slog.Logger) *recorder {
	return &recorder{client: c, nodeName: nodeName, log: log, queue: make(chan *corev1.Event, maxQueuedEvents)}
}

// pod records an event about a pod.
func (r *recorder) pod(pod *corev1.Pod, kind, reason, message string) {
	r.record(podReference(pod, ""), kind, reason, message)
}

// podAnnotated records an event about a pod, with annotations for programs to read.
func (r *recorder) podAnnotated(pod *corev1.Pod, annotations map[string]string, kind, reason, message string) {
	r.recordAnnotated(podReference(pod, ""), annotations, kind, reason, message)
}

// container records an event about one container of a pod.
func (r *recorder) container(pod *corev1.Pod, c *corev1.Container, kind, reason, message string) {
	r.containerNamed(pod, c.Name, kind, reason, message)
}

func (r *recorder) containerNamed(pod *corev1.Pod, name, kind, reason, message string) {
	field := ""
	for list, containers := range map[string][]corev1.Container{"initContainers": pod.Spec.InitContainers, "containers": pod.Spec.Containers} {
		for i := range containers {
			if containers[i].Name == name {
				field = fmt.Sprintf("spec.%s{%s}", list, name)
			}
		}
	}
	if field == "" {
		field = fmt.Sprintf("spec.ephemeralContainers{%s}", name)
	}
	r.record(podReference(pod, field), kind, reason, message)
}

// node records an event about the node. As the kubelet does, it takes the name for the UID, so
// that events survive a new registration.
func (r *recorder) node(kind, reason, message string) {
	r.record(corev1.ObjectReference{Kind: "Node", Name: r.nodeName, UID: types.UID(r.nodeName)}, kind, reason, message)
}

func podReference(pod *corev1.Pod, field string) corev1.ObjectReference {
	return corev1.ObjectReference{
		Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		ResourceVersion: pod.ResourceVersion, FieldPath: field,
	}
}

func (r *recorder) record(about corev1.ObjectReference, kind, reason, message string) {
	r.recordAnnotated(about, nil, kind, reason, message)
}

func (r *recorder) recordAnnotated(about corev1.ObjectReference, annotations map[string]string, kind, reason, message string) {
	now := metav1.Now()
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Name:      fmt.Sprintf("%v.%x", about.Name, r.stamp(now.UnixNano())),
			Namespace: namespace, Annotations: annotations,
		},
		InvolvedObject:      about,
		Reason:              reason,
		Message:             strings.ToValidUTF8(message[:min(len(message), 1024)], ""),
		FirstTimestamp:      now,
		LastTimestamp:       now,
		Count:               1,
		Type:                kind,
		Source:              corev1.EventSource{Component: "kubelet", Host: r.nodeName},
		ReportingController: "kubelet",
		ReportingInstance:   r.nodeName,
	}
	select {
	case r.queue <- event:
	default:
		r.log.Debug("an event was dropped", "namespace", namespace, "name", about.Name, "reason", reason)
	}
}

// stamp is now, or the next number that no event has.
func (r *recorder) stamp(now int64) int64 {
	for {
		last := r.last.Load()
		next := max(now, last+1)
		if r.last.CompareAndSwap(last, next) {
			return next
		}
	}
}

// run writes events until ctx ends.
func (r *recorder) run(ctx context.Context) {
	correlator := record.NewEventCorrelator(clock.RealClock{})
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-r.queue:
			r.write(ctx, correlator, event)
		}
	}
}

func (r *recorder) write(ctx context.Context, correlator *record.EventCorrelator, event *corev1.Event) {
	result, err := correlator.EventCorrelate(event)
	if err != nil || result.Skip {
		return
	}
	event = result.Event
	for delay := time.Second; ; delay = min(2*delay, 30*time.Second) {
		err := r.send(ctx, event, result.Patch)
		switch {
		case err == nil:
			correlator.UpdateState(event)
			return
		case ctx.Err() != nil:
			return
		case apierrors.IsAlreadyExists(err), apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsNotFound(err), apierrors.IsBadRequest(err):
			r.log.Debug("an event was refused", "namespace", event.Namespace, "name", event.InvolvedObject.Name, "reason", event.Reason, "error", err)
			return
		}
		if !lifecycle.Pause(ctx, delay) {
			return
		}
	}
}

// send creates the event, or patches the one it repeats.
func (r *recorder) send(ctx context.Context, event *corev1.Event, patch []byte) error {
	if event.Count > 1 {
		target := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: event.Namespace, Name: event.Name}}
		err := r.client.Patch(ctx, target, client.RawPatch(types.StrategicMergePatchType, patch))
		if !apierrors.IsNotFound(err) {
			return err
		}
	}
	event.ResourceVersion = ""
	created := event.DeepCopy()
	return r.client.Create(ctx, created)
}
