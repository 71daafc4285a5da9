package job

import (
	"context"
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
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func newCronJob(schedule string, change ...func(*batchv1.CronJob)) *batchv1.CronJob {
	job := newJob("", 1, 1)
	cj := &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c", UID: "cron"},
		Spec: batchv1.CronJobSpec{
			Schedule: schedule, ConcurrencyPolicy: batchv1.AllowConcurrent, Suspend: ptr(false),
			SuccessfulJobsHistoryLimit: ptr(int32(3)), FailedJobsHistoryLimit: ptr(int32(1)),
			JobTemplate: batchv1.JobTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "c"}, Annotations: map[string]string{"note": "yes"}}, Spec: job.Spec,
			},
		},
	}
	for _, f := range change {
		f(cj)
	}
	return cj
}

func at(text string) time.Time {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	return t
}

func since(text string) func(*batchv1.CronJob) {
	return func(cj *batchv1.CronJob) { cj.Status.LastScheduleTime = &metav1.Time{Time: at(text)} }
}

func inZone(zone string) func(*batchv1.CronJob) {
	return func(cj *batchv1.CronJob) { cj.Spec.TimeZone = &zone }
}

func within(seconds int64) func(*batchv1.CronJob) {
	return func(cj *batchv1.CronJob) { cj.Spec.StartingDeadlineSeconds = &seconds }
}

func running(name string) func(*batchv1.CronJob) {
	return func(cj *batchv1.CronJob) {
		cj.Status.Active = append(cj.Status.Active, corev1.ObjectReference{Namespace: "default", Name: name, UID: types.UID(name)})
	}
}

