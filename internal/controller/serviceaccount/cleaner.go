package serviceaccount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/lifecycle"
)

// What says how long tokens in Secrets have been watched, and what is known of one.
const (
	TrackingConfigMap = "kube-apiserver-legacy-service-account-token-tracking"
	TrackingSince     = "since"
	DateFormat        = "2006-01-02"
	lastUsedLabel     = "kubernetes.io/legacy-token-last-used"
	invalidSinceLabel = "kubernetes.io/legacy-token-invalid-since"
)

// CleanerOptions tunes a Cleaner. A zero field has kube-controller-manager's default.
type CleanerOptions struct {
	Unused time.Duration // for how long a token is not used before it goes; default a year
	Every  time.Duration // how often it looks; default a day
	Log    *slog.Logger  // default: discard
}

// Cleaner removes tokens in Secrets that were made for accounts in old times and that nobody uses:
// first it marks one as invalid, and when that is long past too it removes it.
type Cleaner struct {
	client client.Client
	opts   CleanerOptions
}

// NewCleaner checks opts and returns a Cleaner that has started nothing; call Run.
func NewCleaner(c client.Client, opts CleanerOptions) (*Cleaner, error) {
	opts.Unused = cmp.Or(opts.Unused, 365*24*time.Hour)
	opts.Every = cmp.Or(opts.Every, 24*time.Hour)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if c == nil || opts.Unused < 0 || opts.Every < 0 {
		return nil, errors.New("serviceaccount: a Cleaner needs a client, and times that are not negative")
	}
	return &Cleaner{client: c, opts: opts}, nil
}

// Run looks at all tokens now and then, until ctx ends.
func (tc *Cleaner) Run(ctx context.Context) error {
	for {
		if err := tc.clean(ctx, time.Now().UTC()); err != nil && ctx.Err() == nil {
			tc.opts.Log.Warn("cannot look for unused tokens", "error", err)
		}
		if !lifecycle.Pause(ctx, tc.opts.Every) {
			return nil
		}
	}
}

