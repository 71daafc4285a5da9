//go:build linux

package clients

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"gantry.dev/gantry/test/conformance/cluster"
)

// counter counts the requests that make a server send whole collections.
type counter struct {
	next           http.RoundTripper
	lists, watches atomic.Int64
}

// copies is how many informers there are of each kind, as many clients have them.
const copies = 20

// RoundTrip implements http.RoundTripper.
func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	switch query := r.URL.Query(); {
	case r.Method != http.MethodGet:
	case query.Get("watch") == "" || query.Get("sendInitialEvents") == "true":
		c.lists.Add(1)
	default:
		c.watches.Add(1)
	}
	return c.next.RoundTrip(r)
}

// A server that is started again finds its informers going on where they were: it refills
// the history of its watches from etcd, so that nobody lists again.
func TestInformersGoOnAfterARestart(t *testing.T) {
	needCluster(t)
	ctx := t.Context()
	c, err := cluster.Start(ctx, cluster.Options{Bin: os.Getenv(binEnv)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Remove(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	config, err := c.Rest()
	if err != nil {
		t.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(config)
	for i := range 50 {
		create(t, client, fmt.Sprintf("before-%d", i))
	}

	requests := &counter{}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		requests.next = next
		return requests
	})
	seen := &events{}
	listers := startInformers(t, kubernetes.NewForConfigOrDie(config), seen)
	lists := requests.lists.Load()
	if lists < copies*5 {
		t.Fatalf("%d lists at the start, want one an informer at least: the count is wrong", lists)
	}

	for _, end := range []struct {
		name   string
		signal syscall.Signal
	}{{"stopped", syscall.SIGTERM}, {"killed", syscall.SIGKILL}} {
		name := end.name
		t.Run(name, func(t *testing.T) {
			// A watch that ends within a second and without an event makes client-go list again, whoever
			// ended it; so every watch has an event first.
			before := seen.added.Load()
			one(t, client, name+"-event")
			eventually(t, "every informer has an event", 30*time.Second, func() error {
				if got := seen.added.Load() - before; got < copies*5 {
					return fmt.Errorf("%d of %d have", got, copies*5)
				}
				return nil
			})

			// What is written last before the end is not lost, and what changed is not told twice.
			create(t, client, name+"-last-words")
			if err := c.Kill(ctx, end.signal); err != nil {
				t.Fatal(err)
			}
			if err := c.Up(ctx); err != nil {
				t.Fatal(err)
			}
			create(t, client, name+"-after")
			if err := client.CoreV1().ConfigMaps(metav1.NamespaceDefault).Delete(ctx, name+"-event", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "all informers know what happened", time.Minute, func() error {
				for i, has := range listers {
					if !has(name+"-last-words") || !has(name+"-after") || has(name+"-event") {
						return fmt.Errorf("informer %d is behind", i)
					}
				}
				return nil
			})
			if got := requests.lists.Load() - lists; got != 0 {
				t.Errorf("%d lists because of the restart, want none", got)
			}
			if got := seen.same.Load(); got != 0 {
				t.Errorf("%d objects were told to have changed and had not", got)
			}
		})
	}
}

// startInformers runs informers until the test ends, and waits until they know what there is. It
// returns for each copy whether it knows a config map.
func startInformers(t *testing.T, client kubernetes.Interface, seen *events) []func(name string) bool {
	t.Helper()
	group, stopAll := &sync.WaitGroup{}, make(chan struct{})
	t.Cleanup(func() {
		close(stopAll)
		group.Wait()
	})
	var listers []func(string) bool
	for range copies {
		factory := informers.NewSharedInformerFactory(client, 0)
		maps := factory.Core().V1().ConfigMaps()
		for _, informer := range []cache.SharedIndexInformer{
			maps.Informer(), factory.Core().V1().Secrets().Informer(), factory.Core().V1().Services().Informer(),
			factory.Apps().V1().Deployments().Informer(), factory.Rbac().V1().ClusterRoles().Informer(),
		} {
			if _, err := informer.AddEventHandler(seen); err != nil {
				t.Fatal(err)
			}
			group.Go(func() { informer.Run(stopAll) })
			if !cache.WaitForCacheSync(t.Context().Done(), informer.HasSynced) {
				t.Fatal("an informer does not sync")
			}
		}
		listers = append(listers, func(name string) bool {
			_, err := maps.Lister().ConfigMaps(metav1.NamespaceDefault).Get(name)
			return err == nil
		})
	}
	return listers
}

func create(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	_, err := client.CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// one makes an object of each kind that is watched.
func one(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	create(t, client, name)
	meta, pod := metav1.ObjectMeta{Name: name}, map[string]string{"app": "event"}
	_, secret := client.CoreV1().Secrets(metav1.NamespaceDefault).Create(t.Context(), &corev1.Secret{ObjectMeta: meta}, metav1.CreateOptions{})
	_, service := client.CoreV1().Services(metav1.NamespaceDefault).Create(t.Context(), &corev1.Service{
		ObjectMeta: meta, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	_, role := client.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta}, metav1.CreateOptions{})
	none := int32(0)
	_, deployment := client.AppsV1().Deployments(metav1.NamespaceDefault).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
			Replicas: &none, Selector: &metav1.LabelSelector{MatchLabels: pod},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none"}}}},
		},
	}, metav1.CreateOptions{})
	if err := errors.Join(secret, service, role, deployment); err != nil {
		t.Fatal(err)
	}
}

// events counts what informers tell.
type events struct{ added, same atomic.Int64 }

// OnAdd implements cache.ResourceEventHandler.
func (e *events) OnAdd(any, bool) { e.added.Add(1) }

// OnUpdate implements cache.ResourceEventHandler.
func (e *events) OnUpdate(before, after any) {
	was, isObject := before.(metav1.Object)
	is, isToo := after.(metav1.Object)
	if isObject && isToo && was.GetResourceVersion() == is.GetResourceVersion() {
		e.same.Add(1)
	}
}

// OnDelete implements cache.ResourceEventHandler.
func (e *events) OnDelete(any) {}