func TestPlanStart(t *testing.T) {
	const last = "2026-03-10T10:00:00Z"
	forbid := func(cj *batchv1.CronJob) { cj.Spec.ConcurrencyPolicy = batchv1.ForbidConcurrent }
	for name, tc := range map[string]struct {
		cj     *batchv1.CronJob
		now    string
		want   string // the time for which a job starts, if any
		again  time.Duration
		events []string
	}{
		"too early": {cj: newCronJob("*/5 * * * *", since(last)), now: "2026-03-10T10:04:00Z", again: time.Minute + scheduleDelay},
		"due":       {cj: newCronJob("*/5 * * * *", since(last)), now: "2026-03-10T10:05:00Z", want: "2026-03-10T10:05:00Z", again: 5*time.Minute + scheduleDelay},
		"a few are missed, the last counts": {
			cj: newCronJob("*/5 * * * *", since(last)), now: "2026-03-10T10:17:00Z", want: "2026-03-10T10:15:00Z", again: 3*time.Minute + scheduleDelay,
		},
		"irregular, missed": {
			cj: newCronJob("30 6-16/4 * * 1-5", since("2026-03-06T14:30:00Z")), now: "2026-03-10T07:00:00Z", want: "2026-03-10T06:30:00Z", again: 3*time.Hour + 30*time.Minute + scheduleDelay,
		},
		"very many are missed": {
			cj: newCronJob("* * * * *", since(last)), now: "2026-03-11T10:00:30Z", want: "2026-03-11T10:00:00Z", again: 30*time.Second + scheduleDelay,
			events: []string{"Warning TooManyMissedTimes too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew"},
		},
		"very many are missed, few within the deadline": {
			cj: newCronJob("* * * * *", since(last), within(90)), now: "2026-03-11T10:00:30Z", want: "2026-03-11T10:00:00Z", again: 30*time.Second + scheduleDelay,
		},
		"too late": {
			cj: newCronJob("0 * * * *", since(last), within(60)), now: "2026-03-10T11:02:00Z", again: 58*time.Minute + scheduleDelay,
		},
		"late": {
			cj: newCronJob("0 * * * *", since(last), within(60)), now: "2026-03-10T11:00:59Z", want: "2026-03-10T11:00:00Z", again: 59*time.Minute + time.Second + scheduleDelay,
		},
		"a deadline in the past": {
			cj: newCronJob("0 * * * *", since(last), within(-10)), now: "2026-03-10T11:00:01Z", again: 59*time.Minute + 59*time.Second + scheduleDelay,
		},
		"forbidden": {
			cj: newCronJob("*/5 * * * *", since(last), forbid, running("x")), now: "2026-03-10T10:05:00Z", again: 5*time.Minute + scheduleDelay,
			events: []string{"Normal JobAlreadyActive Not starting job because prior execution is running and concurrency policy is Forbid"},
		},
		"started already": {
			cj: newCronJob("*/5 * * * *", since(last), running(fmt.Sprint("c-", at("2026-03-10T10:05:00Z").Unix()/60))), now: "2026-03-10T10:05:00Z", again: 5*time.Minute + scheduleDelay,
		},
		"suspended":      {cj: newCronJob("* * * * *", since(last), func(cj *batchv1.CronJob) { cj.Spec.Suspend = ptr(true) }), now: "2026-03-10T10:05:00Z"},
		"being deleted":  {cj: newCronJob("* * * * *", since(last), func(cj *batchv1.CronJob) { cj.DeletionTimestamp = &metav1.Time{} }), now: "2026-03-10T10:05:00Z"},
		"nonsense":       {cj: newCronJob("* * *", since(last)), now: last, events: []string{`Warning UnparseableSchedule unparseable schedule: "* * *" : expected exactly 5 fields, found 3: [* * *]`}},
		"malformed zone": {cj: newCronJob("TZ=0", since(last)), now: last, events: []string{`Warning UnsupportedSchedule CRON_TZ or TZ used`, `Warning UnparseableSchedule unparseable schedule: "TZ=0" : invalid schedule format: runtime error: slice bounds out of range [:-1]`}},
		"unknown zone":   {cj: newCronJob("* * * * *", since(last), inZone("Moon/Base")), now: last, events: []string{`Warning UnknownTimeZone invalid timeZone: "Moon/Base": unknown time zone Moon/Base`}},
		"never":          {cj: newCronJob("59 23 31 2 *", since(last)), now: last, events: []string{"Warning InvalidSchedule invalid schedule: 59 23 31 2 * : time difference between two schedules is less than 1 second"}},
		"every": {
			cj: newCronJob("@every 90s", since(last)), now: "2026-03-10T10:03:05Z", want: "2026-03-10T10:03:00Z", again: 85*time.Second + scheduleDelay,
		},
		"hourly, in a zone of half an hour": {
			cj: newCronJob("@hourly", since(last), inZone("Asia/Kolkata")), now: "2026-03-10T10:31:00Z", want: "2026-03-10T10:30:00Z", again: 59*time.Minute + scheduleDelay,
		},
		"the clock went back": {cj: newCronJob("* * * * *", since(last)), now: "2026-03-10T09:00:30Z", again: 60*time.Minute + 30*time.Second + scheduleDelay},
		// In Berlin 2026-03-29 has no 02:30, and 2026-10-25 has two: upstream's library starts a job at each.
		"an hour that is left out": {
			cj: newCronJob("30 2 * * *", since("2026-03-28T01:30:00Z"), inZone("Europe/Berlin")), now: "2026-03-29T12:00:00Z", again: 12*time.Hour + 30*time.Minute + scheduleDelay,
		},
		"an hour that comes twice, first time": {
			cj: newCronJob("30 2 * * *", since("2026-10-24T00:30:00Z"), inZone("Europe/Berlin")), now: "2026-10-25T00:30:00Z", want: "2026-10-25T00:30:00Z", again: time.Hour + scheduleDelay,
		},
		"an hour that comes twice, second time": {
			cj: newCronJob("30 2 * * *", since("2026-10-25T00:30:00Z"), inZone("Europe/Berlin")), now: "2026-10-25T01:30:00Z", want: "2026-10-25T01:30:00Z", again: 24*time.Hour + scheduleDelay,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := planStart(tc.cj, at(tc.now))
			got := ""
			if s.due {
				got = s.at.UTC().Format(time.RFC3339)
			}
			if got != tc.want || s.again != tc.again {
				t.Errorf("starts for %q and looks again in %v; want %q, %v", got, s.again, tc.want, tc.again)
			}
			var events []string
			for i, e := range s.events {
				text := e.kind + " " + e.reason + " " + e.note
				if i < len(tc.events) && strings.HasPrefix(text, tc.events[i]) {
					text = tc.events[i]
				}
				events = append(events, text)
			}
			if diff := cmp.Diff(tc.events, events); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestScheduledJob(t *testing.T) {
	cj := newCronJob("0 * * * *", inZone("America/New_York"))
	job, err := newScheduledJob(cj, at("2026-03-10T11:00:00Z"))
	if err != nil {
		t.Fatal(err)
	}
	want := metav1.ObjectMeta{
		Namespace: "default", Name: "c-29552340", Labels: map[string]string{"app": "c"},
		Annotations:     map[string]string{"note": "yes", "batch.kubernetes.io/cronjob-scheduled-timestamp": "2026-03-10T07:00:00-04:00"},
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cj, cronJobKind())},
	}
	if diff := cmp.Diff(want, job.ObjectMeta); diff != "" {
		t.Errorf("job (-want +got):\n%s", diff)
	}
	if len(cj.Spec.JobTemplate.Annotations) != 1 {
		t.Error("the template was changed")
	}
}

func TestClockJumped(t *testing.T) {
	now := time.Now()
	if clockJumped(now, now.Add(10*time.Second)) {
		t.Error("a clock that runs jumps")
	}
	// Without the monotonic part a reading is what the wall clock says; a jump makes the two differ.
	if clockJumped(now.Round(0), now.Round(0).Add(time.Hour)) {
		t.Error("without a second clock nothing can be said")
	}
}

func cronControllers(w *world) []runner {
	c, err := NewCronJobs(w, w, w.events, Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	ttl, err := NewTTL(w, w, Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	return append(jobControllers(w), c, ttl)
}

func (w *world) cronJob() *batchv1.CronJob {
	w.t.Helper()
	var cj batchv1.CronJob
	if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: "c"}, &cj); err != nil {
		w.t.Fatal(err)
	}
	return cj.DeepCopy()
}

func (w *world) jobs() []batchv1.Job {
	w.t.Helper()
	var list batchv1.JobList
	if err := w.List(context.Background(), &list, client.InNamespace("default")); err != nil {
		w.t.Fatal(err)
	}
	return list.Items
}

// collect deletes the pods of jobs that are gone, as the garbage collector does.
func (w *world) collect() {
	there := map[types.UID]bool{}
	for _, job := range w.jobs() {
		there[job.UID] = true
	}
	for _, pod := range w.pods() {
		if ref := metav1.GetControllerOf(&pod); ref != nil && !there[ref.UID] && pod.DeletionTimestamp == nil {
			_ = w.Delete(context.Background(), &pod)
		}
	}
}

// starts are the times for which jobs were ever created, from the events.
func (w *world) starts() (minutes []string) {
	w.events.mu.Lock()
	defer w.events.mu.Unlock()
	for _, text := range w.events.list {
		if name, ok := strings.CutPrefix(text, "Normal SuccessfulCreate Created job c-"); ok {
			minutes = append(minutes, name)
		}
	}
	return minutes
}

func TestADayOfCron(t *testing.T) {
	inWorldOf(t, cronControllers, []client.Object{newCronJob("*/20 * * * *", func(cj *batchv1.CronJob) {
		cj.CreationTimestamp = metav1.NewTime(at("2000-01-01T00:00:00Z"))
	})}, func(w *world) {
		for range 24*60 + 1 {
			for range 5 {
				w.step()
			}
			w.collect()
			time.Sleep(55 * time.Second)
		}
		starts := w.starts()
		if n := len(starts); n != 72 {
			t.Errorf("%d jobs in a day, want 72", n)
		}
		if slices.Sort(starts); len(slices.Compact(starts)) != 72 {
			t.Errorf("jobs made twice: %v", starts)
		}
		if n := len(w.jobs()); n != 3 {
			t.Errorf("%d jobs are left, want 3", n)
		}
		status := w.cronJob().Status
		if len(status.Active) != 0 || !status.LastScheduleTime.Time.Equal(at("2000-01-02T00:00:00Z")) || status.LastSuccessfulTime == nil {
			t.Errorf("status %+v", status)
		}
		for _, want := range []string{"Normal SawCompletedJob Saw completed job: c-", "Normal SuccessfulDelete Deleted job c-"} {
			if !slices.ContainsFunc(w.events.list, func(text string) bool { return strings.HasPrefix(text, want) }) {
				t.Errorf("no event %q", want)
			}
		}
	})
}

func TestConcurrency(t *testing.T) {
	for policy, most := range map[batchv1.ConcurrencyPolicy]int{batchv1.AllowConcurrent: 4, batchv1.ForbidConcurrent: 1, batchv1.ReplaceConcurrent: 1} {
		t.Run(string(policy), func(t *testing.T) {
			inWorldOf(t, cronControllers, []client.Object{newCronJob("* * * * *", func(cj *batchv1.CronJob) { cj.Spec.ConcurrencyPolicy = policy })}, func(w *world) {
				w.ending = func(*corev1.Pod) int32 { return -1 }
				for range 4*60 + 5 {
					w.step()
					w.collect()
				}
				if n := len(w.jobs()); n != most {
					t.Errorf("%d jobs after four minutes, want %d", n, most)
				}
				if n := len(w.cronJob().Status.Active); n != most {
					t.Errorf("%d active", n)
				}
				starts := len(w.starts())
				if want := map[batchv1.ConcurrencyPolicy]int{batchv1.AllowConcurrent: 4, batchv1.ForbidConcurrent: 1, batchv1.ReplaceConcurrent: 4}[policy]; starts != want {
					t.Errorf("%d jobs made, want %d", starts, want)
				}
			})
		})
	}
}

func TestCronJobNotices(t *testing.T) {
	inWorldOf(t, cronControllers, []client.Object{newCronJob("0 * * * *")}, func(w *world) {
		w.ending = func(*corev1.Pod) int32 { return -1 }
		// One that a person made, as "kubectl create job --from" does.
		manual := newJob("manual", 1, 1)
		manual.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(w.cronJob(), cronJobKind())}
		if err := w.Create(t.Context(), manual); err != nil {
			t.Fatal(err)
		}
		w.steps(5 * time.Second)
		if n := len(w.cronJob().Status.Active); n != 0 {
			t.Errorf("%d active", n)
		}
		time.Sleep(time.Hour)
		w.steps(5 * time.Second)
		active := w.cronJob().Status.Active
		if len(active) != 1 || active[0].Kind != "Job" || active[0].APIVersion != "batch/v1" {
			t.Fatalf("active %+v", active)
		}
		if err := w.Delete(t.Context(), &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: active[0].Name}}); err != nil {
			t.Fatal(err)
		}
		w.steps(5 * time.Second)
		for _, want := range []string{"Warning UnexpectedJob Saw a job that the controller did not create or forgot: manual", "Normal MissingJob Active job went missing: " + active[0].Name} {
			if !slices.Contains(w.events.list, want) {
				t.Errorf("no event %q in %q", want, w.events.list)
			}
		}
		if n := len(w.cronJob().Status.Active); n != 0 {
			t.Errorf("%d active after it went", n)
		}
	})
}

