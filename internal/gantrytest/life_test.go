package gantrytest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	toolscache "k8s.io/client-go/tools/cache"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

func mustCreate(t *testing.T, c *Cluster, objs ...ctrlclient.Object) {
	t.Helper()
	for _, obj := range objs {
		if err := c.Client.Create(t.Context(), obj); err != nil {
			t.Fatalf("creating %T %s: %v", obj, obj.GetName(), err)
		}
	}
}

// count lists objects of a namespace.
func count(t *testing.T, c *Cluster, list ctrlclient.ObjectList, namespace string, length func() int) error {
	t.Helper()
	if err := c.Client.List(t.Context(), list, ctrlclient.InNamespace(namespace)); err != nil {
		return err
	}
	if n := length(); n != 0 {
		return fmt.Errorf("%d objects of %T are left", n, list)
	}
	return nil
}

func TestANamespaceGoesWithItsContent(t *testing.T) {
	c := Start(t, Options{}) // no nodes: pods without one need no agent's consent to go
	mustCreate(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	web := deployment("web", 2)
	web.Namespace = "n"
	mustCreate(t, c, web, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "a"}})
	c.Eventually("pods of the deployment", func() error {
		var pods corev1.PodList
		if err := c.Client.List(t.Context(), &pods, ctrlclient.InNamespace("n")); err != nil || len(pods.Items) == 2 {
			return err
		}
		return fmt.Errorf("%d pods, want 2", len(pods.Items))
	})
	if err := c.Client.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}}); err != nil {
		t.Fatal(err)
	}
	c.Eventually("the namespace goes", func() error {
		var ns corev1.Namespace
		err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: "n"}, &ns)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there with %v, %w", ns.Status.Conditions, errors.Join(err))
	})
	var pods corev1.PodList
	if err := count(t, c, &pods, "n", func() int { return len(pods.Items) }); err != nil {
		t.Error(err)
	}
}

func TestWhatADeploymentOwnsGoesWithIt(t *testing.T) {
	c := Start(t, Options{})
	web := deployment("web", 3)
	mustCreate(t, c, web)
	var sets appsv1.ReplicaSetList
	c.Eventually("a replica set", func() error {
		if err := c.Client.List(t.Context(), &sets); err != nil || len(sets.Items) == 1 {
			return err
		}
		return fmt.Errorf("%d replica sets, want 1", len(sets.Items))
	})
	if err := c.Client.Delete(t.Context(), web, ctrlclient.PropagationPolicy(metav1.DeletePropagationForeground)); err != nil {
		t.Fatal(err)
	}
	c.Eventually("everything goes", func() error {
		var pods corev1.PodList
		err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(web), &appsv1.Deployment{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("the deployment is there: %w", errors.Join(err))
		}
		return errors.Join(
			count(t, c, &sets, "default", func() int { return len(sets.Items) }),
			count(t, c, &pods, "default", func() int { return len(pods.Items) }))
	})
}

func TestAServiceFindsItsPods(t *testing.T) {
	c := Start(t, Options{Nodes: 1})
	mustCreate(t, c, deployment("web", 1), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}},
	})
	wantBound(t, c, 1)
	var pods corev1.PodList
	if err := c.Client.List(t.Context(), &pods); err != nil {
		t.Fatal(err)
	}
	pod := pods.Items[0].DeepCopy()
	pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, "10.244.0.9", []corev1.PodIP{{IP: "10.244.0.9"}}
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue})
	if err := c.Client.Status().Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	c.Eventually("the endpoint slice", func() error {
		var slices discoveryv1.EndpointSliceList
		err := c.Client.List(t.Context(), &slices, ctrlclient.MatchingLabels{discoveryv1.LabelServiceName: "web"})
		if err != nil {
			return err
		}
		if len(slices.Items) == 1 && len(slices.Items[0].Endpoints) == 1 && slices.Items[0].Endpoints[0].Addresses[0] == "10.244.0.9" {
			return nil
		}
		return fmt.Errorf("slices are %v", slices.Items)
	})
}

func TestARestartKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	c := Start(t, Options{Dir: dir, Nodes: 2})
	mustCreate(t, c, deployment("web", 4), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}, Data: map[string][]byte{"k": []byte("v")},
	})
	wantBound(t, c, 4)
	var before corev1.PodList
	if err := c.Client.List(t.Context(), &before); err != nil {
		t.Fatal(err)
	}
	c.Stop()

	c = Start(t, Options{Dir: dir})
	wantBound(t, c, 4)
	for _, pod := range before.Items {
		var now corev1.Pod
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(&pod), &now); err != nil || now.UID != pod.UID {
			t.Errorf("pod %s after the restart: %v, UID %s; want %s", pod.Name, err, now.UID, pod.UID)
		}
	}
	var secret corev1.Secret
	if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Namespace: "default", Name: "s"}, &secret); err != nil || string(secret.Data["k"]) != "v" {
		t.Errorf("the secret after the restart: %q, %v", secret.Data["k"], err)
	}
}

