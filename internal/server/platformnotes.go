package server

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/applog"
	"gantry.dev/gantry/internal/informer"
)

// platformNotes writes down what the platform does with applications: events of the API are gone after an hour.
type platformNotes struct {
	cp     *ControlPlane
	keeper *applog.Keeper
	log    *slog.Logger
	reader ctrlclient.Reader
}

// note is a line about an application, or an event whose application is to be found.
type note struct {
	namespace, app string
	line           applog.Line
	event          *corev1.Event
}

// maxNotes bounds the lines that wait to be written; more are lost.
const maxNotes = 1024

// Run writes down what happens until ctx ends.
func (p *platformNotes) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.cp.Platform():
	}
	reader, informers, err := p.cp.AsPlatform(controllersUser(), "gantry-log")
	if err != nil {
		return err
	}
	p.reader = reader
	notes := make(chan note, maxNotes)
	add := func(n note) {
		select {
		case notes <- n:
		default:
			p.log.Debug("a line about an application is lost", "namespace", n.namespace, "name", n.app)
		}
	}
	stop, err := informer.Listen(ctx, informers,
		informer.Subscription{Object: &corev1.Event{}, OnEvent: func(_, current ctrlclient.Object) {
			if e, ok := current.(*corev1.Event); ok && telling(e) {
				add(note{namespace: e.InvolvedObject.Namespace, event: e})
			}
		}},
		informer.Subscription{Object: &v1alpha1.Build{}, OnEvent: func(old, current ctrlclient.Object) {
			if n, ok := buildNote(old, current); ok {
				add(n)
			}
		}},
		informer.Subscription{Object: &appsv1.Deployment{}, OnEvent: func(old, current ctrlclient.Object) {
			if n, ok := scaleNote(old, current); ok {
				add(n)
			}
		}},
	)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("following what happens to applications: %w", err)
	}
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-notes:
			p.write(ctx, n)
		}
	}
}

// write finds the application and writes the line.
func (p *platformNotes) write(ctx context.Context, n note) {
	if n.event != nil {
		at := eventAt(n.event)
		n.app = p.appOf(ctx, n.event)
		if n.app == "" || !at.After(p.keeper.Noted(n.namespace, n.app)) && time.Since(at) > time.Minute {
			return // written by the gantry that ran before
		}
		if time.Since(at) < 10*time.Second {
			at = time.Now() // an event's own time is in seconds
		}
		n.line = applog.Line{Time: at.UTC(), ID: fmt.Sprintf("%s/%d", n.event.UID, n.event.Count), Text: eventText(n.event, n.app)}
	}
	n.line.Source = applog.SourcePlatform
	if err := p.keeper.Note(n.namespace, n.app, n.line); err != nil {
		p.log.Warn("cannot write down what happened to an application", "namespace", n.namespace, "name", n.app, "error", err)
	}
}

// telling picks events that a developer wants to read: what goes wrong, and what the platform itself did.
func telling(e *corev1.Event) bool {
	return e.Type == corev1.EventTypeWarning || e.InvolvedObject.Kind == "App" || e.InvolvedObject.Kind == "Release" ||
		e.InvolvedObject.Kind == "HorizontalPodAutoscaler"
}

// appOf is the application of what an event is about; empty: none.
func (p *platformNotes) appOf(ctx context.Context, e *corev1.Event) string {
	ref := &e.InvolvedObject
	var object ctrlclient.Object
	switch ref.Kind {
	case "App":
		return ref.Name
	case "Release":
		return appOfRelease(ref.Name)
	case "Pod":
		object = &corev1.Pod{}
	case "Service":
		object = &corev1.Service{}
	case "PersistentVolumeClaim":
		object = &corev1.PersistentVolumeClaim{}
	case "Deployment":
		object = &appsv1.Deployment{}
	case "ReplicaSet":
		object = &appsv1.ReplicaSet{}
	case "StatefulSet":
		object = &appsv1.StatefulSet{}
	case "Job":
		object = &batchv1.Job{}
	case "CronJob":
		object = &batchv1.CronJob{}
	case "HorizontalPodAutoscaler":
		object = &autoscalingv2.HorizontalPodAutoscaler{}
	default:
		return ""
	}
	if err := p.reader.Get(ctx, ctrlclient.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, object); err != nil {
		return ""
	}
	return object.GetLabels()[v1alpha1.LabelApp]
}

func eventAt(e *corev1.Event) time.Time {
	switch {
	case e.Series != nil && !e.Series.LastObservedTime.IsZero():
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	}
	return e.CreationTimestamp.Time
}

// eventText says what an event says, and of what, unless that is the application itself.
func eventText(e *corev1.Event, app string) string {
	text := strings.TrimSpace(e.Message)
	if e.InvolvedObject.Kind == "App" {
		return text
	}
	return strings.TrimPrefix(e.InvolvedObject.Name, app+"-") + ": " + e.Reason + ": " + text
}

// buildNote is the line about a Build whose phase has changed.
func buildNote(old, current ctrlclient.Object) (note, bool) {
	before, _ := old.(*v1alpha1.Build)
	now, ok := current.(*v1alpha1.Build)
	if !ok || before == nil || before.Status.Phase == now.Status.Phase {
		return note{}, false
	}
	app := now.Labels[v1alpha1.LabelApp]
	if app == "" {
		return note{}, false
	}
	text := fmt.Sprintf("build %s: %s", now.Name, strings.ToLower(now.Status.Phase))
	if now.Status.Message != "" {
		text += ": " + now.Status.Message
	}
	return noteOf(now, app, text), true
}

// scaleNote is the line about a process that has another number of pods, fell asleep or woke.
func scaleNote(old, current ctrlclient.Object) (note, bool) {
	before, _ := old.(*appsv1.Deployment)
	now, ok := current.(*appsv1.Deployment)
	if !ok || before == nil || now.Labels[v1alpha1.LabelApp] == "" {
		return note{}, false
	}
	from, to := replicasOf(before), replicasOf(now)
	_, slept := before.Annotations[v1alpha1.AnnotationAsleep]
	_, sleeps := now.Annotations[v1alpha1.AnnotationAsleep]
	process := now.Labels[v1alpha1.LabelProcess]
	text := ""
	switch {
	case sleeps && !slept:
		text = process + " sleeps: nobody asked for it"
	case slept && !sleeps:
		text = process + " wakes: a request waits for it"
	case from != to:
		text = fmt.Sprintf("%s is scaled from %d to %d", process, from, to)
	default:
		return note{}, false
	}
	return noteOf(now, now.Labels[v1alpha1.LabelApp], text), true
}

func replicasOf(d *appsv1.Deployment) int32 {
	if d.Spec.Replicas == nil {
		return 1
	}
	return *d.Spec.Replicas
}

func noteOf(object ctrlclient.Object, app, text string) note {
	return note{namespace: object.GetNamespace(), app: app, line: applog.Line{
		Time: time.Now().UTC(), ID: string(object.GetUID()) + "/" + object.GetResourceVersion(), Text: text}}
}