func TestANewScheduleCountsFromNow(t *testing.T) {
	inWorldOf(t, cronControllers, []client.Object{newCronJob("0 12 * * *")}, func(w *world) {
		time.Sleep(10*time.Minute + 30*time.Second)
		cj := w.cronJob()
		cj.Spec.Schedule = "*/5 * * * *"
		if err := w.Update(t.Context(), cj); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		if n := len(w.starts()); n != 0 {
			t.Errorf("%d jobs at once", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(w.starts()); n != 1 {
			t.Errorf("%d jobs after the first time of the new schedule, want 1", n)
		}
	})
}

func TestTTL(t *testing.T) {
	inWorldOf(t, cronControllers, []client.Object{newJob("j", 1, 1, func(job *batchv1.Job) { job.Spec.TTLSecondsAfterFinished = ptr(int32(60)) })}, func(w *world) {
		w.steps(10 * time.Second)
		if n := len(w.jobs()); n != 1 {
			t.Fatalf("%d jobs", n)
		}
		w.steps(45 * time.Second)
		if w.jobs()[0].DeletionTimestamp != nil {
			t.Error("deleted too early")
		}
		w.steps(20 * time.Second)
		job := w.jobs()[0]
		if job.DeletionTimestamp == nil || !slices.Contains(job.Finalizers, metav1.FinalizerDeleteDependents) {
			t.Errorf("after a minute: %+v", job.ObjectMeta)
		}
	})
}

// TestCronCrashes ends the controllers at each of their writes over five minutes. No job is left out,
// made twice, or made beside another where that is forbidden.
func TestCronCrashes(t *testing.T) {
	for _, policy := range []batchv1.ConcurrencyPolicy{batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent} {
		t.Run(string(policy), func(t *testing.T) {
			run := func(crashAt int) (end string, writes int) {
				synctest.Test(t, func(t *testing.T) { end, writes = cronCrashRun(t, policy, crashAt) })
				return end, writes
			}
			want, writes := run(0)
			for at := 1; at <= writes; at++ {
				if got, _ := run(at); got != want {
					t.Errorf("crash at write %d:\n got %s\nwant %s", at, got, want)
				}
			}
		})
	}
}

func cronCrashRun(t *testing.T, policy batchv1.ConcurrencyPolicy, crashAt int) (string, int) {
	w := newWorld(t, cronControllers, []client.Object{newCronJob("* * * * *", func(cj *batchv1.CronJob) { cj.Spec.ConcurrencyPolicy = policy })})
	w.ending = func(pod *corev1.Pod) int32 {
		if time.Since(pod.CreationTimestamp.Time) > 30*time.Second {
			return 0
		}
		return -1
	}
	writes, node := 0, false
	ctx, cancel := context.WithCancel(t.Context())
	made := map[string]int{}
	w.SetBeforeWrite(func(write controllertest.Write) error {
		if node {
			return nil
		}
		if writes++; writes == crashAt || ctx.Err() != nil {
			cancel()
			return context.Canceled
		}
		if _, ok := write.Object.(*batchv1.Job); ok && write.Verb == "create" {
			made[write.Object.GetName()]++
		}
		return nil
	})
	wait := w.start(ctx)
	for range 5 * 20 {
		node = true
		nodeStep(w)
		w.collect()
		node = false
		time.Sleep(3 * time.Second)
		synctest.Wait()
		alive := 0
		for _, job := range w.jobs() {
			if outcome(&job) == nil {
				alive++
			}
		}
		if policy != batchv1.AllowConcurrent && alive > 1 {
			t.Errorf("crash at write %d: %d jobs at once", crashAt, alive)
		}
		if ctx.Err() != nil {
			wait()
			ctx, cancel = context.WithCancel(t.Context())
			wait = w.start(ctx)
			synctest.Wait() // its first writes are its own, not the node's
		}
	}
	cancel()
	wait()
	status := w.cronJob().Status
	return fmt.Sprintf("made %d, there %d, active %d, last %s", len(made), len(w.jobs()), len(status.Active), status.LastScheduleTime.UTC().Format(time.TimeOnly)), writes
}
