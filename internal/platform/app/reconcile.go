package app

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/platform/app/render"
)

// reconcile looks at one application. It does one thing after the other, and each is right whether or not the ones after
// it were done before.
func (c *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	app := &v1alpha1.App{}
	if err := c.client.Get(ctx, key, app); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if app.DeletionTimestamp != nil {
		return 0, nil
	}
	app.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: "App"}
	until, gone, err := c.expire(ctx, app)
	if gone || err != nil {
		return 0, err
	}
	v, err := c.read(ctx, app)
	if err != nil {
		return 0, err
	}
	if !v.removed {
		if err := c.release(ctx, v); err != nil {
			return 0, err
		}
	}
	if err := c.apply(ctx, v); err != nil {
		return 0, err
	}
	if err := c.report(ctx, v); err != nil {
		return 0, err
	}
	if err := c.tidy(ctx, v); err != nil {
		return 0, err
	}
	return sooner(c.opts.Resync, until, v.wait), nil
}

// sooner is the shortest of the times that are not zero.
func sooner(times ...time.Duration) (out time.Duration) {
	for _, d := range times {
		if d > 0 && (out == 0 || d < out) {
			out = d
		}
	}
	return out
}

// view is an application with everything that belongs to it.
type view struct {
	app      *v1alpha1.App
	now      time.Time
	history  history
	next     v1alpha1.ReleaseStatus // of history.next, as it is going to be
	secret   *corev1.Secret         // nil: none was set
	owned    map[ownedKey]client.Object
	jobs     map[string]*batchv1.Job
	pods     []corev1.Pod
	platform platform
	removed  bool

	metrics  bool   // somebody counts requests
	needs    bool   // the application needs that
	conflict string // an object that is in the way
	wait     time.Duration
}

// deployment is one of the application's, nil if it is not there.
func (v *view) deployment(name string) *appsv1.Deployment {
	d, _ := v.owned[ownedKey{"Deployment", name}].(*appsv1.Deployment)
	return d
}

func (v *view) service(name string) *corev1.Service {
	s, _ := v.owned[ownedKey{"Service", name}].(*corev1.Service)
	return s
}

func (v *view) stopped() bool { return v.removed || v.app.Spec.Suspended }

// soon asks for another look after a while.
func (v *view) soon(after time.Duration) { v.wait = sooner(v.wait, after) }

// read gathers what belongs to an application.
func (c *Controller) read(ctx context.Context, app *v1alpha1.App) (*view, error) {
	v := &view{app: app, now: c.opts.Now(), jobs: map[string]*batchv1.Job{}}
	v.removed = app.Annotations[v1alpha1.AnnotationRemoved] != ""
	within := []client.ListOption{client.InNamespace(app.Namespace), client.MatchingLabels{v1alpha1.LabelApp: app.Name}}
	var releases v1alpha1.ReleaseList
	var jobs batchv1.JobList
	var pods corev1.PodList
	if err := errors.Join(c.client.List(ctx, &releases, within...), c.client.List(ctx, &jobs, within...), c.client.List(ctx, &pods, within...)); err != nil {
		return nil, fmt.Errorf("reading what belongs to the application: %w", err)
	}
	var mine []*v1alpha1.Release
	for i := range releases.Items {
		if metav1.IsControlledBy(&releases.Items[i], app) && releases.Items[i].DeletionTimestamp == nil {
			mine = append(mine, &releases.Items[i])
		}
	}
	v.history, v.pods = newHistory(mine), pods.Items
	for i := range jobs.Items {
		if metav1.IsControlledBy(&jobs.Items[i], app) {
			v.jobs[jobs.Items[i].Name] = &jobs.Items[i]
		}
	}
	secret := &corev1.Secret{}
	err := c.client.Get(ctx, client.ObjectKey{Namespace: app.Namespace, Name: v1alpha1.SecretName(app.Name)}, secret)
	if err == nil {
		v.secret = secret
	} else if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("reading the secrets of the application: %w", err)
	}
	if v.platform, err = c.readPlatform(ctx, app); err != nil {
		return nil, err
	}
	v.owned, err = c.readOwned(ctx, v)
	return v, err
}

