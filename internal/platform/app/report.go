package app

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/app/render"
)

// Conditions of an App. They are there while they say something.
const (
	// ConditionRouted is False where requests cannot reach the application by name, or a canary gets no share.
	ConditionRouted = "Routed"
	// ConditionMeasured is False where the application's scale or sleep needs counts of requests and nobody counts.
	ConditionMeasured = "Measured"
	// ConditionObjects is False where an object of somebody else is in the way.
	ConditionObjects = "Objects"
)

const (
	logLines = 20
	logBytes = 4096
)

// report writes the status of an application if it changed. Addons are somebody else's part of it.
func (c *Controller) report(ctx context.Context, v *view) error {
	next := *v.app.Status.DeepCopy()
	next.ObservedGeneration = v.app.Generation
	next.Release = 0
	if v.history.live != nil {
		next.Release = v.history.live.Spec.Number
	}
	if last := v.history.last(); last != nil {
		next.Latest = max(next.Latest, last.Spec.Number)
	}
	next.URLs = v.platform.urls
	if v.removed {
		next.URLs = nil
	}
	next.Processes = v.processes()
	next.Domains = c.domainStatus(ctx, v)
	setConditions(&next, v)
	next.Phase, next.Message = phase(v, next)
	if equality.Semantic.DeepEqual(v.app.Status, next) {
		return nil
	}
	after := v.app.DeepCopy()
	after.Status = next
	if err := client.IgnoreNotFound(c.client.Status().Patch(ctx, after, client.MergeFrom(v.app.DeepCopy()))); err != nil {
		return fmt.Errorf("writing the status of the application: %w", err)
	}
	return nil
}

// processes is what runs.
func (v *view) processes() map[string]v1alpha1.ProcessStatus {
	var out map[string]v1alpha1.ProcessStatus
	for name, version := range assign(v.history, v.next) {
		process, ok := render.Processes(version.Content)[name]
		d := v.deployment(v1alpha1.ObjectName(v.app.Name, name))
		if !ok || process.Schedule != "" || d == nil {
			continue
		}
		if out == nil {
			out = map[string]v1alpha1.ProcessStatus{}
		}
		out[name] = v1alpha1.ProcessStatus{Desired: desired(d), Ready: d.Status.AvailableReplicas, Port: templatePort(d)}
	}
	return out
}

// domainStatus says of each domain whether it points here.
func (c *Controller) domainStatus(ctx context.Context, v *view) (out []v1alpha1.DomainStatus) {
	ends := c.certificates(ctx, v)
	for _, domain := range v.app.Spec.Domains {
		if v.removed {
			break
		}
		check := c.checkDomain(ctx, domain.Name, v.platform.reached, v.now)
		status := v1alpha1.DomainStatus{Name: domain.Name, Ready: check.good, Message: check.message}
		if end, known := ends[domain.Name]; known {
			status.Expires = &end
		}
		if check.good {
			v.soon(recheckGood)
		} else {
			v.soon(recheckBad)
		}
		out = append(out, status)
	}
	return out
}

// Where the gateway's certificates are, each in a Secret with this label and what it is for in annotations.
const (
	certificateLabel   = "gateway.gantry.dev/certificate"
	certificateHost    = "gateway.gantry.dev/host"
	certificateExpires = "gateway.gantry.dev/expires"
)

// certificates is until when the certificates of hosts hold. On a cluster of others there are none to read.
func (c *Controller) certificates(ctx context.Context, v *view) map[string]metav1.Time {
	if len(v.app.Spec.Domains) == 0 {
		return nil
	}
	var list corev1.SecretList
	if err := c.client.List(ctx, &list, client.InNamespace(v1alpha1.PlatformNamespace), client.HasLabels{certificateLabel}); err != nil {
		c.opts.Log.Debug("reading certificates", "namespace", v.app.Namespace, "name", v.app.Name, "error", err)
		return nil
	}
	out := map[string]metav1.Time{}
	for i := range list.Items {
		notes := list.Items[i].Annotations
		if end, err := time.Parse(time.RFC3339, notes[certificateExpires]); err == nil {
			out[notes[certificateHost]] = metav1.NewTime(end)
		}
	}
	return out
}

