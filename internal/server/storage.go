package server

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/controller/protection"
	"gantry.dev/gantry/internal/controller/volume"
	"gantry.dev/gantry/internal/events"
	"gantry.dev/gantry/internal/volume/local"
)

const (
	localVolumesRoleName = "gantry:local-volumes"
	localClassName       = "local"
	defaultClassMark     = "storageclass.kubernetes.io/is-default-class"
	// storageMark on the namespace kube-system says that the cluster had its chance to get a
	// default storage class: one that was deleted stays so.
	storageMark = "gantry.dev/default-storage-class"
)

// storageControllers look after claims and volumes.
func (cp *ControlPlane) storageControllers() []made {
	log := cp.opts.Logger
	protect := func(kind protection.Kind) func(*client.Client, *client.Cache, *events.Recorder) (runner, error) {
		return func(c *client.Client, i *client.Cache, _ *events.Recorder) (runner, error) {
			return protection.New(c, i, protection.Options{Kind: kind, Log: log})
		}
	}
	return []made{
		{"persistent-volume-binder", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return volume.NewBinder(c, i, r, volume.Options{Log: log})
		}},
		{"ephemeral-volume-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return volume.NewEphemeral(c, i, r, volume.Options{Log: log})
		}},
		{"expand-controller", func(c *client.Client, i *client.Cache, r *events.Recorder) (runner, error) {
			return volume.NewExpander(c, i, r, volume.Options{Log: log})
		}},
		{"pvc-protection-controller", protect(protection.Claims)},
		{"pv-protection-controller", protect(protection.Volumes)},
		{"volumeattributesclass-protection-controller", protect(protection.Classes)},
	}
}

// localVolumesRole is what the binder needs beside upstream's role for it.
func localVolumesRole() *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: localVolumesRoleName},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "patch"}}},
	}
}

// localClass is the storage class of folders on the nodes' disks.
func localClass() *storagev1.StorageClass {
	wait, reclaim, expand := storagev1.VolumeBindingWaitForFirstConsumer, corev1.PersistentVolumeReclaimDelete, true
	return &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: localClassName, Annotations: map[string]string{defaultClassMark: "true"}},
		Provisioner:       local.Provisioner,
		VolumeBindingMode: &wait, ReclaimPolicy: &reclaim, AllowVolumeExpansion: &expand,
	}
}

// ensureStorageClass makes the default storage class of a cluster that never had one.
func (cp *ControlPlane) ensureStorageClass(ctx context.Context) error {
	system := &corev1.Namespace{}
	if err := cp.admin.Get(ctx, ctrlclient.ObjectKey{Name: metav1.NamespaceSystem}, system); err != nil {
		return err
	}
	if _, done := system.Annotations[storageMark]; done {
		return nil
	}
	var classes storagev1.StorageClassList
	if err := cp.admin.List(ctx, &classes); err != nil {
		return err
	}
	hasDefault := false
	for i := range classes.Items {
		hasDefault = hasDefault || classes.Items[i].Annotations[defaultClassMark] == "true"
	}
	if !hasDefault {
		if err := cp.admin.Create(ctx, localClass()); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	patch := []byte(`{"metadata":{"annotations":{"` + storageMark + `":"made"}}}`)
	return cp.admin.Patch(ctx, system.DeepCopy(), ctrlclient.RawPatch(types.MergePatchType, patch))
}
