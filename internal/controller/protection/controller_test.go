package protection

import (
	"context"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func TestDeletedObjectsGoWhenNobodyUsesThem(t *testing.T) {
	gold := "gold"
	meta := func(kind Kind, name string) metav1.ObjectMeta {
		meta := metav1.ObjectMeta{Name: name, Finalizers: []string{kind.finalizer()}}
		if kind == Claims {
			meta.Namespace = "shop"
		}
		return meta
	}
	uses := func(claim, node string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.PodSpec{
			NodeName: node, Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
			}}},
		}}
	}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: meta(Claims, "data")}
	volume := &corev1.PersistentVolume{ObjectMeta: meta(Volumes, "disk")}
	bound := volume.DeepCopy()
	bound.Status.Phase = corev1.VolumeBound
	class := &storagev1.VolumeAttributesClass{ObjectMeta: meta(Classes, gold)}
	for name, tc := range map[string]struct {
		kind Kind
		obj  client.Object
		user client.Object
		held bool
	}{
		"a claim alone":                      {Claims, claim, nil, false},
		"a claim of a pod on a node":         {Claims, claim, uses("data", "n1"), true},
		"a claim of a pod without a node":    {Claims, claim, uses("data", ""), false},
		"a claim beside a pod":               {Claims, claim, uses("other", "n1"), false},
		"a claim of an ephemeral volume":     {Claims, &corev1.PersistentVolumeClaim{ObjectMeta: meta(Claims, "web-data")}, ephemeral(), true},
		"a volume alone":                     {Volumes, volume, nil, false},
		"a volume that a claim has":          {Volumes, bound, nil, true},
		"a class alone":                      {Classes, class, nil, false},
		"a class of a claim":                 {Classes, class, &corev1.PersistentVolumeClaim{ObjectMeta: meta(Claims, "data"), Spec: corev1.PersistentVolumeClaimSpec{VolumeAttributesClassName: &gold}}, true},
		"a class of a volume":                {Classes, class, &corev1.PersistentVolume{ObjectMeta: meta(Volumes, "disk"), Spec: corev1.PersistentVolumeSpec{VolumeAttributesClassName: &gold}}, true},
		"a class that a claim no longer has": {Classes, class, &corev1.PersistentVolumeClaim{ObjectMeta: meta(Claims, "data")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				objects := []client.Object{tc.obj.DeepCopyObject().(client.Object)}
				if tc.user != nil {
					objects = append(objects, tc.user.DeepCopyObject().(client.Object))
				}
				c := controllertest.New(t, objects...)
				ctx, cancel := context.WithCancel(t.Context())
				pc, err := New(c, c, Options{Kind: tc.kind})
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- pc.Run(ctx) }()
				synctest.Wait()
				exists := func(want bool, when string) {
					t.Helper()
					synctest.Wait()
					err := c.Get(ctx, client.ObjectKeyFromObject(tc.obj), tc.obj.DeepCopyObject().(client.Object))
					if got := err == nil; got != want || err != nil && !apierrors.IsNotFound(err) {
						t.Errorf("%s: is there: %v (%v), want %v", when, got, err, want)
					}
				}
				exists(true, "before it is deleted")
				if err := c.Delete(ctx, tc.obj.DeepCopyObject().(client.Object)); err != nil {
					t.Fatal(err)
				}
				exists(tc.held, "deleted")
				if tc.held && tc.user != nil {
					user := tc.user.DeepCopyObject().(client.Object)
					if len(user.GetFinalizers()) > 0 { // it goes when it has none
						if err := c.Get(ctx, client.ObjectKeyFromObject(user), user); err != nil {
							t.Fatal(err)
						}
						user = user.DeepCopyObject().(client.Object)
						user.SetFinalizers(nil)
						if err := c.Update(ctx, user); err != nil {
							t.Fatal(err)
						}
					}
					if err := c.Delete(ctx, user, client.GracePeriodSeconds(0)); err != nil {
						t.Fatal(err)
					}
					exists(false, "its user is gone")
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func ephemeral() *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.PodSpec{
		NodeName: "n1", Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}},
	}}
}

func TestNewChecksTheKind(t *testing.T) {
	c := controllertest.New(t)
	if _, err := New(c, c, Options{}); err == nil {
		t.Error("no kind is accepted")
	}
}
