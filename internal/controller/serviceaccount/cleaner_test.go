package serviceaccount

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func TestCleaner(t *testing.T) {
	now := time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)
	token := func(name string, age time.Duration, labels map[string]string) *corev1.Secret {
		return &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "default", Name: name, Labels: labels, CreationTimestamp: metav1.NewTime(now.Add(-age)),
				Annotations: map[string]string{corev1.ServiceAccountNameKey: "app"},
			},
			Type: corev1.SecretTypeServiceAccountToken,
		}
	}
	const year = 365 * 24 * time.Hour
	objects := []client.Object{
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: TrackingConfigMap}, Data: map[string]string{TrackingSince: "2028-01-01"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "app"}, Secrets: []corev1.ObjectReference{
			{Name: "never-used"}, {Name: "used"}, {Name: "young"}, {Name: "mounted"}, {Name: "invalid-long"}, {Name: "invalid-now"},
		}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}, Spec: corev1.PodSpec{
			Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "mounted"}}}},
		}},
		token("never-used", 2*year, nil), token("used", 2*year, map[string]string{lastUsedLabel: "2030-05-30"}), token("young", year/2, nil),
		token("mounted", 2*year, nil), token("asked-for", 2*year, nil),
		token("invalid-long", 3*year, map[string]string{lastUsedLabel: "2028-01-01", invalidSinceLabel: "2029-05-01"}),
		token("invalid-now", 3*year, map[string]string{invalidSinceLabel: "2030-05-01"}),
	}
	c := controllertest.New(t, objects...)
	tc, err := NewCleaner(c, CleanerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tc.clean(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	var list corev1.SecretList
	if err := c.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for i := range list.Items {
		got[list.Items[i].Name] = list.Items[i].Labels[invalidSinceLabel]
	}
	want := map[string]string{"never-used": "2030-06-01", "used": "", "young": "", "mounted": "", "asked-for": "", "invalid-now": "2030-05-01"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%v are left; since when they are invalid (-want +got):\n%s", slices.Sorted(maps.Keys(got)), diff)
	}
}