func TestComponentsHaveTheirRightsOnly(t *testing.T) {
	c := Start(t, Options{})
	nobody, informers, err := c.ControlPlane.As(&user.DefaultInfo{Name: "nobody", Groups: []string{user.AllAuthenticated}}, "test")
	if err != nil {
		t.Fatal(err)
	}
	var pods corev1.PodList
	if err := nobody.List(t.Context(), &pods); !apierrors.IsForbidden(err) {
		t.Errorf("listing pods as nobody = %v, want forbidden", err)
	}
	if err := nobody.Create(t.Context(), deployment("web", 1)); !apierrors.IsForbidden(err) {
		t.Errorf("creating a deployment as nobody = %v, want forbidden", err)
	}
	if _, err := informers.GetInformer(t.Context(), &corev1.Secret{}); !apierrors.IsForbidden(err) {
		t.Errorf("watching secrets as nobody = %v, want forbidden", err)
	}
	scheduler, _, err := c.ControlPlane.As(&user.DefaultInfo{Name: user.KubeScheduler, Groups: []string{user.AllAuthenticated}}, "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := scheduler.List(t.Context(), &pods); err != nil {
		t.Errorf("listing pods as the scheduler = %v", err)
	}
}

// seen records what an informer tells.
type seen struct {
	mu   sync.Mutex
	said []string
}

func (s *seen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

func (s *seen) is(want ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fmt.Sprint(s.said) != fmt.Sprint(want) {
		return fmt.Errorf("told %q, want %q", s.said, want)
	}
	return nil
}

func TestInformersTellOfEveryChangeInOrder(t *testing.T) {
	c := Start(t, Options{})
	_, informers, err := c.ControlPlane.As(&user.DefaultInfo{Name: "root", Groups: []string{user.SystemPrivilegedGroup}}, "test")
	if err != nil {
		t.Fatal(err)
	}
	configMap := func(value string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}, Data: map[string]string{"k": value}}
	}
	mustCreate(t, c, configMap("1"))
	informer, err := informers.GetInformer(t.Context(), &corev1.ConfigMap{})
	if err != nil {
		t.Fatal(err)
	}
	var told seen
	value := func(obj any) string {
		cm, ok := obj.(*corev1.ConfigMap)
		if !ok || cm.Name != "a" {
			return ""
		}
		return cm.Data["k"]
	}
	handle, err := informer.AddEventHandler(toolscache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(obj any, initial bool) {
			if v := value(obj); v != "" {
				told.say("add %s %v", v, initial)
			}
		},
		UpdateFunc: func(old, obj any) {
			if v := value(obj); v != "" {
				told.say("update %s to %s", value(old), v)
			}
		},
		DeleteFunc: func(obj any) {
			if v := value(obj); v != "" {
				told.say("delete %s", v)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-handle.HasSyncedChecker().Done():
	case <-time.After(time.Minute):
		t.Fatal("the handler was not told of what is there")
	}
	if err := c.Client.Update(t.Context(), configMap("2")); err != nil {
		t.Fatal(err)
	}
	if err := c.Client.Delete(t.Context(), configMap("")); err != nil {
		t.Fatal(err)
	}
	c.Eventually("the events", func() error { return told.is("add 1 true", "update 1 to 2", "delete 2") })
	if err := informer.RemoveEventHandler(handle); err != nil {
		t.Fatal(err)
	}
}

func TestPatchesInProcess(t *testing.T) {
	c := Start(t, Options{})
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}}
	mustCreate(t, c, cm)
	next := cm.DeepCopy()
	next.Data = map[string]string{"k": "v"}
	if err := c.Client.Patch(t.Context(), next, ctrlclient.MergeFrom(cm)); err != nil || next.Data["k"] != "v" || next.ResourceVersion == cm.ResourceVersion {
		t.Errorf("patch = %v, object %v", err, next)
	}
	stale := cm.DeepCopy()
	stale.Data = map[string]string{"k": "w"}
	err := c.Client.Patch(t.Context(), stale, ctrlclient.MergeFromWithOptions(cm, ctrlclient.MergeFromWithOptimisticLock{}))
	if !apierrors.IsConflict(err) {
		t.Errorf("patch of a stale object = %v, want a conflict", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Client.Update(ctx, next.DeepCopy()); err == nil {
		t.Error("update with an ended context worked")
	}
}
