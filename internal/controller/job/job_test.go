package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func TestJobCompletes(t *testing.T) {
	inWorld(t, []client.Object{newJob("j", 7, 3)}, func(w *world) {
		w.check = func() {
			if job := w.job("j"); job.Status.Active > 3 {
				t.Errorf("%d active, want 3 at most", job.Status.Active)
			}
		}
		w.steps(3 * time.Second)
		w.want("j", "active 3 succeeded 0 failed 0 ready 3")
		w.steps(30 * time.Second)
		w.want("j", "active 0 succeeded 7 failed 0; SuccessCriteriaMet=True CompletionsReached; Complete=True CompletionsReached")
		job := w.job("j")
		if job.Status.StartTime == nil || job.Status.CompletionTime == nil || len(w.succeeded) != 7 {
			t.Errorf("started %v, completed %v, %d pods", job.Status.StartTime, job.Status.CompletionTime, len(w.succeeded))
		}
		for _, pod := range w.pods() {
			ref := pod.OwnerReferences[0]
			if isTracked(&pod) || ref.Kind != "Job" || ref.APIVersion != "batch/v1" || !*ref.Controller || !strings.HasPrefix(pod.Name, "j-") {
				t.Errorf("pod %s: finalizers %v, owner %+v", pod.Name, pod.Finalizers, ref)
			}
		}
		if diff := cmp.Diff([]string{"Normal Completed Job completed"}, w.events.about()); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if !strings.HasPrefix(w.events.list[0], "Normal SuccessfulCreate Created pod: j-") {
			t.Errorf("first event %q", w.events.list[0])
		}
	})
}

func TestWorkQueueJob(t *testing.T) {
	job := newJob("j", 0, 3, func(job *batchv1.Job) { job.Spec.Completions = nil })
	inWorld(t, []client.Object{job}, func(w *world) {
		first := ""
		w.ending = func(pod *corev1.Pod) int32 { // one ends early, the others ten seconds later
			if first == "" || first == pod.Name || time.Since(pod.Status.Conditions[0].LastTransitionTime.Time) > 10*time.Second {
				first = pod.Name
				return 0
			}
			return -1
		}
		w.steps(6 * time.Second)
		w.want("j", "active 2 succeeded 1 failed 0 ready 2")
		w.steps(20 * time.Second)
		w.want("j", "active 0 succeeded 3 failed 0; SuccessCriteriaMet=True CompletionsReached; Complete=True CompletionsReached")
	})
}

