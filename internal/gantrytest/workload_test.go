package gantrytest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// podTemplate is a template of one container whose pods are labelled app=NAME.
func podTemplate(name, image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
	}
}

func selects(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func podsIn(ctx context.Context, c *Cluster) []corev1.Pod {
	var list corev1.PodList
	if err := c.Client.List(ctx, &list, ctrlclient.InNamespace("default")); err != nil {
		return nil
	}
	return list.Items
}

// kubelets plays the agents of all nodes until the returned function is called: pods with a
// node become ready after a second, deleted ones go after another. watch sees all pods
// before each act.
func kubelets(c *Cluster, watch func([]corev1.Pod)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			pods := podsIn(ctx, c)
			watch(pods)
			for i := range pods {
				act(ctx, c, &pods[i])
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
	return func() {
		cancel()
		running.Wait()
	}
}

func act(ctx context.Context, c *Cluster, pod *corev1.Pod) {
	switch {
	case pod.DeletionTimestamp != nil:
		_ = c.Client.Delete(ctx, pod.DeepCopy(), ctrlclient.GracePeriodSeconds(0))
	case pod.Spec.NodeName != "" && pod.Status.Phase == corev1.PodPending:
		next := pod.DeepCopy()
		next.Status.Phase = corev1.PodRunning
		next.Status.Conditions = append(next.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
		_ = c.Client.Status().Update(ctx, next)
	}
}

func ready(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions, func(cond corev1.PodCondition) bool {
		return cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue
	})
}

// wantPods waits until the pods that are ready are the wanted ones, as "name image" or, for
// generated names, "node image".
func wantPods(t *testing.T, c *Cluster, want string, name func(*corev1.Pod) string) {
	t.Helper()
	c.Eventually(want, func() error {
		var got []string
		for _, pod := range podsIn(t.Context(), c) {
			if !ready(&pod) {
				return fmt.Errorf("%s is not ready", pod.Name)
			}
			got = append(got, name(&pod)+" "+pod.Spec.Containers[0].Image)
		}
		if slices.Sort(got); strings.Join(got, ", ") != want {
			return fmt.Errorf("pods %q, want %q", strings.Join(got, ", "), want)
		}
		return nil
	})
}

func podName(pod *corev1.Pod) string { return pod.Name }

func nodeName(pod *corev1.Pod) string { return pod.Spec.NodeName }

func change[T any, P object[T]](t *testing.T, c *Cluster, obj P, f func(P)) {
	t.Helper()
	stored := P(new(T))
	c.Eventually("change "+obj.GetName(), func() error {
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(obj), stored); err != nil {
			return err
		}
		next := stored.DeepCopyObject().(P)
		f(next)
		return c.Client.Update(t.Context(), next)
	})
}

// goesAway deletes an object and waits until it and all pods and revisions are gone.
func goesAway(t *testing.T, c *Cluster, obj ctrlclient.Object) {
	t.Helper()
	if err := c.Client.Delete(t.Context(), obj, ctrlclient.PropagationPolicy(metav1.DeletePropagationForeground)); err != nil {
		t.Fatal(err)
	}
	c.Eventually("everything goes", func() error {
		var pods corev1.PodList
		var revisions appsv1.ControllerRevisionList
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(obj), obj); !apierrors.IsNotFound(err) {
			return fmt.Errorf("%s is there: %w", obj.GetName(), errors.Join(err))
		}
		return errors.Join(
			count(t, c, &pods, "default", func() int { return len(pods.Items) }),
			count(t, c, &revisions, "default", func() int { return len(revisions.Items) }))
	})
}

func TestStatefulSetInAWholeControlPlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Options{Nodes: 2})
		defer c.Stop()
		defer kubelets(c, func(pods []corev1.Pod) {
			down := 0
			for _, pod := range pods {
				if !ready(&pod) {
					down++
				}
			}
			if down > 1 {
				t.Errorf("%d pods of an ordered set are down at once", down)
			}
		})()
		three := int32(3)
		set := &appsv1.StatefulSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
			Spec:       appsv1.StatefulSetSpec{Replicas: &three, Selector: selects("db"), Template: podTemplate("db", "a:1"), ServiceName: "db"},
		}
		mustCreate(t, c, set)
		wantPods(t, c, "db-0 a:1, db-1 a:1, db-2 a:1", podName)
		change(t, c, set, func(set *appsv1.StatefulSet) { set.Spec.Template.Spec.Containers[0].Image = "a:2" })
		wantPods(t, c, "db-0 a:2, db-1 a:2, db-2 a:2", podName)
		c.Eventually("status", func() error {
			if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(set), set); err != nil {
				return err
			}
			if s := set.Status; s.CurrentRevision != s.UpdateRevision || s.AvailableReplicas != 3 || s.UpdatedReplicas != 3 || s.ObservedGeneration != set.Generation {
				return fmt.Errorf("status %+v", s)
			}
			return nil
		})
		change(t, c, set, func(set *appsv1.StatefulSet) { *set.Spec.Replicas = 1 })
		wantPods(t, c, "db-0 a:2", podName)
		goesAway(t, c, set)
	})
}

