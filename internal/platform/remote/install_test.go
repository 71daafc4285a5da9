package remote_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/platform/deploy/deploytest"
	"gantry.dev/gantry/internal/platform/remote"
)

// TestInstall installs, repeats it, upgrades, and uninstalls, over a real API.
func TestInstall(t *testing.T) {
	p := deploytest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	weak := rest.CopyConfig(p.Config)
	weak.BearerToken = "nobody"
	denied, ok := errors.AsType[*remote.DeniedError](remote.Install(ctx, weak, remote.InstallOptions{Image: "gantry:1", NoWait: true}))
	if !ok || !slices.Contains(denied.Missing, "patch deployments.apps in gantry-system") {
		t.Errorf("who may nothing gets %v", denied)
	}
	if err := remote.Install(ctx, p.Config, remote.InstallOptions{NoWait: true}); !errors.Is(err, remote.ErrNoImage) {
		t.Errorf("without an image: %v", err)
	}
	var steps []string
	install := func(opts remote.InstallOptions) string {
		t.Helper()
		steps = nil
		opts.NoWait, opts.Step = true, func(message string) { steps = append(steps, message) }
		if err := remote.Install(ctx, p.Config, opts); err != nil {
			t.Fatal(err)
		}
		return strings.Join(steps, "\n")
	}
	if said := install(remote.InstallOptions{Image: "gantry:1", Domain: "apps.example.com"}); !strings.Contains(said, "Deployment gantry-platform created") {
		t.Errorf("the first install said %s", said)
	}
	if said := install(remote.InstallOptions{Domain: "apps.example.com"}); !strings.Contains(said, "nothing had to be changed") {
		t.Errorf("the second install said %s", said)
	}
	if said := install(remote.InstallOptions{Image: "gantry:2", Version: "v2", Replicas: 2}); !strings.Contains(said, "Deployment gantry-platform changed") || strings.Contains(said, "ConfigMap") {
		t.Errorf("the upgrade said %s", said)
	}
	d, key := &appsv1.Deployment{}, client.ObjectKey{Namespace: "gantry-system", Name: remote.Name}
	if err := p.Cluster.Client.Get(ctx, key, d); err != nil || d.Spec.Template.Spec.Containers[0].Image != "gantry:2" || *d.Spec.Replicas != 2 {
		t.Errorf("the Deployment is %+v, %v", d.Spec, err)
	}
	settings := &corev1.ConfigMap{}
	if err := p.Cluster.Client.Get(ctx, client.ObjectKey{Namespace: "gantry-system", Name: "platform"}, settings); err != nil || settings.Data["domain"] != "apps.example.com" {
		t.Errorf("the settings are %v, %v", settings.Data, err)
	}
	if err := p.Cluster.Client.Delete(ctx, d); err != nil { // no node is there to end its pods, which Uninstall would wait for
		t.Fatal(err)
	}
	if err := remote.Uninstall(ctx, p.Config, remote.UninstallOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.Cluster.Client.Get(ctx, key, d); client.IgnoreNotFound(err) != nil || err == nil {
		t.Errorf("the Deployment after the end: %v", err)
	}
	if err := remote.Uninstall(ctx, p.Config, remote.UninstallOptions{}); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// TestOneLeads runs two copies: one works, and the other one takes over when it ends.
func TestOneLeads(t *testing.T) {
	p := deploytest.Start(t)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "gantry-system"}}
	if err := client.IgnoreAlreadyExists(p.Cluster.Client.Create(t.Context(), namespace)); err != nil {
		t.Fatal(err)
	}
	run := func(identity string) (*remote.Platform, func()) {
		platform, err := remote.New(remote.Options{Config: p.Config, Identity: identity})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- platform.Run(ctx) }()
		return platform, func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("%s ended with %v", identity, err)
			}
		}
	}
	leads := func(platform *remote.Platform) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !platform.Leading(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it does not lead")
			}
		}
	}
	one, endOne := run("one")
	leads(one)
	two, endTwo := run("two")
	if two.Leading() {
		t.Error("two lead")
	}
	endOne()
	leads(two)
	endTwo()
}