// setConditions says what the cluster lacks for the application.
func setConditions(status *v1alpha1.AppStatus, v *view) {
	set := func(kind, reason, message string) {
		if reason == "" {
			meta.RemoveStatusCondition(&status.Conditions, kind)
			return
		}
		meta.SetStatusCondition(&status.Conditions, metav1.Condition{
			Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: v.app.Generation,
			LastTransitionTime: *stamp(v.now),
		})
	}
	_, web := render.Processes(&v.app.Spec)[v1alpha1.WebProcess]
	switch {
	case !web || v.platform.routing == render.RouteGateway:
		set(ConditionRouted, "", "")
	case v.platform.routing == render.RouteIngress:
		set(ConditionRouted, "NoGatewayAPI", "requests come through an Ingress: a canary cannot get a share of them")
	default:
		set(ConditionRouted, "NoGateway", "neither the Gateway API nor an Ingress controller is there: reach the Service in the cluster, or forward its port")
	}
	if v.needs && !v.metrics && !v.stopped() {
		set(ConditionMeasured, "NoMetrics", "nobody counts requests here: the application does not sleep, and does not scale by requests")
	} else {
		set(ConditionMeasured, "", "")
	}
	if v.conflict != "" {
		set(ConditionObjects, "Conflict", v.conflict)
	} else {
		set(ConditionObjects, "", "")
	}
	if len(status.Conditions) == 0 {
		status.Conditions = nil
	}
}

// phase is one word for an application, and why.
func phase(v *view, status v1alpha1.AppStatus) (word, message string) {
	last := v.history.last()
	switch {
	case v.removed:
		return v1alpha1.AppRemoved, "it can be brought back until " + endOf(v.app).UTC().Format(time.RFC3339) + " with: gantry app undo " + v.app.Name
	case v.history.next != nil:
		next := v.history.next
		message = fmt.Sprintf("v%d is %s", next.Spec.Number, strings.ToLower(next.Status.Phase))
		if next.Status.Message != "" {
			message += ": " + next.Status.Message
		}
		return v1alpha1.AppDeploying, message
	case last == nil:
		return v1alpha1.AppPending, "nothing was released yet"
	}
	if failed(last.Status.Phase) {
		message = fmt.Sprintf("v%d %s: %s", last.Spec.Number, strings.ToLower(last.Status.Phase), last.Status.Message)
		if v.history.live == nil {
			return v1alpha1.AppUnhealthy, message
		}
		message += fmt.Sprintf("; v%d serves", v.history.live.Spec.Number)
	}
	if v.app.Spec.Suspended {
		return v1alpha1.AppSleeping, "suspended"
	}
	wanted, ready, asleep := int32(0), int32(0), false
	for name, process := range status.Processes {
		wanted, ready = wanted+process.Desired, ready+process.Ready
		d := v.deployment(v1alpha1.ObjectName(v.app.Name, name))
		if process.Desired > 0 && process.Ready == 0 {
			return v1alpha1.AppUnhealthy, join(message, "no container of "+name+" is ready")
		}
		asleep = asleep || d != nil && d.Annotations[v1alpha1.AnnotationAsleep] != ""
	}
	if wanted == 0 && asleep {
		return v1alpha1.AppSleeping, join(message, "a request wakes it")
	}
	return v1alpha1.AppRunning, message
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// lastLines are the last lines of a log, bounded.
func lastLines(text string) string {
	text = strings.TrimRight(strings.ToValidUTF8(text, "\uFFFD"), "\n")
	lines := strings.Split(text, "\n")
	text = strings.Join(lines[max(len(lines)-logLines, 0):], "\n")
	if len(text) > logBytes {
		text = strings.ToValidUTF8(text[len(text)-logBytes:], "")
	}
	return text
}

// terminationMessage is what a pod's container said at its end: its last lines, where it said nothing itself.
func terminationMessage(pods []corev1.Pod, name string) string {
	for i := range pods {
		status := containerStatus(&pods[i])
		if pods[i].Name != name || status == nil {
			continue
		}
		for _, t := range []*corev1.ContainerStateTerminated{status.State.Terminated, status.LastTerminationState.Terminated} {
			if t != nil && t.Message != "" {
				return t.Message
			}
		}
	}
	return ""
}
