package deploytest

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
)

// play is the platform: it looks again and again and does the next thing. An error is one of another write in between, or of the
// end; the next look mends it.
func (p *Platform) play(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var builds v1alpha1.BuildList
		if p.list(ctx, "Build", &builds) == nil {
			for i := range builds.Items {
				p.build(ctx, &builds.Items[i])
			}
		}
		var apps v1alpha1.AppList
		var releases v1alpha1.ReleaseList
		if p.list(ctx, "App", &apps) != nil || p.list(ctx, "Release", &releases) != nil {
			continue
		}
		for i := range apps.Items {
			p.app(ctx, &apps.Items[i], releases.Items)
		}
	}
}

// list reads objects of a custom kind through the client of the process, which knows no types of them.
func (p *Platform) list(ctx context.Context, kind string, into any) error {
	list := &unstructured.UnstructuredList{}
	list.SetAPIVersion(v1alpha1.GroupVersion().String())
	list.SetKind(kind + "List")
	if err := p.client.List(ctx, list); err != nil {
		return err
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

func plain(kind string, obj runtime.Object) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	out := &unstructured.Unstructured{Object: content}
	out.SetAPIVersion(v1alpha1.GroupVersion().String())
	out.SetKind(kind)
	return out, err
}

func (p *Platform) writeStatus(ctx context.Context, kind string, obj runtime.Object) {
	if out, err := plain(kind, obj); err == nil {
		_ = p.client.Status().Update(ctx, out)
	}
}

func (p *Platform) build(ctx context.Context, b *v1alpha1.Build) {
	switch {
	case b.Status.Phase == v1alpha1.BuildSucceeded, b.Status.Phase == v1alpha1.BuildFailed, b.Status.Phase == v1alpha1.BuildCanceled:
		return
	case b.Spec.Cancel:
		b.Status.Phase = v1alpha1.BuildCanceled
	case b.Spec.Args["HANG"] != "":
		if b.Status.Phase == v1alpha1.BuildRunning {
			return
		}
		b.Status.Phase, b.Status.Step = v1alpha1.BuildRunning, "1/1 RUN sleep"
	case b.Spec.Args["FAIL"] != "":
		b.Status.Phase, b.Status.Message = v1alpha1.BuildFailed, "Dockerfile:3: RUN make ended with 2"
	case b.Spec.Git == nil && !p.Registry.Has(b.Namespace+"/"+b.Spec.App, b.Spec.Source):
		b.Status.Phase, b.Status.Message = v1alpha1.BuildFailed, "the source was not uploaded"
	default:
		digest := b.Spec.Source
		if digest == "" {
			digest = "sha256:" + strings.Repeat("0", 64)
			b.Status.Commit, b.Status.Processes = strings.Repeat("c", 40), map[string]string{"worker": "./work", "release": "./migrate"}
		}
		b.Status.Phase, b.Status.Image = v1alpha1.BuildSucceeded, "registry.gantry.internal/"+b.Namespace+"/"+b.Spec.App+"@"+digest
	}
	p.writeStatus(ctx, "Build", b)
}

func (p *Platform) app(ctx context.Context, a *v1alpha1.App, all []v1alpha1.Release) {
	var own []*v1alpha1.Release
	for i := range all {
		if all[i].Namespace == a.Namespace && all[i].Spec.App == a.Name {
			own = append(own, &all[i])
		}
	}
	var last *v1alpha1.Release
	for _, r := range own {
		if last == nil || r.Spec.Number > last.Spec.Number {
			last = r
		}
	}
	if last == nil || deploy.MakesRelease(&last.Spec.Content, &a.Spec) || (last.Status.Phase == v1alpha1.ReleaseFailed && a.Spec.Restarts != last.Spec.Content.Restarts) {
		p.create(ctx, a, last)
		return
	}
	for _, r := range own {
		p.release(ctx, r, last)
	}
	p.describe(ctx, a, own, last)
}

func (p *Platform) create(ctx context.Context, a *v1alpha1.App, last *v1alpha1.Release) {
	number := int64(1)
	if last != nil {
		number = last.Spec.Number + 1
	}
	r := &v1alpha1.Release{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.Namespace, Name: fmt.Sprintf("%s-v%d", a.Name, number), Labels: map[string]string{v1alpha1.LabelApp: a.Name}},
		Spec:       v1alpha1.ReleaseSpec{App: a.Name, Number: number, Content: a.Spec},
	}
	if out, err := plain("Release", r); err == nil {
		_ = p.client.Create(ctx, out)
	}
}