func TestJobBacksOff(t *testing.T) {
	inWorld(t, []client.Object{newJob("j", 1, 1, func(job *batchv1.Job) { job.Spec.BackoffLimit = ptr(int32(3)) })}, func(w *world) {
		w.ending = func(*corev1.Pod) int32 { return 1 }
		var made []time.Duration
		begin, seen := time.Now(), 0
		w.check = func() {
			if n := len(w.pods()); n > seen {
				seen = n
				made = append(made, time.Since(begin))
			}
		}
		w.steps(3 * time.Minute)
		w.want("j", "active 0 succeeded 0 failed 4; FailureTarget=True BackoffLimitExceeded; Failed=True BackoffLimitExceeded")
		for i, wait := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second} {
			if gap := made[i+1] - made[i]; gap < wait || gap > wait+5*time.Second {
				t.Errorf("pods made at %v, want a wait of %v after number %d", made, wait, i)
			}
		}
		if diff := cmp.Diff([]string{"Warning BackoffLimitExceeded Job has reached the specified backoff limit"}, w.events.about()); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

func TestRestartsCountTowardsTheLimit(t *testing.T) {
	job := newJob("j", 1, 1, func(job *batchv1.Job) {
		job.Spec.BackoffLimit, job.Spec.Template.Spec.RestartPolicy = ptr(int32(2)), corev1.RestartPolicyOnFailure
	})
	inWorld(t, []client.Object{job}, func(w *world) {
		w.ending = func(*corev1.Pod) int32 { return -1 }
		w.steps(5 * time.Second)
		pod := w.pods()[0].DeepCopy()
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", RestartCount: 2}}
		if err := w.Status().Update(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		w.steps(5 * time.Second)
		w.want("j", "active 0 succeeded 0 failed 1; FailureTarget=True BackoffLimitExceeded; Failed=True BackoffLimitExceeded")
	})
}

func TestDeadline(t *testing.T) {
	job := newJob("j", 2, 2, func(job *batchv1.Job) { job.Spec.ActiveDeadlineSeconds = ptr(int64(20)) })
	inWorld(t, []client.Object{job}, func(w *world) {
		w.ending = func(*corev1.Pod) int32 { return -1 }
		w.steps(19 * time.Second)
		w.want("j", "active 2 succeeded 0 failed 0 ready 2")
		w.keep = true
		w.steps(3 * time.Second)
		w.want("j", "active 0 succeeded 0 failed 2 terminating 2; FailureTarget=True DeadlineExceeded")
		w.keep = false
		w.steps(3 * time.Second)
		w.want("j", "active 0 succeeded 0 failed 2; FailureTarget=True DeadlineExceeded; Failed=True DeadlineExceeded")
	})
}

func TestSuspendAndResume(t *testing.T) {
	inWorld(t, []client.Object{newJob("j", 2, 2, suspended)}, func(w *world) {
		w.steps(3 * time.Second)
		w.want("j", "active 0 succeeded 0 failed 0; Suspended=True JobSuspended")
		if w.job("j").Status.StartTime != nil || len(w.pods()) != 0 {
			t.Error("a suspended job started")
		}
		w.ending = func(*corev1.Pod) int32 { return -1 }
		w.change("j", func(job *batchv1.Job) { job.Spec.Suspend = ptr(false) })
		w.steps(4 * time.Second)
		w.want("j", "active 2 succeeded 0 failed 0 ready 2; Suspended=False JobResumed")
		begun := w.job("j").Status.StartTime
		w.change("j", func(job *batchv1.Job) { job.Spec.Suspend = ptr(true) })
		w.steps(3 * time.Second)
		w.want("j", "active 0 succeeded 0 failed 0; Suspended=True JobSuspended")
		w.change("j", func(job *batchv1.Job) { job.Spec.Suspend = ptr(false) })
		w.ending = func(*corev1.Pod) int32 { return 0 }
		w.steps(10 * time.Second)
		w.want("j", "active 0 succeeded 2 failed 0; Suspended=False JobResumed; SuccessCriteriaMet=True CompletionsReached; Complete=True CompletionsReached")
		if again := w.job("j").Status.StartTime; !again.After(begun.Time) {
			t.Errorf("started at %v, and again at %v", begun, again)
		}
		want := []string{"Normal Suspended Job suspended", "Normal Resumed Job resumed", "Normal Suspended Job suspended", "Normal Resumed Job resumed", "Normal Completed Job completed"}
		if diff := cmp.Diff(want, w.events.about()); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

func TestIndexedJob(t *testing.T) {
	inWorld(t, []client.Object{newJob("j", 5, 2, indexed)}, func(w *world) {
		w.steps(time.Second)
		pods := w.pods()
		for i, pod := range pods {
			text := fmt.Sprint(i)
			env := pod.Spec.Containers[0].Env
			if pod.Labels[batchv1.JobCompletionIndexAnnotation] != text || pod.Annotations[batchv1.JobCompletionIndexAnnotation] != text ||
				pod.Spec.Hostname != "j-"+text || !strings.HasPrefix(pod.Name, "j-"+text+"-") ||
				env[0].Name != "JOB_COMPLETION_INDEX" || env[0].ValueFrom.FieldRef.FieldPath != "metadata.labels['batch.kubernetes.io/job-completion-index']" {
				t.Errorf("pod %d: %s %v %v %s %+v", i, pod.Name, pod.Labels, pod.Annotations, pod.Spec.Hostname, env)
			}
		}
		w.steps(20 * time.Second)
		w.want("j", "active 0 succeeded 5 failed 0 completed 0-4; SuccessCriteriaMet=True CompletionsReached; Complete=True CompletionsReached")
	})
}

func TestElasticIndexedJob(t *testing.T) {
	inWorld(t, []client.Object{newJob("j", 4, 4, indexed)}, func(w *world) {
		w.ending = func(*corev1.Pod) int32 { return -1 }
		w.steps(4 * time.Second)
		resize := func(n int32) {
			w.change("j", func(job *batchv1.Job) { job.Spec.Completions, job.Spec.Parallelism = &n, &n })
			w.steps(4 * time.Second)
			w.want("j", fmt.Sprintf("active %d succeeded 0 failed 0 ready %d", n, n))
		}
		resize(6)
		resize(2)
		w.ending = func(*corev1.Pod) int32 { return 0 }
		w.steps(6 * time.Second)
		w.want("j", "active 0 succeeded 2 failed 0 completed 0,1; SuccessCriteriaMet=True CompletionsReached; Complete=True CompletionsReached")
	})
}

func TestBackoffPerIndex(t *testing.T) {
	job := newJob("j", 3, 3, indexed, func(job *batchv1.Job) {
		job.Spec.BackoffLimit, job.Spec.BackoffLimitPerIndex = ptr(int32(1<<31-1)), ptr(int32(1))
	})
	inWorld(t, []client.Object{job}, func(w *world) {
		w.ending = func(pod *corev1.Pod) int32 {
			if indexOf(pod) == 1 {
				return 1
			}
			return 0
		}
		w.steps(5 * time.Second)
		w.want("j", `active 0 succeeded 2 failed 0 completed 0,2 failed indexes ""`)
		w.steps(time.Minute)
		w.want("j", `active 0 succeeded 2 failed 2 completed 0,2 failed indexes "1"; FailureTarget=True FailedIndexes; Failed=True FailedIndexes`)
		var counts []string
		for _, pod := range w.pods() {
			if indexOf(&pod) == 1 {
				counts = append(counts, pod.Annotations[batchv1.JobIndexFailureCountAnnotation])
			}
		}
		if !slices.Equal(counts, []string{"0", "1"}) {
			t.Errorf("failure counts %v, want 0 and 1", counts)
		}
	})
}

func TestMaxFailedIndexes(t *testing.T) {
	job := newJob("j", 4, 1, indexed, func(job *batchv1.Job) {
		job.Spec.BackoffLimit, job.Spec.BackoffLimitPerIndex, job.Spec.MaxFailedIndexes = ptr(int32(1<<31-1)), ptr(int32(0)), ptr(int32(1))
	})
	inWorld(t, []client.Object{job}, func(w *world) {
		w.ending = func(*corev1.Pod) int32 { return 1 }
		w.steps(30 * time.Second)
		w.want("j", `active 0 succeeded 0 failed 2 failed indexes "0,1"; FailureTarget=True MaxFailedIndexesExceeded; Failed=True MaxFailedIndexesExceeded`)
	})
}

func TestPodFailurePolicy(t *testing.T) {
	rule := func(action batchv1.PodFailurePolicyAction, codes ...int32) batchv1.PodFailurePolicyRule {
		return batchv1.PodFailurePolicyRule{Action: action, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: codes}}
	}
	policy := &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
		rule(batchv1.PodFailurePolicyActionIgnore, 10), rule(batchv1.PodFailurePolicyActionFailJob, 42), rule(batchv1.PodFailurePolicyActionFailIndex, 7),
		rule(batchv1.PodFailurePolicyActionCount, 8),
		{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}},
	}}
	for name, tc := range map[string]struct {
		codes  []int32 // of the pods in their order; 0 afterwards
		change func(*batchv1.Job)
		want   string
		events []string
	}{
		"ignored": {
			codes: []int32{10, 10}, change: func(job *batchv1.Job) { job.Spec.BackoffLimit = ptr(int32(0)) },
			want:   "active 0 succeeded 1 failed 0; SuccessCriteriaMet=True CompletionsReached; Complete=True CompletionsReached",
			events: []string{"Normal Completed Job completed"},
		},
		"counted": {
			codes: []int32{8}, want: "active 0 succeeded 1 failed 1; SuccessCriteriaMet=True CompletionsReached; Complete=True CompletionsReached",
			events: []string{"Normal Completed Job completed"},
		},
		"no rule": {
			codes: []int32{1}, want: "active 0 succeeded 1 failed 1; SuccessCriteriaMet=True CompletionsReached; Complete=True CompletionsReached",
			events: []string{"Normal Completed Job completed"},
		},
		"the job fails": {
			codes: []int32{42}, want: "active 0 succeeded 0 failed 1; FailureTarget=True PodFailurePolicy; Failed=True PodFailurePolicy",
			events: []string{"Warning PodFailurePolicy Container c for pod default/POD failed with exit code 42 matching FailJob rule at index 1"},
		},
		"the index fails": {
			codes:  []int32{7},
			change: func(job *batchv1.Job) { indexed(job); job.Spec.BackoffLimitPerIndex = ptr(int32(5)) },
			want:   `active 0 succeeded 0 failed 1 failed indexes "0"; FailureTarget=True FailedIndexes; Failed=True FailedIndexes`,
			events: []string{"Warning FailedIndexes Job has failed indexes"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			job := newJob("j", 1, 1, func(job *batchv1.Job) {
				job.Spec.PodFailurePolicy, job.Spec.PodReplacementPolicy = policy, ptr(batchv1.Failed)
			})
			if tc.change != nil {
				tc.change(job)
			}
			inWorld(t, []client.Object{job}, func(w *world) {
				n, last := 0, ""
				w.ending = func(pod *corev1.Pod) int32 {
					n, last = n+1, pod.Name
					if n > len(tc.codes) {
						return 0
					}
					return tc.codes[n-1]
				}
				w.steps(2 * time.Minute)
				w.want("j", tc.want)
				for i, e := range tc.events {
					tc.events[i] = strings.Replace(e, "POD", last, 1)
				}
				if diff := cmp.Diff(tc.events, w.events.about()); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestSuccessPolicy(t *testing.T) {
	job := newJob("j", 5, 5, indexed, func(job *batchv1.Job) {
		job.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr("0,2-3"), SucceededCount: ptr(int32(2))}}}
	})
	inWorld(t, []client.Object{job}, func(w *world) {
		w.ending = func(pod *corev1.Pod) int32 {
			if index := indexOf(pod); index == 0 || index == 3 {
				return 0
			}
			return -1
		}
		w.steps(10 * time.Second)
		w.want("j", "active 0 succeeded 2 failed 0 completed 0,3; SuccessCriteriaMet=True SuccessPolicy; Complete=True SuccessPolicy")
		if c := w.job("j").Status.Conditions[1]; c.Message != "Matched rules at index 0" {
			t.Errorf("message %q", c.Message)
		}
		for _, pod := range w.pods() {
			if isTracked(&pod) {
				t.Errorf("pod %s has a finalizer", pod.Name)
			}
		}
	})
}

func TestReplacementPolicy(t *testing.T) {
	for name, tc := range map[string]struct {
		policy batchv1.PodReplacementPolicy
		want   string
	}{
		"at once":       {batchv1.TerminatingOrFailed, "active 1 succeeded 0 failed 1 ready 1 terminating 1"},
		"when it ended": {batchv1.Failed, "active 0 succeeded 0 failed 0 terminating 1"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, []client.Object{newJob("j", 1, 1, func(job *batchv1.Job) { job.Spec.PodReplacementPolicy = &tc.policy })}, func(w *world) {
				w.ending = func(*corev1.Pod) int32 { return -1 }
				w.steps(3 * time.Second)
				w.keep = true
				if err := w.Delete(t.Context(), &w.pods()[0]); err != nil {
					t.Fatal(err)
				}
				w.steps(30 * time.Second)
				w.want("j", tc.want)
				w.keep, w.ending = false, func(*corev1.Pod) int32 { return 0 }
				w.steps(30 * time.Second)
				w.want("j", "active 0 succeeded 1 failed 1; SuccessCriteriaMet=True CompletionsReached; Complete=True CompletionsReached")
			})
		})
	}
}

func TestFewerPodsWanted(t *testing.T) {
	inWorld(t, []client.Object{newJob("j", 10, 5)}, func(w *world) {
		w.ending = func(*corev1.Pod) int32 { return -1 }
		w.steps(3 * time.Second)
		w.change("j", func(job *batchv1.Job) { job.Spec.Parallelism = ptr(int32(2)) })
		w.steps(3 * time.Second)
		w.want("j", "active 2 succeeded 0 failed 0 ready 2")
		w.change("j", func(job *batchv1.Job) { job.Spec.Parallelism = ptr(int32(0)) })
		w.steps(3 * time.Second)
		w.want("j", "active 0 succeeded 0 failed 0")
	})
}

func TestForeignJobsAreLeftAlone(t *testing.T) {
	inWorld(t, []client.Object{newJob("j", 1, 1, func(job *batchv1.Job) { job.Spec.ManagedBy = ptr("example.test/other") })}, func(w *world) {
		before := w.Writes()
		w.steps(5 * time.Second)
		if w.Writes() != before {
			t.Errorf("%d writes", w.Writes()-before)
		}
	})
}

func TestAdoptAndRelease(t *testing.T) {
	orphan := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "stray", Labels: map[string]string{batchv1.ControllerUidLabel: "j"}}}
	inWorld(t, nil, func(w *world) {
		w.ending = func(*corev1.Pod) int32 { return -1 }
		if err := w.Create(t.Context(), orphan.DeepCopy()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := w.Create(t.Context(), newJob("j", 2, 2)); err != nil {
			t.Fatal(err)
		}
		w.steps(3 * time.Second)
		w.want("j", "active 2 succeeded 0 failed 0 ready 2")
		var pod corev1.Pod
		if err := w.Get(t.Context(), client.ObjectKeyFromObject(orphan), &pod); err != nil || metav1.GetControllerOf(&pod) == nil || !isTracked(&pod) {
			t.Fatalf("not adopted: %+v, %v", pod.ObjectMeta, err)
		}
		next := pod.DeepCopy()
		next.Labels = nil
		if err := w.Update(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		w.steps(3 * time.Second)
		if err := w.Get(t.Context(), client.ObjectKeyFromObject(orphan), &pod); err != nil || metav1.GetControllerOf(&pod) != nil || isTracked(&pod) {
			t.Fatalf("not released: %+v, %v", pod.ObjectMeta, err)
		}
		w.want("j", "active 2 succeeded 0 failed 0 ready 2")
	})
}

func TestFinalizersOfNobody(t *testing.T) {
	inWorld(t, []client.Object{newJob("j", 2, 2)}, func(w *world) {
		w.ending = func(*corev1.Pod) int32 { return -1 }
		w.steps(3 * time.Second)
		if err := w.Delete(t.Context(), newJob("j", 0, 0)); err != nil {
			t.Fatal(err)
		}
		for _, pod := range w.pods() { // as the garbage collector does
			if err := w.Delete(t.Context(), &pod); err != nil {
				t.Fatal(err)
			}
		}
		w.steps(3 * time.Second)
		if n := len(w.pods()); n != 0 {
			t.Errorf("%d pods are left", n)
		}
	})
}

func TestPodsThatCannotBeCreated(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		refused := 0
		w.SetBeforeWrite(func(write controllertest.Write) error {
			if _, ok := write.Object.(*corev1.Pod); ok && write.Verb == "create" {
				refused++
				return errors.New("exceeded quota")
			}
			return nil
		})
		if err := w.Create(t.Context(), newJob("j", 100, 100)); err != nil {
			t.Fatal(err)
		}
		w.steps(2 * time.Second)
		w.want("j", "active 0 succeeded 0 failed 0")
		if !slices.Contains(w.events.list, "Warning FailedCreate Error creating: exceeded quota") {
			t.Errorf("events %q", w.events.list)
		}
		if refused > 10 {
			t.Errorf("%d tries in two seconds, want few", refused)
		}
		w.SetBeforeWrite(nil)
		w.steps(2 * time.Minute)
		w.want("j", "active 0 succeeded 100 failed 0; SuccessCriteriaMet=True CompletionsReached; Complete=True CompletionsReached")
	})
}

// TestManyPods counts more pods than one pass may.
func TestManyPods(t *testing.T) {
	for _, mode := range []func(*batchv1.Job){func(*batchv1.Job) {}, indexed} {
		inWorld(t, []client.Object{newJob("j", 1700, 1700, mode)}, func(w *world) {
			w.check = func() {
				if u := w.job("j").Status.UncountedTerminatedPods; u != nil && len(u.Succeeded) > maxUncounted {
					t.Errorf("%d pods noted at once", len(u.Succeeded))
				}
			}
			before := w.Writes()
			w.steps(20 * time.Second)
			if got := w.job("j").Status; got.Succeeded != 1700 || got.CompletionTime == nil {
				t.Errorf("status %+v", got)
			}
			// Four of the node and two of the controller a pod, and few of the job.
			if writes := w.Writes() - before; writes > 1700*6+80 {
				t.Errorf("%d writes beside those of the pods", writes-1700*6)
			}
		})
	}
}

// TestCrashes ends the controller at each of its writes, one world a write. The next one comes to
// the same end, and on the way no pod is counted twice and none is one too many.
func TestCrashes(t *testing.T) {
	perIndex := func(job *batchv1.Job) {
		job.Spec.BackoffLimit, job.Spec.BackoffLimitPerIndex = ptr(int32(1<<31-1)), ptr(int32(1))
	}
	for name, tc := range map[string]struct {
		job    *batchv1.Job
		ending func(pod *corev1.Pod) int32
		script func(w *world, second int)
	}{
		"success": {job: newJob("j", 5, 2)},
		"indexed": {job: newJob("j", 5, 2, indexed)},
		"failing": {
			job:    newJob("j", 3, 3, func(job *batchv1.Job) { job.Spec.BackoffLimit = ptr(int32(1)) }),
			ending: func(*corev1.Pod) int32 { return 1 },
		},
		"failing indexes": {
			job: newJob("j", 3, 3, indexed, perIndex),
			ending: func(pod *corev1.Pod) int32 {
				return int32(indexOf(pod) % 2)
			},
		},
		"suspended and resumed": {
			job: newJob("j", 3, 3),
			ending: func(pod *corev1.Pod) int32 {
				if time.Since(pod.CreationTimestamp.Time) > 8*time.Second {
					return 0
				}
				return -1
			},
			script: func(w *world, second int) {
				if second == 3 || second == 6 {
					w.change("j", func(job *batchv1.Job) { job.Spec.Suspend = ptr(second == 3) })
				}
			},
		},
		"deadline": {
			job:    newJob("j", 2, 2, func(job *batchv1.Job) { job.Spec.ActiveDeadlineSeconds = ptr(int64(5)) }),
			ending: func(*corev1.Pod) int32 { return -1 },
		},
		"success policy": {
			job: newJob("j", 3, 3, indexed, func(job *batchv1.Job) {
				job.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr("1")}}}
			}),
			ending: func(pod *corev1.Pod) int32 {
				if indexOf(pod) == 1 {
					return 0
				}
				return -1
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(crashAt int) (end string, writes int) {
				synctest.Test(t, func(t *testing.T) {
					end, writes = crashRun(t, tc.job, tc.ending, tc.script, crashAt)
				})
				return end, writes
			}
			want, writes := run(0)
			if !strings.Contains(want, "Complete=True") && !strings.Contains(want, "Failed=True") {
				t.Fatalf("the job does not end: %s", want)
			}
			for at := 1; at <= writes; at++ {
				if got, _ := run(at); got != want {
					t.Errorf("crash at write %d:\n got %s\nwant %s", at, got, want)
				}
			}
		})
	}
}

