package workload

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func newRC(name string, replicas int32) *corev1.ReplicationController {
	pods := template("nginx:1")
	return &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.ReplicationControllerSpec{Replicas: &replicas, Selector: map[string]string{"app": "web"}, Template: &pods},
	}
}

func (w *world) rc(name string) *corev1.ReplicationController {
	w.t.Helper()
	var rc corev1.ReplicationController
	if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: name}, &rc); err != nil {
		w.t.Fatal(err)
	}
	return rc.DeepCopy()
}

func TestReplicationControllerLife(t *testing.T) {
	inWorld(t, []client.Object{newRC("web", 3)}, func(w *world) {
		w.settle()
		rc := w.rc("web")
		want := corev1.ReplicationControllerStatus{Replicas: 3, FullyLabeledReplicas: 3, ReadyReplicas: 3, AvailableReplicas: 3, ObservedGeneration: 1}
		if diff := cmp.Diff(want, rc.Status); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
		first := w.pods()[0]
		if ref := first.OwnerReferences[0]; ref.Kind != "ReplicationController" || ref.APIVersion != "v1" || ref.UID != rc.UID {
			t.Errorf("owner %+v", ref)
		}
		released := first.DeepCopy()
		released.Labels = map[string]string{"app": "other"}
		if err := w.Update(context.Background(), released); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if n := len(w.pods()); n != 4 {
			t.Errorf("%d pods, want 3 and the released one", n)
		}
		rc = w.rc("web")
		*rc.Spec.Replicas = 1
		if err := w.Update(context.Background(), rc); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if got := w.rc("web").Status; got.Replicas != 1 || got.ObservedGeneration != 2 {
			t.Errorf("status after scaling to 1: %+v", got)
		}
		if !slices.ContainsFunc(w.events.all(), func(e string) bool { return strings.HasPrefix(e, "Normal SuccessfulDelete Deleted pod: web-") }) {
			t.Errorf("events %q", w.events.all())
		}
	})
}

func TestReplicationControllerFailure(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.SetBeforeWrite(func(write controllertest.Write) error {
			if _, ok := write.Object.(*corev1.Pod); ok && write.Verb == "create" {
				return errors.New("exceeded quota")
			}
			return nil
		})
		if err := w.Create(context.Background(), newRC("web", 3)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		want := []corev1.ReplicationControllerCondition{{Type: "ReplicaFailure", Status: "True", Reason: "FailedCreate", Message: "exceeded quota"}}
		got := w.rc("web").Status.Conditions
		if len(got) == 1 {
			got[0].LastTransitionTime = metav1.Time{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("conditions (-want +got):\n%s", diff)
		}
		w.SetBeforeWrite(nil)
		time.Sleep(2 * time.Minute)
		w.settle()
		if got := w.rc("web").Status; len(got.Conditions) != 0 || got.AvailableReplicas != 3 {
			t.Errorf("status after the cure %+v", got)
		}
	})
}

// TestReplicationControllerCrashBetweenWrites lets every write after the Nth fail until the
// controllers are started again, for each N: the end is the same, and there is never a pod
// more than wanted.
func TestReplicationControllerCrashBetweenWrites(t *testing.T) {
	undisturbed, writes := crashReplication(t, math.MaxInt)
	for n := 0; n <= writes; n++ {
		if got, _ := crashReplication(t, n); got != undisturbed {
			t.Fatalf("crash after write %d ends in\n%s\nwant\n%s", n, got, undisturbed)
		}
	}
}

func crashReplication(t *testing.T, after int) (end string, writes int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		orphan := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "stray", Labels: map[string]string{"app": "web"}}}
		w := &world{Cluster: controllertest.New(t, newRC("web", 4), orphan), t: t, events: &notes{}}
		var mu sync.Mutex // guards crashed and writes
		crashed := false
		w.SetBeforeWrite(func(write controllertest.Write) error {
			pod, isPod := write.Object.(*corev1.Pod)
			_, isOwner := write.Object.(*corev1.ReplicationController)
			if (isPod && (write.Sub == "status" || pod.DeletionTimestamp != nil)) || (isOwner && write.Sub == "") {
				return nil // the node's or the user's, not a controller's
			}
			mu.Lock()
			defer mu.Unlock()
			if n := len(w.pods()); isPod && write.Verb == "create" && n >= 4 {
				t.Errorf("a pod is created beside %d, want 4 in all", n)
			}
			if crashed = crashed || writes >= after; crashed {
				return errors.New("crashed")
			}
			writes++
			return nil
		})
		for phase, replicas := range []int32{4, 2} {
			for life := 0; ; life++ {
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				w.start(ctx, &running)
				if phase == 1 && life == 0 {
					rc := w.rc("web")
					*rc.Spec.Replicas = replicas
					if err := w.Update(context.Background(), rc); err != nil {
						t.Fatal(err)
					}
				}
				w.settle()
				cancel()
				running.Wait()
				if !crashed {
					break
				}
				crashed, after = false, math.MaxInt // the next life is spared
			}
		}
		status := w.rc("web").Status
		end = fmt.Sprintf("%d pods, %+v", len(w.pods()), status)
	})
	return end, writes
}