// release takes a release to where its image wants it.
func (p *Platform) release(ctx context.Context, r, last *v1alpha1.Release) {
	before := r.Status.DeepCopy()
	s := &r.Status
	image := r.Spec.Content.Image
	ended := s.Phase == v1alpha1.ReleaseFailed || s.Phase == v1alpha1.ReleaseAborted || s.Phase == v1alpha1.ReleaseSuperseded || s.Phase == v1alpha1.ReleaseReplaced
	switch {
	case ended:
	case r != last && s.Phase != v1alpha1.ReleaseLive:
		s.Phase, s.Reason = v1alpha1.ReleaseSuperseded, v1alpha1.ReasonSuperseded
	case r != last && last.Status.Phase == v1alpha1.ReleaseLive:
		s.Phase = v1alpha1.ReleaseReplaced
	case s.Phase == v1alpha1.ReleaseLive:
	case r.Spec.Intent == v1alpha1.IntentAbort:
		s.Phase, s.Reason = v1alpha1.ReleaseAborted, v1alpha1.ReasonAborted
	case strings.Contains(image, "crash"):
		s.Phase, s.Reason, s.Message, s.Log = v1alpha1.ReleaseFailed, v1alpha1.ReasonCrashing, "web ended three times, last with 2", "panic: boom\n"
	case strings.Contains(image, "migratefails"):
		s.Phase, s.Reason, s.Message = v1alpha1.ReleaseFailed, v1alpha1.ReasonCommandFailed, "the release command ended with 1"
	case strings.Contains(image, "canary") && r.Spec.Intent != v1alpha1.IntentPromote:
		s.Phase, s.Canary = v1alpha1.ReleaseCanary, &v1alpha1.CanaryStatus{Weight: 5, Waits: true, Since: metav1.Now().Rfc3339Copy()}
		if before.Canary != nil {
			s.Canary.Since = before.Canary.Since
		}
	case s.Phase == "" || strings.Contains(image, "hang"):
		s.Phase, s.Progress = v1alpha1.ReleaseRolling, map[string]v1alpha1.ProcessStatus{"web": {Desired: 1}}
	default:
		s.Phase, s.Progress = v1alpha1.ReleaseLive, map[string]v1alpha1.ProcessStatus{"web": {Desired: 1, Ready: 1}}
		p.pod(ctx, r)
	}
	if !equality.Semantic.DeepEqual(before, s) {
		p.writeStatus(ctx, "Release", r)
	}
}

// pod makes the one pod of a release that went live.
func (p *Platform) pod(ctx context.Context, r *v1alpha1.Release) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: r.Spec.App + "-web-" + strconv.FormatInt(r.Spec.Number, 10), Labels: map[string]string{
			v1alpha1.LabelApp: r.Spec.App, v1alpha1.LabelProcess: "web", v1alpha1.LabelRelease: strconv.FormatInt(r.Spec.Number, 10),
		}},
		Spec: corev1.PodSpec{NodeName: "node-0", Containers: []corev1.Container{{Name: "app", Image: "x"}}},
	}
	if p.client.Create(ctx, pod) != nil {
		return
	}
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
		Name: "app", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
	}}}
	_ = p.client.Status().Update(ctx, pod)
}

// describe writes the application's status.
func (p *Platform) describe(ctx context.Context, a *v1alpha1.App, own []*v1alpha1.Release, last *v1alpha1.Release) {
	before := a.Status.DeepCopy()
	s := &a.Status
	s.ObservedGeneration, s.Latest, s.Release = a.Generation, last.Spec.Number, 0
	for _, r := range own {
		if r.Status.Phase == v1alpha1.ReleaseLive {
			s.Release = max(s.Release, r.Spec.Number)
		}
	}
	s.Phase = v1alpha1.AppDeploying
	if s.Release == s.Latest {
		s.Phase, s.Processes = v1alpha1.AppRunning, map[string]v1alpha1.ProcessStatus{"web": {Desired: 1, Ready: 1, Port: 8080}}
	}
	if s.Release > 0 {
		s.URLs = []string{"http://" + a.Name + ".localhost"}
	}
	if !equality.Semantic.DeepEqual(before, s) {
		p.writeStatus(ctx, "App", a)
	}
}
