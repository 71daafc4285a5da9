package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/heartbeat"
)

// statusWriter writes pod statuses to the API. Only the newest of a pod is written, so a burst
// of changes costs as many writes as the API can take; while it cannot be reached they wait.
type statusWriter struct {
	agent *Agent
	queue workqueue.TypedRateLimitingInterface[types.UID]

	mu   sync.Mutex // guards the fields below
	want map[types.UID]wantedStatus
}

type wantedStatus struct {
	worker *worker
	pod    *corev1.Pod
	status corev1.PodStatus
	ended  bool
}

func newStatusWriter(a *Agent) *statusWriter {
	return &statusWriter{
		agent: a,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](200*time.Millisecond, 10*time.Second)),
		want: map[types.UID]wantedStatus{},
	}
}

// set asks for a status to be written. ended says that nothing of the pod is left, so that it
// may be deleted once the status is written.
func (s *statusWriter) set(w *worker, pod *corev1.Pod, status corev1.PodStatus, ended bool) {
	s.mu.Lock()
	before, ok := s.want[w.uid]
	same := ok && before.ended == ended && before.pod.DeletionTimestamp.Equal(pod.DeletionTimestamp) &&
		equality.Semantic.DeepEqual(before.status, status)
	s.want[w.uid] = wantedStatus{w, pod, status, ended}
	s.mu.Unlock()
	if !same {
		s.queue.Add(w.uid)
	}
}

// again has the newest status of a pod written once more: its mirror was made anew.
func (s *statusWriter) again(uid types.UID) { s.queue.Add(uid) }

func (s *statusWriter) forget(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.want, uid)
}

// run writes until ctx ends.
func (s *statusWriter) run(ctx context.Context) {
	defer context.AfterFunc(ctx, s.queue.ShutDown)()
	var wg sync.WaitGroup
	for range s.agent.opts.StatusWriters {
		wg.Go(func() {
			for {
				uid, stop := s.queue.Get()
				if stop {
					return
				}
				s.next(ctx, uid)
			}
		})
	}
	wg.Wait()
}

func (s *statusWriter) next(ctx context.Context, uid types.UID) {
	defer s.queue.Done(uid)
	s.mu.Lock()
	want, ok := s.want[uid]
	s.mu.Unlock()
	if !ok || ctx.Err() != nil {
		return
	}
	if err := s.write(ctx, want); err != nil && ctx.Err() == nil {
		s.agent.log.Debug("cannot write a pod's status yet", "namespace", want.pod.Namespace, "name", want.pod.Name, "uid", uid, "error", err)
		s.queue.AddRateLimited(uid)
		return
	}
	s.queue.Forget(uid)
}

func (s *statusWriter) write(ctx context.Context, want wantedStatus) error {
	c := s.agent.client
	static := isStatic(want.pod)
	if static && s.agent.statics.mirror(nameOf(want.pod)) == nil {
		return nil // written when its mirror is there
	}
	var current corev1.Pod
	err := c.Get(ctx, client.ObjectKeyFromObject(want.pod), &current)
	if static && (apierrors.IsNotFound(err) || err == nil && !mirrors(&current, want.pod)) {
		return nil
	}
	if apierrors.IsNotFound(err) || err == nil && current.UID != want.pod.UID && !static {
		s.forget(want.pod.UID)
		return nil
	}
	if err != nil {
		return err
	}
	status := merge(&current, want.status)
	phase := current.Status.Phase
	if !equality.Semantic.DeepEqual(current.Status, status) {
		patch, err := statusPatch(&current, status)
		if err != nil {
			return err
		}
		target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: current.Namespace, Name: current.Name}}
		err = c.Status().Patch(ctx, target, client.RawPatch(types.StrategicMergePatchType, patch))
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		phase = target.Status.Phase
		current.DeletionTimestamp = target.DeletionTimestamp
	}
	if static || current.DeletionTimestamp == nil || !want.ended || !podstatus.Terminal(phase) {
		return nil
	}
	uid, grace := current.UID, int64(0)
	err = c.Delete(ctx, &current, &client.DeleteOptions{GracePeriodSeconds: &grace, Preconditions: &metav1.Preconditions{UID: &uid}})
	if err = isGone(err); apierrors.IsConflict(err) {
		err = nil // another pod has taken the name
	}
	if err == nil {
		s.forget(want.pod.UID)
	}
	return err
}

// merge lays the agent's status over what others have written since it was made.
func merge(current *corev1.Pod, status corev1.PodStatus) corev1.PodStatus {
	// That the node ends the pod is the agent's to say; others may be about to end it too.
	ends := slices.ContainsFunc(status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Reason == corev1.PodReasonTerminationByKubelet
	})
	own := func(c corev1.PodCondition) bool {
		switch c.Type {
		case corev1.PodScheduled, corev1.PodReady, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReadyToStartContainers,
			corev1.PodResizePending, corev1.PodResizeInProgress, conditionListening, heartbeat.ConditionFenced:
			return true
		case corev1.DisruptionTarget:
			return ends
		}
		return false
	}
	var conditions []corev1.PodCondition
	for _, c := range current.Status.Conditions {
		if !own(c) {
			conditions = append(conditions, c)
		}
	}
	for _, c := range status.Conditions {
		if !own(c) {
			continue
		}
		i := slices.IndexFunc(current.Status.Conditions, func(o corev1.PodCondition) bool { return o.Type == c.Type })
		if i >= 0 && current.Status.Conditions[i].Status == c.Status && c.Type != corev1.PodResizePending && c.Type != corev1.PodResizeInProgress {
			c.LastTransitionTime = current.Status.Conditions[i].LastTransitionTime
		}
		conditions = append(conditions, c)
	}
	status.Conditions = conditions
	status.ObservedGeneration = max(status.ObservedGeneration, current.Status.ObservedGeneration)
	status.ResourceClaimStatuses = current.Status.ResourceClaimStatuses
	status.ExtendedResourceClaimStatus = current.Status.ExtendedResourceClaimStatus
	status.NodeAllocatableResourceClaimStatuses = current.Status.NodeAllocatableResourceClaimStatuses
	status.NominatedNodeName = current.Status.NominatedNodeName
	if current.Status.StartTime != nil {
		status.StartTime = current.Status.StartTime
	}
	if podstatus.Terminal(current.Status.Phase) {
		status.Phase = current.Status.Phase
	}
	return status
}

// statusPatch is the strategic merge patch from the pod's status to another. It carries the
// UID, so that it cannot hit a new pod of the same name.
func statusPatch(pod *corev1.Pod, status corev1.PodStatus) ([]byte, error) {
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return nil, fmt.Errorf("encoding the status: %w", err)
	}
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}, Status: status})
	if err != nil {
		return nil, fmt.Errorf("encoding the status: %w", err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("making the status patch: %w", err)
	}
	return patch, nil
}
