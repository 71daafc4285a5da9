package eject

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
)

func TestRender(t *testing.T) {
	content := v1alpha1.AppSpec{
		Image: "registry.gantry.internal/default/shop@sha256:1", Secrets: []string{"STRIPE_KEY"}, Release: &v1alpha1.ReleaseCommand{Command: "./shop migrate"},
		Addons:    map[string]v1alpha1.Addon{"db": {Type: "postgres"}},
		Processes: map[string]v1alpha1.Process{"web": {Command: "./shop serve", Scale: &v1alpha1.Scale{Min: new(int32(0)), Max: new(int32(3))}}},
	}
	one := &v1alpha1.App{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop", UID: "1b4d"},
		Spec:       *content.DeepCopy(),
		Status:     v1alpha1.AppStatus{Release: 3, Latest: 4, URLs: []string{"https://shop.example.com", "https://203.0.113.7:8443"}},
	}
	one.Spec.Image = "never:live"
	one.Spec.Addons = map[string]v1alpha1.Addon{"db": {Type: "postgres", Backup: "daily"}}
	release := &v1alpha1.Release{Spec: v1alpha1.ReleaseSpec{App: "shop", Number: 3, Content: content}}
	claim := corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "shop-db", Annotations: map[string]string{"gantry.dev/addon-data": "postgres 15"}}}
	out, err := Render(Input{App: one, Release: release, Claims: []corev1.PersistentVolumeClaim{claim}})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	text := ""
	for _, object := range out.Objects {
		names = append(names, object.GetKind()+" "+object.GetName())
		if object.GetOwnerReferences() != nil {
			t.Errorf("%s belongs to somebody", names[len(names)-1])
		}
		encoded, err := object.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		text += string(encoded) + "\n"
	}
	for _, want := range []string{
		"PersistentVolumeClaim shop-db", "StatefulSet shop-db", "CronJob shop-db-backup", "Service shop-db", "Deployment shop-web", "Service shop-web", "Ingress shop-web",
		"Job shop-v3-release", "ServiceAccount shop",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("there is no %s among %q", want, names)
		}
	}
	if slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, "Secret ") }) {
		t.Error("a Secret is written")
	}
	for want, times := range map[string]int{"never:live": 0, "postgres:15": 2, "203.0.113.7": 0, "gantry.dev/addon-password": 0} {
		if got := strings.Count(text, want); got != times {
			t.Errorf("%q is there %d times, want %d", want, got, times)
		}
	}
	if got := out.Secrets["shop-secrets"]; !slices.Equal(got, []string{"STRIPE_KEY"}) {
		t.Errorf("the secrets are %v", out.Secrets)
	}
	if got := out.Secrets["shop-db"]; !slices.Contains(got, "DATABASE_URL") {
		t.Errorf("the secrets are %v", out.Secrets)
	}
	notes := strings.Join(out.Notes, "\n")
	for _, want := range []string{"Secret shop-db", "STRIPE_KEY", "in the registry of the cluster", "shop-v3-release", "does not sleep", "gantry addon dump db"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no note says %q: %s", want, notes)
		}
	}
	other, err := Render(Input{App: one, Release: release, Image: "ghcr.io/acme/shop:3"})
	if err != nil || strings.Contains(strings.Join(other.Notes, "\n"), "in the registry of the cluster") {
		t.Errorf("with another image: %q, %v", other.Notes, err)
	}
}
