package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
)

// whyEvents is how many events an answer shows.
const whyEvents = 8

// whyKinds are what why knows, by what people write.
func whyKinds() map[string]string {
	return map[string]string{"pod": "pod", "pods": "pod", "po": "pod", "app": "app", "apps": "app", "release": "release", "releases": "release",
		"request": "request", "requests": "request", "req": "request"}
}

func (a *app) whyCommand() *cobra.Command {
	f := &appFlags{}
	return f.register(&cobra.Command{
		Use: "why TYPE/NAME", Short: "Explain a pod, an application, a release or a request: why it is as it is", Args: exactArgs("a TYPE/NAME, such as pod/web-1,"),
		Long: "Explain why a pod is where it is, or nowhere (pod/NAME), why an application is not well (app/NAME),\n" +
			"why a release did not become live (release/APP-vN, or release/vN with -a), or what became of a request\n" +
			"(request/ID, by the X-Request-Id of its answer).",
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, name, found := strings.Cut(args[0], "/")
			if !found || name == "" {
				return usage("%q is no TYPE/NAME, such as pod/web-1", args[0])
			}
			switch whyKinds()[kind] {
			case "pod":
				return a.whyPod(cmd, f, name)
			case "app":
				return a.whyApp(cmd, f, name)
			case "release":
				return a.whyRelease(cmd, f, name)
			case "request":
				return a.whyRequest(cmd, f, name)
			}
			return usage("%s", suggest(fmt.Sprintf("nothing is known about a %q", kind), kind, []string{"pod", "app", "release", "request"}, "there is: app, pod, release, request"))
		},
	})
}

func (a *app) whyPod(cmd *cobra.Command, f *appFlags, name string) error {
	if a.backend.WhyPod == nil {
		return usage("this program is for clients: why pod/%s needs one that can be a server", name)
	}
	cluster, err := a.clusterOf(cmd, &appTarget{context: f.context})
	if err != nil {
		return err
	}
	answer, err := a.backend.WhyPod(cmd.Context(), cluster, cmp.Or(f.project, defaultProject), name)
	if err != nil {
		return err
	}
	return a.printAnswer(answer)
}

// whyAnswer is what is known about an application or a release.
type whyAnswer struct {
	About   string   `json:"about"`
	Summary string   `json:"summary"`
	Facts   []string `json:"facts,omitempty"`
	Log     string   `json:"log,omitempty"`
	Events  []string `json:"events,omitempty"`
	Do      []string `json:"do,omitempty"`
}

func (w *whyAnswer) fact(format string, args ...any) {
	w.Facts = append(w.Facts, fmt.Sprintf(format, args...))
}

func (a *app) whyApp(cmd *cobra.Command, f *appFlags, name string) error {
	t, err := a.target(cmd, f, name)
	if err != nil {
		return err
	}
	one, err := t.cluster.App(cmd.Context(), t.key)
	if err != nil {
		return err
	}
	releases, err := t.cluster.Releases(cmd.Context(), t.key)
	if err != nil {
		return err
	}
	pods, err := t.pods(cmd.Context(), "")
	if err != nil {
		return err
	}
	w := explainApp(one, releases)
	for i := range pods {
		if trouble := podTrouble(&pods[i]); trouble != "" {
			w.fact("pod %s (%s) %s", pods[i].Name, podRowOf(&pods[i], time.Now()).Release, trouble)
		}
	}
	w.Events, err = t.events(cmd.Context())
	if err != nil {
		return err
	}
	return a.printWhy(w)
}