// crashRun plays one job to its end; the controller's write crashAt does not come to pass, and
// another controller starts. It returns the end, and how many writes the controllers made.
func crashRun(t *testing.T, job *batchv1.Job, ending func(*corev1.Pod) int32, script func(*world, int), crashAt int) (string, int) {
	w := newWorld(t, jobControllers, []client.Object{job})
	if ending != nil {
		w.ending = ending
	}
	writes, crashed := 0, false
	ctx, cancel := context.WithCancel(t.Context())
	node := false // the node writes, and people do
	w.SetBeforeWrite(func(controllertest.Write) error {
		if node {
			return nil
		}
		if writes++; writes == crashAt || (crashed && ctx.Err() != nil) {
			crashed = true
			cancel()
			return context.Canceled
		}
		return nil
	})
	w.check = func() {
		status := w.job("j").Status
		if int(status.Active) > parallelismOf(job) || int(status.Succeeded) > len(w.succeeded) || len(w.succeeded) > completionsOf(job) {
			t.Errorf("crash at write %d: %s with %d pods that succeeded", crashAt, summary(w.job("j")), len(w.succeeded))
		}
	}
	wait := w.start(ctx)
	for second := range 90 {
		node = true
		if script != nil {
			script(w, second)
		}
		nodeStep(w)
		node = false
		time.Sleep(time.Second)
		synctest.Wait()
		w.check()
		if ctx.Err() != nil {
			wait()
			ctx, cancel = context.WithCancel(t.Context())
			wait = w.start(ctx)
			synctest.Wait() // its first writes are its own, not the node's
		}
	}
	cancel()
	wait()
	for _, pod := range w.pods() {
		if isTracked(&pod) {
			t.Errorf("crash at write %d: pod %s is still tracked", crashAt, pod.Name)
		}
	}
	return summary(w.job("j")), writes
}
