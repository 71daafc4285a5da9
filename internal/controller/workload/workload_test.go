package workload

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

// notes records events as "type reason note".
type notes struct {
	mu   sync.Mutex
	seen []string
}

func (n *notes) Event(_ runtime.Object, kind, reason, note string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, fmt.Sprintf("%s %s %s", kind, reason, note))
}

func (n *notes) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.seen...)
}

func template(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: image}}},
	}
}

func selector() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
}

func newRS(name string, replicas int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       appsv1.ReplicaSetSpec{Replicas: &replicas, Selector: selector(), Template: template("nginx:1")},
	}
}

func newDeployment(replicas int32, change ...func(*appsv1.Deployment)) *appsv1.Deployment {
	surge, unavailable := intstr.FromInt32(1), intstr.FromInt32(1)
	deadline, history := int32(600), int32(10)
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Annotations: map[string]string{"team": "shop"}},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: selector(), Template: template("nginx:1"),
			ProgressDeadlineSeconds: &deadline, RevisionHistoryLimit: &history,
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable},
			},
		},
	}
	for _, f := range change {
		f(d)
	}
	return d
}

// world is a cluster with both controllers and a node that makes pods ready at once.
type world struct {
	*controllertest.Cluster
	t      *testing.T
	events *notes
	// sick keeps pods of an image from becoming ready.
	sick func(pod *corev1.Pod) bool
}

// inWorld runs f beside the running controllers in a bubble of virtual time.
func inWorld(t *testing.T, objs []client.Object, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{Cluster: controllertest.New(t, objs...), t: t, events: &notes{}}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		w.start(ctx, &running)
		f(w)
		cancel()
		running.Wait()
	})
}

func (w *world) start(ctx context.Context, running *sync.WaitGroup) {
	w.t.Helper()
	sets, err := NewReplicaSets(w, w, w.events, Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	deployments, err := NewDeployments(w, w, w.events, Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	replication, err := NewReplicationControllers(w, w, w.events, Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	stateful, err := NewStatefulSets(w, w, w.events, Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	daemons, err := NewDaemonSets(w, w, w.events, Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, run := range []func(context.Context) error{sets.Run, deployments.Run, replication.Run, stateful.Run, daemons.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				w.t.Errorf("Run = %v", err)
			}
		})
	}
}

// pods lists the pods of the namespace.
func (w *world) pods() []corev1.Pod {
	w.t.Helper()
	var list corev1.PodList
	if err := w.List(context.Background(), &list, client.InNamespace("default")); err != nil {
		w.t.Fatal(err)
	}
	return list.Items
}

func (w *world) replicaSets() []appsv1.ReplicaSet {
	w.t.Helper()
	var list appsv1.ReplicaSetList
	if err := w.List(context.Background(), &list, client.InNamespace("default")); err != nil {
		w.t.Fatal(err)
	}
	return list.Items
}

func (w *world) deployment() *appsv1.Deployment {
	w.t.Helper()
	var d appsv1.Deployment
	if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: "web"}, &d); err != nil {
		w.t.Fatal(err)
	}
	return d.DeepCopy()
}

func (w *world) change(f func(d *appsv1.Deployment)) {
	w.t.Helper()
	d := w.deployment()
	f(d)
	if err := w.Update(context.Background(), d); err != nil {
		w.t.Fatal(err)
	}
}

// play lets the scheduler and the nodes act once: pods made for a node get it, all become
// ready, terminating ones go. It says whether there was anything to do.
func (w *world) play() bool {
	w.t.Helper()
	acted := false
	for _, pod := range w.pods() {
		switch _, ready := readySince(&pod); {
		case pod.DeletionTimestamp != nil:
			none := int64(0)
			_ = w.Delete(context.Background(), &pod, &client.DeleteOptions{GracePeriodSeconds: &none})
			acted = true
		case pod.Spec.NodeName == "" && pinned(&pod) != "":
			target := &corev1.Binding{Target: corev1.ObjectReference{Name: pinned(&pod)}}
			_ = w.SubResource("binding").Create(context.Background(), &pod, target)
			acted = true
		case !ready && !finished(&pod) && (w.sick == nil || !w.sick(&pod)):
			next := pod.DeepCopy()
			next.Status.Phase = corev1.PodRunning
			next.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
			_ = w.Status().Update(context.Background(), next)
			acted = true
		}
	}
	return acted
}

// pinned is the node that a DaemonSet's pod was made for.
func pinned(pod *corev1.Pod) string {
	node, _ := targetNode(pod)
	return node
}

// settle alternates between controllers and node until neither has anything to do.
func (w *world) settle() {
	w.t.Helper()
	for range 1000 {
		time.Sleep(time.Second)
		synctest.Wait()
		if !w.play() {
			return
		}
	}
	w.t.Fatal("the cluster does not settle")
}
