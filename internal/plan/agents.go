package plan

import (
	"context"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/server"
)

const (
	hands      = 8                // pods at once
	leaseEvery = 10 * time.Second // as an agent renews
)

// agents play the agents of all nodes that are Ready: what is bound runs and is ready at once, what is deleted is gone at
// once. Pods that had a node when the copy was made stay as they were. It also notes the last that was seen of each pod
// that went.
type agents struct {
	client client.Client
	queue  workqueue.TypedInterface[types.NamespacedName]
	done   sync.WaitGroup

	mu   sync.Mutex // guards the fields below
	gone map[types.UID]*corev1.Pod
	as   map[types.UID]bool // pods that are left as they are
}

// startAgents plays until ctx ends; call wait then.
func startAgents(ctx context.Context, plane *server.ControlPlane) (*agents, error) {
	c, informers, err := plane.AsAdmin("plan")
	if err != nil {
		return nil, err
	}
	a := &agents{
		client: c, queue: workqueue.NewTyped[types.NamespacedName](),
		gone: map[types.UID]*corev1.Pod{}, as: map[types.UID]bool{},
	}
	var pods corev1.PodList
	if err := c.List(ctx, &pods); err != nil {
		return nil, fmt.Errorf("list the copy's pods: %w", err)
	}
	for i := range pods.Items {
		if pods.Items[i].Spec.NodeName != "" {
			a.as[pods.Items[i].UID] = true
		}
	}
	stop, err := informer.Subscribe(ctx, informers, informer.Subscription{Object: &corev1.Pod{}, OnEvent: a.onPod})
	if err != nil {
		return nil, fmt.Errorf("follow the copy's pods: %w", err)
	}
	for range hands {
		a.done.Go(func() {
			for {
				key, end := a.queue.Get()
				if end {
					return
				}
				if err := a.play(ctx, key); err != nil && ctx.Err() == nil {
					a.queue.Add(key) // it was changed meanwhile
				}
				a.queue.Done(key)
			}
		})
	}
	a.done.Go(func() { a.beat(ctx) })
	a.done.Go(func() {
		<-ctx.Done()
		stop()
		a.queue.ShutDown()
	})
	return a, nil
}

func (a *agents) wait() { a.done.Wait() }

func (a *agents) onPod(old, current client.Object) {
	if current == nil {
		a.mu.Lock()
		a.gone[old.GetUID()] = old.(*corev1.Pod)
		a.mu.Unlock()
		return
	}
	if current.(*corev1.Pod).Spec.NodeName != "" {
		a.queue.Add(client.ObjectKeyFromObject(current))
	}
}

// play does what the agent of the pod's node would have done in the end.
func (a *agents) play(ctx context.Context, key types.NamespacedName) error {
	var pod corev1.Pod
	if err := a.client.Get(ctx, key, &pod); err != nil {
		return client.IgnoreNotFound(err)
	}
	var node corev1.Node
	err := a.client.Get(ctx, types.NamespacedName{Name: pod.Spec.NodeName}, &node)
	switch {
	case apierrors.IsNotFound(err) || err == nil && !isReady(&node):
		return nil // nobody is there to do anything
	case err != nil:
		return err
	}
	a.mu.Lock()
	as := a.as[pod.UID]
	a.mu.Unlock()
	switch {
	case pod.DeletionTimestamp != nil:
		none := int64(0)
		return client.IgnoreNotFound(a.client.Delete(ctx, &pod, &client.DeleteOptions{GracePeriodSeconds: &none, Preconditions: &metav1.Preconditions{UID: &pod.UID}}))
	case as || pod.Status.Phase != corev1.PodPending:
		return nil
	}
	running := pod.DeepCopy()
	// Long ago, so that nobody waits for minReadySeconds.
	setRunning(running, metav1.NewTime(time.Now().Add(-24*time.Hour)))
	return client.IgnoreNotFound(a.client.Status().Update(ctx, running))
}

func isReady(node *corev1.Node) bool {
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func setRunning(pod *corev1.Pod, since metav1.Time) {
	const address = "198.18.0.1" // of the range for benchmarks (RFC 2544): nobody has it
	status := &pod.Status
	status.Phase, status.StartTime = corev1.PodRunning, &since
	status.HostIP, status.HostIPs = address, []corev1.HostIP{{IP: address}}
	status.PodIP, status.PodIPs = address, []corev1.PodIP{{IP: address}}
	kept := status.Conditions[:0]
	for _, c := range status.Conditions {
		if c.Type == corev1.PodScheduled {
			kept = append(kept, c)
		}
	}
	status.Conditions = kept
	for _, kind := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: since})
	}
	status.ContainerStatuses = nil
	for i := range pod.Spec.Containers {
		c, started := &pod.Spec.Containers[i], true
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, ImageID: c.Image, ContainerID: "plan://" + string(pod.UID), Ready: true, Started: &started,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: since}},
		})
	}
}

// beat renews the leases of the Ready nodes, so that none falls silent in a long plan.
func (a *agents) beat(ctx context.Context) {
	ticker := time.NewTicker(leaseEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var nodes corev1.NodeList
		if err := a.client.List(ctx, &nodes); err != nil {
			continue
		}
		for i := range nodes.Items {
			if isReady(&nodes.Items[i]) {
				a.renew(ctx, nodes.Items[i].Name)
			}
		}
	}
}

// renew is tried again at the next beat when it fails.
func (a *agents) renew(ctx context.Context, node string) {
	now, seconds := metav1.NowMicro(), int32(40)
	spec := coordinationv1.LeaseSpec{HolderIdentity: &node, LeaseDurationSeconds: &seconds, RenewTime: &now}
	var lease coordinationv1.Lease
	err := a.client.Get(ctx, types.NamespacedName{Namespace: corev1.NamespaceNodeLease, Name: node}, &lease)
	if apierrors.IsNotFound(err) {
		_ = a.client.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: node}, Spec: spec})
		return
	}
	if err == nil {
		next := lease.DeepCopy()
		next.Spec = spec
		_ = a.client.Update(ctx, next)
	}
}