// clean looks at all tokens once.
func (tc *Cleaner) clean(ctx context.Context, now time.Time) error {
	var tracking corev1.ConfigMap
	err := tc.client.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: TrackingConfigMap}, &tracking)
	if err != nil {
		return fmt.Errorf("reading since when tokens are watched: %w", err)
	}
	since, err := time.Parse(DateFormat, tracking.Data[TrackingSince])
	if err != nil {
		return fmt.Errorf("reading since when tokens are watched: %w", err)
	}
	keepFrom := now.Add(-tc.opts.Unused)
	if keepFrom.Before(since.AddDate(0, 0, 1)) {
		return nil // not for long enough
	}
	var secrets corev1.SecretList
	if err := tc.client.List(ctx, &secrets); err != nil {
		return fmt.Errorf("listing secrets: %w", err)
	}
	used := map[string]map[string]bool{}
	var errs []error
	for i := range secrets.Items {
		secret := &secrets.Items[i]
		if !unused(secret, keepFrom) {
			continue
		}
		old, err := tc.oldFashioned(ctx, secret)
		if err == nil && used[secret.Namespace] == nil {
			used[secret.Namespace], err = tc.usedByPods(ctx, secret.Namespace)
		}
		if err == nil && old && !used[secret.Namespace][secret.Name] {
			err = tc.retire(ctx, secret, keepFrom, now)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// unused reports whether a Secret holds a token that nobody has used for long.
func unused(secret *corev1.Secret, keepFrom time.Time) bool {
	if secret.Type != corev1.SecretTypeServiceAccountToken || secret.DeletionTimestamp != nil || !secret.CreationTimestamp.Time.Before(keepFrom) {
		return false
	}
	last, ok := secret.Labels[lastUsedLabel]
	if !ok {
		return true
	}
	_, err := time.Parse(DateFormat, last)
	return err == nil && last < keepFrom.Format(DateFormat)
}

// oldFashioned reports whether a token was made by itself: its account names it. Others were asked for.
func (tc *Cleaner) oldFashioned(ctx context.Context, secret *corev1.Secret) (bool, error) {
	name, uid := secret.Annotations[corev1.ServiceAccountNameKey], secret.Annotations[corev1.ServiceAccountUIDKey]
	if name == "" {
		return false, nil
	}
	var account corev1.ServiceAccount
	if err := tc.client.Get(ctx, client.ObjectKey{Namespace: secret.Namespace, Name: name}, &account); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	named := slices.ContainsFunc(account.Secrets, func(ref corev1.ObjectReference) bool { return ref.Name == secret.Name })
	return named && (uid == "" || uid == string(account.UID)), nil
}

// retire marks a token as invalid, or removes one that has been for long.
func (tc *Cleaner) retire(ctx context.Context, secret *corev1.Secret, keepFrom, now time.Time) error {
	since := secret.Labels[invalidSinceLabel]
	if _, err := time.Parse(DateFormat, since); err != nil {
		next := secret.DeepCopy()
		if next.Labels == nil {
			next.Labels = map[string]string{}
		}
		next.Labels[invalidSinceLabel] = now.Format(DateFormat)
		tc.opts.Log.Info("a token that nobody uses is invalid from now on", "namespace", secret.Namespace, "name", secret.Name)
		return client.IgnoreNotFound(tc.client.Patch(ctx, next, client.MergeFrom(secret.DeepCopy())))
	}
	if since >= keepFrom.Format(DateFormat) {
		return nil
	}
	tc.opts.Log.Info("removing a token that nobody uses", "namespace", secret.Namespace, "name", secret.Name)
	err := tc.client.Delete(ctx, secret, client.Preconditions{ResourceVersion: &secret.ResourceVersion})
	if apierrors.IsConflict(err) {
		return nil // used meanwhile: looked at tomorrow
	}
	return client.IgnoreNotFound(err)
}

// usedByPods names the Secrets that pods of a namespace refer to.
func (tc *Cleaner) usedByPods(ctx context.Context, namespace string) (map[string]bool, error) {
	var pods corev1.PodList
	if err := tc.client.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	names := map[string]bool{}
	for i := range pods.Items {
		secretsOf(&pods.Items[i].Spec, names)
	}
	return names, nil
}

// secretsOf adds the Secrets that a pod refers to.
func secretsOf(spec *corev1.PodSpec, names map[string]bool) {
	for _, ref := range spec.ImagePullSecrets {
		names[ref.Name] = true
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			environmentSecrets(list[i].Env, list[i].EnvFrom, names)
		}
	}
	for i := range spec.EphemeralContainers {
		environmentSecrets(spec.EphemeralContainers[i].Env, spec.EphemeralContainers[i].EnvFrom, names)
	}
	for i := range spec.Volumes {
		volumeSecrets(&spec.Volumes[i].VolumeSource, names)
	}
}

func environmentSecrets(env []corev1.EnvVar, from []corev1.EnvFromSource, names map[string]bool) {
	for _, e := range env {
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
			names[e.ValueFrom.SecretKeyRef.Name] = true
		}
	}
	for _, f := range from {
		if f.SecretRef != nil {
			names[f.SecretRef.Name] = true
		}
	}
}

func volumeSecrets(v *corev1.VolumeSource, names map[string]bool) {
	add := func(ref *corev1.LocalObjectReference) {
		if ref != nil {
			names[ref.Name] = true
		}
	}
	switch {
	case v.Secret != nil:
		names[v.Secret.SecretName] = true
	case v.Projected != nil:
		for _, source := range v.Projected.Sources {
			if source.Secret != nil {
				names[source.Secret.Name] = true
			}
		}
	case v.AzureFile != nil:
		names[v.AzureFile.SecretName] = true
	case v.CephFS != nil:
		add(v.CephFS.SecretRef)
	case v.Cinder != nil:
		add(v.Cinder.SecretRef)
	case v.FlexVolume != nil:
		add(v.FlexVolume.SecretRef)
	case v.RBD != nil:
		add(v.RBD.SecretRef)
	case v.ScaleIO != nil:
		add(v.ScaleIO.SecretRef)
	case v.ISCSI != nil:
		add(v.ISCSI.SecretRef)
	case v.StorageOS != nil:
		add(v.StorageOS.SecretRef)
	case v.CSI != nil:
		add(v.CSI.NodePublishSecretRef)
	}
}