// release makes the next release if there is something to release, and moves the one that is on its way.
func (c *Controller) release(ctx context.Context, v *view) error {
	prints, err := c.prints(ctx, v)
	if err != nil {
		return err
	}
	if made := nextRelease(v.app, v.history, prints); made != nil {
		if err := c.client.Create(ctx, made); err != nil {
			return fmt.Errorf("making release %d: %w", made.Spec.Number, err)
		}
		v.history = newHistory(append(v.history.all, made))
	}
	for _, r := range v.history.superseded() {
		status := *r.Status.DeepCopy()
		status.Phase, status.Reason, status.Finished = v1alpha1.ReleaseSuperseded, v1alpha1.ReasonSuperseded, stamp(v.now)
		status.Message = fmt.Sprintf("v%d came before it was live", v.history.last().Spec.Number)
		if err := c.setRelease(ctx, v, r, status); err != nil {
			return err
		}
	}
	if v.history.next != nil {
		if err := c.move(ctx, v, prints); err != nil {
			return err
		}
	}
	for _, r := range v.history.replaced() {
		status := *r.Status.DeepCopy()
		status.Phase = v1alpha1.ReleaseReplaced
		if err := c.setRelease(ctx, v, r, status); err != nil {
			return err
		}
	}
	return nil
}

// move takes the release that is on its way as far as it gets now.
func (c *Controller) move(ctx context.Context, v *view, prints map[string]string) error {
	release := v.history.next
	s := situation{
		now: v.now, app: v.app, history: v.history, jobs: v.jobs, pods: v.pods, routing: v.platform.routing, stopped: v.stopped(),
		unset: unset(release, v.secret), deployments: map[string]*appsv1.Deployment{},
	}
	for key, obj := range v.owned {
		if d, ok := obj.(*appsv1.Deployment); ok {
			s.deployments[key.name] = d
		}
	}
	if release.Status.Phase == v1alpha1.ReleaseCanary {
		counts, err := c.opts.Metrics.Counts(ctx, v.app.Namespace, render.CanaryName(v.app.Name))
		if err == nil {
			s.counts = &counts
		} else if !errors.Is(err, ErrNoMetrics) {
			s.blind = true
			c.opts.Log.Debug("reading counts of a canary", "namespace", v.app.Namespace, "name", v.app.Name, "error", err)
		}
	}
	next := advance(s)
	v.next = next.status
	v.soon(next.wait)
	if err := c.jobsOf(ctx, v, next); err != nil {
		return err
	}
	if next.log.pod != "" {
		text, err := c.opts.Logs.Tail(ctx, v.app.Namespace, next.log.pod, next.log.before)
		if err != nil {
			c.opts.Log.Debug("reading the last lines of what failed", "namespace", v.app.Namespace, "pod", next.log.pod, "error", err)
			text = terminationMessage(v.pods, next.log.pod)
		}
		v.next.Log = lastLines(text)
	}
	waited := release.Status.Phase == "" || release.Status.Phase == v1alpha1.ReleaseWaiting
	if waited && v.next.Phase != v1alpha1.ReleaseWaiting && len(release.Spec.Content.Secrets) > 0 {
		if err := c.notePrints(ctx, v, prints); err != nil {
			return err
		}
	}
	if err := c.setRelease(ctx, v, v.history.next, v.next); err != nil {
		return err
	}
	if finished(v.next.Phase) { // what it was is over: what serves is known anew
		v.history = newHistory(v.history.all)
		v.next = v1alpha1.ReleaseStatus{}
	}
	return nil
}

// jobsOf makes and ends the Jobs of a step.
func (c *Controller) jobsOf(ctx context.Context, v *view, next step) error {
	if next.job != nil {
		account := render.Account(v.app) // its pod cannot be made without
		if err := c.applyOne(ctx, v, ownedKey{kindOf(account), account.Name}, account); err != nil {
			return err
		}
		if err := client.IgnoreAlreadyExists(c.client.Create(ctx, next.job)); err != nil {
			return fmt.Errorf("making the Job %s: %w", next.job.Name, err)
		}
	}
	if job := v.jobs[next.ended]; job != nil && !jobEnded(job) {
		if err := c.deleteJob(ctx, job); err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller) deleteJob(ctx context.Context, job *batchv1.Job) error {
	err := c.client.Delete(ctx, job.DeepCopy(), client.PropagationPolicy(metav1.DeletePropagationBackground))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting the Job %s: %w", job.Name, err)
	}
	return nil
}

// setRelease writes the status of a release if it changed, and tells of what happened.
func (c *Controller) setRelease(ctx context.Context, v *view, release *v1alpha1.Release, status v1alpha1.ReleaseStatus) error {
	if equality.Semantic.DeepEqual(release.Status, status) {
		return nil
	}
	before := release.DeepCopy()
	after := release.DeepCopy()
	after.Status = status
	if err := c.client.Status().Patch(ctx, after, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("writing the status of %s: %w", release.Name, err)
	}
	after.Status = status // as it was meant, whatever the answer's precision
	*release = *after
	if before.Status.Phase != status.Phase {
		c.tell(v.app, release)
	}
	return nil
}