// explainApp is pure.
func explainApp(one *v1alpha1.App, releases []v1alpha1.Release) *whyAnswer {
	w := &whyAnswer{About: "app/" + one.Name, Summary: fmt.Sprintf("%s is %s", one.Name, strings.ToLower(phaseOf(one)))}
	if one.Status.Message != "" {
		w.Summary += ": " + one.Status.Message
	}
	if removed := one.Annotations[v1alpha1.AnnotationRemoved]; removed != "" {
		w.Do = append(w.Do, "gantry app undo "+one.Name)
	}
	if one.Status.ObservedGeneration < one.Generation {
		w.fact("the last change was not looked at yet")
	}
	if len(releases) > 0 {
		last := &releases[len(releases)-1]
		w.fact("%s serves; v%d is %s", cmp.Or(strings.Replace(versionText(one.Status.Release), "-", "", 1), "nothing"), last.Spec.Number, releaseWords(last))
		if last.Status.Phase == v1alpha1.ReleaseFailed || last.Status.Phase == v1alpha1.ReleaseAborted {
			w.Log = last.Status.Log
			w.Do = append(w.Do, "mend it and deploy again, or: gantry rollback -a "+one.Name)
		}
	} else {
		w.fact("nothing was released yet")
	}
	for _, process := range sortedKeys(one.Status.Processes) {
		if p := one.Status.Processes[process]; p.Ready < p.Desired {
			w.fact("process %s: %d of %d are ready", process, p.Ready, p.Desired)
		}
	}
	for _, addon := range sortedKeys(one.Spec.Addons) {
		if s := one.Status.Addons[addon]; !s.Ready {
			w.fact("addon %s is not ready: %s", addon, cmp.Or(s.Message, "it is being made"))
		}
	}
	for _, domain := range one.Status.Domains {
		if !domain.Ready {
			w.fact("domain %s: %s", domain.Name, cmp.Or(domain.Message, "not ready"))
		}
	}
	for _, condition := range one.Status.Conditions {
		if condition.Status != metav1.ConditionTrue && condition.Message != "" {
			w.fact("%s: %s", condition.Type, condition.Message)
		}
	}
	return w
}

func releaseWords(r *v1alpha1.Release) string {
	words := strings.ToLower(cmp.Or(r.Status.Phase, v1alpha1.ReleaseWaiting))
	if r.Status.Reason != "" {
		words += " (" + r.Status.Reason + ")"
	}
	if r.Status.Message != "" {
		words += ": " + r.Status.Message
	}
	return words
}

// podTrouble says what is wrong with a pod; empty is nothing.
func podTrouble(pod *corev1.Pod) string {
	for _, status := range pod.Status.ContainerStatuses {
		if waiting := status.State.Waiting; waiting != nil && waiting.Reason != "ContainerCreating" {
			text := "waits: " + cmp.Or(waiting.Reason, "starting")
			if waiting.Message != "" {
				text += ": " + waiting.Message
			}
			if ended := status.LastTerminationState.Terminated; ended != nil {
				text += fmt.Sprintf("; it ended with %d (%s)", ended.ExitCode, ended.Reason)
			}
			return text
		}
		if ended := status.LastTerminationState.Terminated; ended != nil && status.RestartCount > 0 {
			return fmt.Sprintf("was restarted %d times; it last ended with %d (%s)", status.RestartCount, ended.ExitCode, ended.Reason)
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return "has no node: " + condition.Message + " (gantry why pod/" + pod.Name + ")"
		}
	}
	return ""
}

// events are the last warnings about an application's objects.
func (t *appTarget) events(ctx context.Context) ([]string, error) {
	var list corev1.EventList
	if err := t.cluster.Client.List(ctx, &list, client.InNamespace(t.key.Namespace)); err != nil {
		return nil, deploy.Reached("list the events", err)
	}
	events := slices.DeleteFunc(list.Items, func(e corev1.Event) bool {
		return e.Type != corev1.EventTypeWarning || !t.owns(e.InvolvedObject.Name)
	})
	slices.SortStableFunc(events, func(x, y corev1.Event) int { return eventTime(&x).Compare(eventTime(&y)) })
	if len(events) > whyEvents {
		events = events[len(events)-whyEvents:]
	}
	out := make([]string, 0, len(events))
	for i := range events {
		e := &events[i]
		out = append(out, fmt.Sprintf("%s ago  %s/%s  %s: %s", age(time.Since(eventTime(e))), strings.ToLower(e.InvolvedObject.Kind), e.InvolvedObject.Name, e.Reason, e.Message))
	}
	return out, nil
}

