package addon

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/platform/addon/pack"
	"gantry.dev/gantry/internal/platform/app/render"
)

// reconcile looks at the addons of one application.
func (c *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	app := &v1alpha1.App{}
	if err := c.client.Get(ctx, key, app); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if app.DeletionTimestamp != nil {
		return 0, nil
	}
	v, err := c.read(ctx, app)
	if err != nil {
		return 0, err
	}
	statuses := map[string]v1alpha1.AddonStatus{}
	for _, name := range slices.Sorted(maps.Keys(v.wanted)) {
		if statuses[name], err = c.keep(ctx, v, name); err != nil {
			return 0, fmt.Errorf("addon %s: %w", name, err)
		}
	}
	if err := c.tidy(ctx, v); err != nil {
		return 0, err
	}
	if err := c.report(ctx, app, statuses); err != nil || len(v.wanted) == 0 {
		return 0, err
	}
	return c.opts.Resync, nil
}

// ownedKey names an object of an addon.
type ownedKey struct{ kind, name string }

// view is an application with what belongs to its addons.
type view struct {
	app    *v1alpha1.App
	wanted map[string]v1alpha1.Addon
	// settings are the platform's.
	settings map[string]string
	hook     bool // of Options.StopHook
	owned    map[ownedKey]client.Object
	jobs     []batchv1.Job
	pods     []corev1.Pod
}

func (v *view) claim(name string) *corev1.PersistentVolumeClaim {
	out, _ := v.owned[ownedKey{"PersistentVolumeClaim", name}].(*corev1.PersistentVolumeClaim)
	return out
}

func (v *view) secret(name string) *corev1.Secret {
	out, _ := v.owned[ownedKey{"Secret", name}].(*corev1.Secret)
	return out
}

// read gathers what belongs to the addons of an application.
func (c *Controller) read(ctx context.Context, app *v1alpha1.App) (*view, error) {
	v := &view{app: app, hook: c.opts.StopHook, wanted: maps.Clone(app.Spec.Addons), owned: map[ownedKey]client.Object{}}
	if err := c.addServing(ctx, v); err != nil {
		return nil, err
	}
	within := []client.ListOption{client.InNamespace(app.Namespace), client.MatchingLabels{v1alpha1.LabelApp: app.Name}}
	for _, list := range []client.ObjectList{
		&corev1.SecretList{}, &corev1.PersistentVolumeClaimList{}, &corev1.ServiceList{}, &appsv1.StatefulSetList{}, &batchv1.CronJobList{},
	} {
		if err := c.client.List(ctx, list, within...); err != nil {
			return nil, fmt.Errorf("reading what belongs to addons: %w", err)
		}
		err := meta.EachListItem(list, func(item runtime.Object) error {
			obj, ok := item.(client.Object)
			if ok && obj.GetLabels()[v1alpha1.LabelAddon] != "" && obj.GetLabels()[render.LabelManagedBy] == render.ManagedBy {
				v.owned[ownedKey{kindOf(obj), obj.GetName()}] = obj
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("reading what belongs to addons: %w", err)
		}
	}
	if len(v.wanted) == 0 {
		return v, nil
	}
	var jobs batchv1.JobList
	var pods corev1.PodList
	if err := c.client.List(ctx, &jobs, within...); err != nil {
		return nil, fmt.Errorf("reading backups: %w", err)
	}
	if err := c.client.List(ctx, &pods, within...); err != nil {
		return nil, fmt.Errorf("reading pods of addons: %w", err)
	}
	v.jobs, v.pods = jobs.Items, pods.Items
	var settings corev1.ConfigMap
	err := c.client.Get(ctx, client.ObjectKey{Namespace: v1alpha1.PlatformNamespace, Name: v1alpha1.PlatformConfig}, &settings)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("reading the platform's settings: %w", err)
	}
	v.settings = settings.Data
	return v, nil
}

// addServing adds the addons that only the release that serves still has: it must be able to go on.
func (c *Controller) addServing(ctx context.Context, v *view) error {
	if v.app.Status.Release == 0 || v.app.Annotations[v1alpha1.AnnotationRemoved] != "" {
		return nil
	}
	release := &v1alpha1.Release{}
	key := client.ObjectKey{Namespace: v.app.Namespace, Name: render.ReleaseName(v.app.Name, v.app.Status.Release)}
	if err := c.client.Get(ctx, key, release); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil
		}
		return fmt.Errorf("reading the release that serves: %w", err)
	}
	for name, addon := range release.Spec.Content.Addons {
		if _, there := v.wanted[name]; there {
			continue
		}
		if v.wanted == nil {
			v.wanted = map[string]v1alpha1.Addon{}
		}
		v.wanted[name] = addon
	}
	return nil
}

// problem is what keeps an addon from being made. It is said in the status, and no error of ours.
type problem string

func (p problem) Error() string { return string(p) }

// keep makes one addon what it should be and says how it is.
func (c *Controller) keep(ctx context.Context, v *view, name string) (v1alpha1.AddonStatus, error) {
	in, err := v.input(name)
	if err == nil {
		for _, obj := range in.objects() {
			if err = c.apply(ctx, v, obj); err != nil {
				break
			}
		}
	}
	status := v.status(in)
	if p, ok := err.(problem); ok { //nolint:errorlint // it is never wrapped
		status.Message = p.Error()
		return status, nil
	}
	return status, err
}

