package gantrytest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/controller/controllertest"
	"gantry.dev/gantry/internal/platform/addon"
	"gantry.dev/gantry/internal/volume/local"
)

// inAddons runs f on a control plane whose controller of addons crashes after so many writes; 0 is never.
func inAddons(t *testing.T, crashEvery int, f func(p *platformTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Options{Nodes: 1, WithoutControllers: []string{"gantry-addon", "gantry-app", "node-controller"}})
		defer c.Stop()
		c.annotate("node-0", map[string]string{local.DirAnnotation: "/data/volumes"})
		<-c.ControlPlane.Platform()
		admin := &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup}}
		apps, _, err := c.ControlPlane.AsPlatform(admin, "test")
		if err != nil {
			t.Fatal(err)
		}
		account := &user.DefaultInfo{Name: "system:serviceaccount:gantry-system:gantry-addon", Groups: []string{"system:serviceaccounts", user.AllAuthenticated}}
		as, informers, err := c.ControlPlane.AsPlatform(account, "gantry-addon")
		if err != nil {
			t.Fatal(err)
		}
		p := &platformTest{Cluster: c, t: t, apps: apps, started: map[string]int{}}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			_, err := controllertest.Live(ctx, as, informers, controllertest.Faults{CrashEvery: crashEvery},
				func(c ctrlclient.Client, i controller.Informers) (controllertest.Runner, error) {
					return addon.New(c, i, silent{}, addon.Options{})
				})
			if err != nil {
				t.Error(err)
			}
		})
		running.Go(func() { p.nodes(ctx) })
		defer running.Wait()
		defer cancel()
		f(p)
	})
}

func (p *platformTest) read(obj ctrlclient.Object, name string) error {
	return p.apps.Get(p.t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: name}, obj)
}

// addonIs waits until an addon is ready or says something.
func (p *platformTest) addonIs(name string, ready bool, message string) {
	p.t.Helper()
	p.Eventually("addon "+name, func() error {
		if s := p.app().Status.Addons[name]; s.Ready != ready || !strings.Contains(s.Message, message) {
			return fmt.Errorf("it is %+v", s)
		}
		return nil
	})
}

// gone waits until objects are not there any more.
func (p *platformTest) gone(name string, kinds ...ctrlclient.Object) {
	p.t.Helper()
	for _, obj := range kinds {
		p.Eventually(fmt.Sprintf("%T %s is gone", obj, name), func() error {
			if err := p.read(obj, name); !apierrors.IsNotFound(err) {
				return fmt.Errorf("it is there: %v", err)
			}
			return nil
		})
	}
}

// TestAddonCrashes takes addons through their life with a controller that ends at each of its writes.
func TestAddonCrashes(t *testing.T) {
	for every := range 5 {
		t.Run(fmt.Sprintf("every %d", every), func(t *testing.T) { inAddons(t, every, testAddonLife) })
	}
}

func testAddonLife(p *platformTest) {
	t := p.t
	one := shop("")
	one.Spec.Addons = map[string]v1alpha1.Addon{"db": {Type: "postgres", Backup: "daily"}, "cache": {Type: "redis"}, "odd": {Type: "postgres", Version: "9"}}
	p.create(one)
	p.addonIs("db", true, "")
	p.addonIs("cache", true, "")
	p.addonIs("odd", false, "postgres has no version 9 here; there is 17")
	secret, set, job := &corev1.Secret{}, &appsv1.StatefulSet{}, &batchv1.CronJob{}
	for obj, name := range map[ctrlclient.Object]string{secret: "shop-db", set: "shop-db", job: "shop-db-backup"} {
		if err := p.read(obj, name); err != nil {
			t.Fatal(err)
		}
	}
	password := string(secret.Data["DB_PASSWORD"])
	if _, has := secret.Data["DATABASE_URL"]; has || len(password) != 48 || !strings.Contains(string(secret.Data["DB_URL"]), password) {
		t.Errorf("the credentials of one of two are %q", secret.Data)
	}
	c := set.Spec.Template.Spec.Containers[0]
	if c.Image != "docker.io/library/postgres:17" || len(c.VolumeMounts) != 2 || !strings.HasSuffix(job.Spec.Schedule, " 3 * * *") {
		t.Errorf("the server is %+v, the schedule %q", c, job.Spec.Schedule)
	}

	p.change(func(a *v1alpha1.App) { delete(a.Spec.Addons, "odd") })
	p.Eventually("the only one of its type has the variable", func() error {
		if err := p.read(secret, "shop-db"); err != nil || len(secret.Data["DATABASE_URL"]) == 0 {
			return fmt.Errorf("%v, %v", secret.Data, err)
		}
		return nil
	})
	p.change(func(a *v1alpha1.App) { delete(a.Spec.Addons, "db") })
	p.gone("shop-db", &appsv1.StatefulSet{}, &corev1.Service{}, &corev1.Secret{})
	p.gone("shop-db-backup", &batchv1.CronJob{})
	for _, name := range []string{"shop-db", "shop-db-backup"} {
		if err := p.read(&corev1.PersistentVolumeClaim{}, name); err != nil {
			t.Errorf("the volume %s did not stay: %v", name, err)
		}
	}
	p.change(func(a *v1alpha1.App) { a.Spec.Addons["db"] = v1alpha1.Addon{Type: "redis"} })
	p.addonIs("db", false, "its volume holds data of postgres")
	p.change(func(a *v1alpha1.App) { a.Spec.Addons["db"] = v1alpha1.Addon{Type: "postgres", Version: "16"} })
	p.addonIs("db", false, "its volume holds data of postgres 17, which 16 does not read")
	p.change(func(a *v1alpha1.App) { a.Spec.Addons["db"] = v1alpha1.Addon{Type: "postgres"} })
	p.addonIs("db", true, "")
	if err := p.read(secret, "shop-db"); err != nil || string(secret.Data["DB_PASSWORD"]) == password {
		t.Errorf("the password came back with the data: %v", err)
	}
	p.change(func(a *v1alpha1.App) {
		metav1.SetMetaDataAnnotation(&a.ObjectMeta, v1alpha1.AnnotationRemoved, "2026-01-02T03:04:05Z")
	})
	p.addonIs("db", false, "its application was removed")
}

// TestAddonOfTheRelease stays while the release that serves has it.
func TestAddonOfTheRelease(t *testing.T) {
	inAddons(t, 0, func(p *platformTest) {
		t := p.t
		one := shop("shop:1")
		one.Spec.Addons = map[string]v1alpha1.Addon{"cache": {Type: "redis"}}
		p.create(one)
		p.addonIs("cache", true, "")
		release := &v1alpha1.Release{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop-v1"}, Spec: v1alpha1.ReleaseSpec{App: "shop", Number: 1, Content: one.Spec}}
		if err := p.apps.Create(t.Context(), release); err != nil {
			t.Fatal(err)
		}
		live := func(number int64) {
			p.Eventually("status", func() error {
				a := p.app().DeepCopy()
				a.Status.Release = number
				return p.apps.Status().Update(t.Context(), a)
			})
		}
		live(1)
		p.change(func(a *v1alpha1.App) { a.Spec.Addons = nil })
		synctest.Wait()
		if err := p.read(&appsv1.StatefulSet{}, "shop-cache"); err != nil {
			t.Errorf("the addon went while a release with it serves: %v", err)
		}
		live(2)
		p.gone("shop-cache", &appsv1.StatefulSet{}, &corev1.Secret{})
		p.Eventually("the status forgets it", func() error {
			if left := p.app().Status.Addons; len(left) > 0 {
				return fmt.Errorf("there is %v", left)
			}
			return nil
		})
	})
}