// tell makes an event of a release's new phase.
func (c *Controller) tell(app *v1alpha1.App, release *v1alpha1.Release) {
	kind, note := corev1.EventTypeNormal, fmt.Sprintf("v%d is %s", release.Spec.Number, release.Status.Phase)
	if failed(release.Status.Phase) {
		kind = corev1.EventTypeWarning
	}
	if release.Status.Message != "" {
		note += ": " + release.Status.Message
	}
	c.events.Event(app, kind, "Release"+release.Status.Phase, note)
	if release.Status.Phase == v1alpha1.ReleaseLive && release.Status.Warning != "" {
		c.events.Event(app, corev1.EventTypeWarning, "ReleaseWarning", fmt.Sprintf("v%d: %s", release.Spec.Number, release.Status.Warning))
	}
}

// unset are secrets that a release needs and that nobody has set.
func unset(release *v1alpha1.Release, secret *corev1.Secret) (out []string) {
	for _, key := range release.Spec.Content.Secrets {
		if secret == nil || secret.Data[key] == nil {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// printsName is the Secret with the key of an application's fingerprints.
func printsName(app string) string { return app + "-fingerprints" }

// prints are fingerprints of an application's secrets: who reads them learns nothing of the secrets.
func (c *Controller) prints(ctx context.Context, v *view) (map[string]string, error) {
	if v.secret == nil || len(v.app.Spec.Secrets) == 0 {
		return nil, nil
	}
	name := client.ObjectKey{Namespace: v.app.Namespace, Name: printsName(v.app.Name)}
	keeper := &corev1.Secret{}
	err := c.client.Get(ctx, name, keeper)
	if apierrors.IsNotFound(err) {
		key := make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("making a key for fingerprints: %w", err)
		}
		keeper = &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: name.Namespace, Name: name.Name, OwnerReferences: []metav1.OwnerReference{render.Owner(v.app)},
				Labels: map[string]string{v1alpha1.LabelApp: v.app.Name, render.LabelManagedBy: render.ManagedBy},
			},
			Data: map[string][]byte{"key": key},
		}
		err = c.client.Create(ctx, keeper)
	}
	if err != nil {
		return nil, fmt.Errorf("keeping the key of fingerprints: %w", err)
	}
	out := map[string]string{}
	for _, key := range v.app.Spec.Secrets {
		if value, ok := v.secret.Data[key]; ok {
			sum := hmac.New(sha256.New, keeper.Data["key"])
			sum.Write([]byte(key))
			sum.Write([]byte{0})
			sum.Write(value)
			out[key] = hex.EncodeToString(sum.Sum(nil)[:8])
		}
	}
	return out, nil
}

// notePrints writes down with which secrets a release begins.
func (c *Controller) notePrints(ctx context.Context, v *view, prints map[string]string) error {
	release := v.history.next
	text, err := json.Marshal(prints)
	if err != nil {
		return fmt.Errorf("encoding fingerprints: %w", err)
	}
	if release.Annotations[v1alpha1.AnnotationSecrets] == string(text) {
		return nil
	}
	after := release.DeepCopy()
	metav1.SetMetaDataAnnotation(&after.ObjectMeta, v1alpha1.AnnotationSecrets, string(text))
	if err := c.client.Patch(ctx, after, client.MergeFrom(release.DeepCopy())); err != nil {
		return fmt.Errorf("noting the secrets of %s: %w", release.Name, err)
	}
	*release = *after
	return nil
}

// tidy removes old releases, and the Jobs of those that are over.
func (c *Controller) tidy(ctx context.Context, v *view) error {
	for _, r := range v.history.surplus() {
		if err := client.IgnoreNotFound(c.client.Delete(ctx, r.DeepCopy())); err != nil {
			return fmt.Errorf("deleting the old release %s: %w", r.Name, err)
		}
	}
	last := v.history.last()
	if last == nil {
		return nil
	}
	for _, name := range sortedKeys(v.jobs) {
		job := v.jobs[name]
		number := job.Labels[v1alpha1.LabelRelease]
		ours := job.Labels[v1alpha1.LabelProcess] == render.ProcessRelease || job.Labels[v1alpha1.LabelProcess] == render.ProcessTest
		if ours && number != "" && number != fmt.Sprint(last.Spec.Number) && jobEnded(job) && job.DeletionTimestamp == nil {
			if err := c.deleteJob(ctx, job); err != nil {
				return err
			}
		}
	}
	return nil
}