// input is what the objects of an addon follow from. A problem comes with as much as is known.
func (v *view) input(name string) (input, error) {
	in := input{app: v.app, name: name, addon: v.wanted[name], hook: v.hook, stopped: v.app.Annotations[v1alpha1.AnnotationRemoved] != ""}
	var err error
	if in.pack, err = pack.Find(in.addon.Type); err != nil {
		return in, problem(err.Error())
	}
	claim := v.claim(in.object())
	hasType, hasVersion := "", ""
	if claim != nil {
		hasType, hasVersion, _ = strings.Cut(claim.Annotations[annotationData], " ")
	}
	asked := in.addon.Version
	if asked == "" && hasType == in.addon.Type {
		in.version = hasVersion // a newer package does not change what data it has
	} else if in.version, err = in.pack.Version(asked); err != nil {
		return in, problem(err.Error())
	}
	in.image = in.pack.ImageOf(in.version, v.settings)
	switch {
	case claim == nil:
	case claim.DeletionTimestamp != nil:
		return in, problem("its volume of before is being removed")
	case hasType != "" && hasType != in.addon.Type:
		return in, problem(fmt.Sprintf("its volume holds data of %s: choose another name, or remove that data with: gantry addon rm %s --delete-data", hasType, name))
	case hasType != "" && hasVersion != in.version && in.pack.Magic != "": // its files are of one version
		return in, problem(fmt.Sprintf("its volume holds data of %s %s, which %s does not read: dump it with %s, and load it into a new addon", hasType, hasVersion, in.version, hasVersion))
	}
	in.backups = in.addon.Backup != "" || v.claim(in.backup()) != nil
	if backup := v.claim(in.backup()); backup != nil && backup.DeletionTimestamp != nil {
		return in, problem("its backups of before are being removed")
	}
	v.credentials(&in)
	return in, nil
}

// credentials keeps the password that there is, or makes one. Who once had the variable of the only addon of its type
// keeps it: the release that serves reads it.
func (v *view) credentials(in *input) {
	password, only := "", true
	for name, other := range v.wanted {
		only = only && (name == in.name || other.Type != in.addon.Type)
	}
	if secret := v.secret(in.object()); secret != nil {
		password = string(secret.Data[pack.PasswordKey(in.name)])
		_, had := secret.Data[in.pack.Variable]
		only = only || had
	}
	if password == "" {
		var random [24]byte
		_, _ = rand.Read(random[:]) // never fails; it ends the program instead
		password = hex.EncodeToString(random[:])
	}
	in.credentials = in.pack.Credentials(in.name, in.object(), password, only)
	sum := sha256.Sum256([]byte(in.object() + "\n" + password))
	in.mark = hex.EncodeToString(sum[:8])
}

// tidy removes the objects of addons that are not wanted any more, and backups' schedules. Volumes stay.
func (c *Controller) tidy(ctx context.Context, v *view) error {
	for _, key := range slices.SortedFunc(maps.Keys(v.owned), func(a, b ownedKey) int { return strings.Compare(a.kind+a.name, b.kind+b.name) }) {
		obj := v.owned[key]
		addon, wanted := v.wanted[obj.GetLabels()[v1alpha1.LabelAddon]]
		wanted = wanted && (key.kind != "CronJob" || addon.Backup != "")
		if wanted || key.kind == "PersistentVolumeClaim" || obj.GetDeletionTimestamp() != nil || !metav1.IsControlledBy(obj, v.app) {
			continue
		}
		err := c.client.Delete(ctx, obj.DeepCopyObject().(client.Object), client.PropagationPolicy(metav1.DeletePropagationBackground))
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("deleting the %s %s: %w", key.kind, key.name, err)
		}
	}
	return nil
}

// report writes the part of the application's status that is ours.
func (c *Controller) report(ctx context.Context, app *v1alpha1.App, statuses map[string]v1alpha1.AddonStatus) error {
	if len(statuses) == 0 && len(app.Status.Addons) == 0 || equality.Semantic.DeepEqual(statuses, app.Status.Addons) {
		return nil
	}
	after := app.DeepCopy()
	after.Status.Addons = statuses
	if len(statuses) == 0 {
		after.Status.Addons = nil
	}
	if err := client.IgnoreNotFound(c.client.Status().Patch(ctx, after, client.MergeFrom(app.DeepCopy()))); err != nil {
		return fmt.Errorf("writing the status of addons: %w", err)
	}
	for name, status := range statuses {
		if was := app.Status.Addons[name]; status.Ready != was.Ready {
			reason, note := "AddonReady", fmt.Sprintf("addon %s (%s) is ready", name, status.Type)
			if !status.Ready {
				reason, note = "AddonNotReady", fmt.Sprintf("addon %s (%s) is not ready: %s", name, status.Type, status.Message)
			}
			c.events.Event(app, corev1.EventTypeNormal, reason, note)
		}
	}
	return nil
}