func TestDaemonSetInAWholeControlPlane(t *testing.T) {
	for name, tc := range map[string]struct {
		surge, unavailable string
		down               int // nodes without a ready pod at most
	}{
		"one unavailable": {"0", "1", 1},
		"one surging":     {"1", "0", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := Start(t, Options{Nodes: 3})
				defer c.Stop()
				var mu sync.Mutex // guards rolling
				rolling := false
				defer kubelets(c, func(pods []corev1.Pod) {
					up := map[string]bool{}
					for _, pod := range pods {
						if ready(&pod) {
							up[pod.Spec.NodeName] = true
						}
					}
					mu.Lock()
					defer mu.Unlock()
					if rolling && 3-len(up) > tc.down {
						t.Errorf("%d nodes have no ready pod", 3-len(up))
					}
				})()
				surge, unavailable := intstr.Parse(tc.surge), intstr.Parse(tc.unavailable)
				ds := &appsv1.DaemonSet{
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "log"},
					Spec: appsv1.DaemonSetSpec{
						Selector: selects("log"), Template: podTemplate("log", "a:1"),
						UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
							Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: &surge, MaxUnavailable: &unavailable},
						},
					},
				}
				mustCreate(t, c, ds)
				wantPods(t, c, "node-0 a:1, node-1 a:1, node-2 a:1", nodeName)
				mu.Lock()
				rolling = true
				mu.Unlock()
				change(t, c, ds, func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = "a:2" })
				wantPods(t, c, "node-0 a:2, node-1 a:2, node-2 a:2", nodeName)
				mu.Lock()
				rolling = false
				mu.Unlock()
				c.AddNode("node-3")
				wantPods(t, c, "node-0 a:2, node-1 a:2, node-2 a:2, node-3 a:2", nodeName)
				goesAway(t, c, ds)
			})
		})
	}
}

func TestReplicationControllerInAWholeControlPlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Options{Nodes: 1})
		defer c.Stop()
		defer kubelets(c, func([]corev1.Pod) {})()
		two, pods := int32(2), podTemplate("web", "a:1")
		rc := &corev1.ReplicationController{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec:       corev1.ReplicationControllerSpec{Replicas: &two, Template: &pods},
		}
		mustCreate(t, c, rc)
		wantPods(t, c, "node-0 a:1, node-0 a:1", nodeName)
		change(t, c, rc, func(rc *corev1.ReplicationController) { *rc.Spec.Replicas = 3 })
		wantPods(t, c, "node-0 a:1, node-0 a:1, node-0 a:1", nodeName)
		c.Eventually("status", func() error {
			if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(rc), rc); err != nil {
				return err
			}
			if s := rc.Status; s.AvailableReplicas != 3 || s.FullyLabeledReplicas != 3 || s.ObservedGeneration != rc.Generation {
				return fmt.Errorf("status %+v", s)
			}
			return nil
		})
		goesAway(t, c, rc)
	})
}

func TestDeploymentInAWholeControlPlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Options{Nodes: 2})
		defer c.Stop()
		var mu sync.Mutex // guards rolling
		rolling := false
		defer kubelets(c, func(pods []corev1.Pod) {
			all, up := 0, 0
			for _, pod := range pods {
				if pod.DeletionTimestamp == nil {
					all++
				}
				if ready(&pod) {
					up++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if all > 5 || (rolling && up < 3) {
				t.Errorf("%d pods with %d ready, want at most 5 and at least 3", all, up)
			}
		})()
		web := deployment("web", 4)
		web.Spec.Template.Spec.Containers[0].Image = "a:1"
		mustCreate(t, c, web)
		four := func(image string) string { return strings.Join(slices.Repeat([]string{"web " + image}, 4), ", ") }
		app := func(pod *corev1.Pod) string { return pod.Labels["app"] }
		wantPods(t, c, four("a:1"), app)
		mu.Lock()
		rolling = true
		mu.Unlock()
		change(t, c, web, func(web *appsv1.Deployment) { web.Spec.Template.Spec.Containers[0].Image = "a:2" })
		wantPods(t, c, four("a:2"), app)
	})
}