// owns tells by its name whether an object is the application's: APP, or APP-….
func (t *appTarget) owns(name string) bool {
	return name == t.key.Name || strings.HasPrefix(name, t.key.Name+"-")
}

func eventTime(e *corev1.Event) time.Time {
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

func (a *app) whyRelease(cmd *cobra.Command, f *appFlags, name string) error {
	number := int64(0)
	appName := ""
	if i := strings.LastIndex(name, "-v"); i > 0 {
		n, err := parseVersion(name[i+1:])
		if err != nil {
			return err
		}
		appName, number = name[:i], n
	} else if n, err := parseVersion(name); err == nil {
		number = n
	} else {
		return usage("%q is no release, such as shop-v7", name)
	}
	t, err := a.target(cmd, f, appName)
	if err != nil {
		return err
	}
	r, err := t.release(cmd.Context(), number)
	if err != nil {
		return err
	}
	w := &whyAnswer{About: "release/" + r.Name, Summary: fmt.Sprintf("v%d of %s is %s", r.Spec.Number, r.Spec.App, releaseWords(r)), Log: r.Status.Log}
	src := sourceOf(r)
	w.fact("made because of: %s; by %s", cmp.Or(src.Reason, "deploy"), cmp.Or(src.By, "unknown"))
	w.fact("image %s", imageText(r.Spec.Content.Image))
	for _, process := range sortedKeys(r.Status.Progress) {
		p := r.Status.Progress[process]
		w.fact("process %s: %d of %d were ready", process, p.Ready, p.Desired)
	}
	if c := r.Status.Canary; c != nil {
		w.fact("canary at step %d, %d %% of the requests: %d requests, %d errors", c.Step+1, c.Weight, c.Requests, c.Errors)
	}
	w.Do = whatToDo(r)
	if w.Events, err = t.events(cmd.Context()); err != nil {
		return err
	}
	return a.printWhy(w)
}

// whatToDo is advice by the reason of a release that did not become live.
func whatToDo(r *v1alpha1.Release) []string {
	switch r.Status.Reason {
	case v1alpha1.ReasonPort:
		return []string{"listen on 0.0.0.0 and on the port in $PORT, or say the right one: port: N in gantry.yaml"}
	case v1alpha1.ReasonCrashing:
		return []string{"see its last lines: gantry logs -a " + r.Spec.App, "try the image: gantry run -a " + r.Spec.App + " -- sh"}
	case v1alpha1.ReasonUnhealthy:
		return []string{"ask the health check's path yourself, or give it more time: health: {grace: 2m}"}
	case v1alpha1.ReasonImage:
		return []string{"check the image's name and whether the cluster may pull it"}
	case v1alpha1.ReasonSecretMissing:
		return []string{"gantry secret set NAME -a " + r.Spec.App + " < FILE"}
	case v1alpha1.ReasonNoRoom:
		return []string{"ask for less: cpu: and memory: in gantry.yaml; see what is free: gantry status"}
	case v1alpha1.ReasonCommandFailed:
		return []string{"mend the release command and deploy again: the release before still serves"}
	}
	return nil
}

func (a *app) printWhy(w *whyAnswer) error {
	if a.json {
		return a.printJSON(w)
	}
	var b strings.Builder
	b.WriteString(w.Summary + "\n")
	for _, fact := range w.Facts {
		b.WriteString("  " + fact + "\n")
	}
	if log := strings.TrimRight(w.Log, "\n"); log != "" {
		for line := range strings.SplitSeq(log, "\n") {
			b.WriteString("  | " + line + "\n")
		}
	}
	for _, event := range w.Events {
		b.WriteString("  event: " + event + "\n")
	}
	for _, do := range w.Do {
		b.WriteString("→ " + do + "\n")
	}
	return a.printf("%s", b.String())
}
