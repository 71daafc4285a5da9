package job

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// cronJobKind is what owner references to a CronJob say.
func cronJobKind() schema.GroupVersionKind { return batchv1.SchemeGroupVersion.WithKind("CronJob") }

// planHistory picks the finished jobs that are more than cj keeps, the oldest first.
func planHistory(cj *batchv1.CronJob, jobs []*batchv1.Job) []*batchv1.Job {
	of := func(kind batchv1.JobConditionType, limit *int32) []*batchv1.Job {
		if limit == nil {
			return nil
		}
		var over []*batchv1.Job
		for _, job := range jobs {
			if c := outcome(job); c != nil && c.Type == kind && job.DeletionTimestamp == nil {
				over = append(over, job)
			}
		}
		slices.SortFunc(over, compareStarts)
		return over[:max(0, len(over)-int(*limit))]
	}
	return append(of(batchv1.JobComplete, cj.Spec.SuccessfulJobsHistoryLimit), of(batchv1.JobFailed, cj.Spec.FailedJobsHistoryLimit)...)
}

// compareStarts puts what started first first, and what never did last.
func compareStarts(a, b *batchv1.Job) int {
	at, bt := a.Status.StartTime, b.Status.StartTime
	switch {
	case at == nil && bt != nil:
		return 1
	case at != nil && bt == nil:
		return -1
	case at.Equal(bt):
		return strings.Compare(a.Name, b.Name)
	}
	return at.Compare(bt.Time)
}

// planActive brings the list of active jobs in cj's status to what its jobs say. It changes cj. gone
// says of a job in the list that is not among jobs whether it is really gone.
func planActive(cj *batchv1.CronJob, jobs []*batchv1.Job, gone func(ref corev1.ObjectReference) (bool, error)) (changed bool, events []event, err error) {
	status := &cj.Status
	mine := map[types.UID]bool{}
	for _, job := range jobs {
		mine[job.UID] = true
		listed := isListed(cj, job.UID)
		over := outcome(job)
		switch {
		case over == nil && !listed:
			events = append(events, event{corev1.EventTypeWarning, "UnexpectedJob", "Saw a job that the controller did not create or forgot: " + job.Name})
			changed = readopt(cj, job) || changed
		case over != nil && listed:
			unlist(cj, job.UID)
			events = append(events, event{corev1.EventTypeNormal, "SawCompletedJob", fmt.Sprintf("Saw completed job: %s, condition: %v", job.Name, over.Type)})
			changed = true
		}
		if over == nil || over.Type != batchv1.JobComplete {
			continue
		}
		done := job.Status.CompletionTime
		if done != nil && (status.LastSuccessfulTime == nil || done.After(status.LastSuccessfulTime.Time)) {
			status.LastSuccessfulTime = done
			changed = true
		}
	}
	for _, ref := range slices.Clone(status.Active) {
		if mine[ref.UID] {
			continue
		}
		missing, err := gone(ref)
		if err != nil {
			return changed, events, err
		}
		if missing {
			events = append(events, event{corev1.EventTypeNormal, "MissingJob", "Active job went missing: " + ref.Name})
			unlist(cj, ref.UID)
			changed = true
		}
	}
	return changed, events, nil
}

// readopt lists a job that this controller made for its time, and crashed before it wrote that down.
// Without it the job would not count as running. A job that a person made is left out, as upstream does.
func readopt(cj *batchv1.CronJob, job *batchv1.Job) bool {
	text := job.Annotations[batchv1.CronJobScheduledTimestampAnnotation]
	at, err := time.Parse(time.RFC3339, text)
	if err != nil || job.Name != jobName(cj, at) || job.DeletionTimestamp != nil {
		return false
	}
	cj.Status.Active = append(cj.Status.Active, refTo(job))
	if cj.Status.LastScheduleTime == nil || cj.Status.LastScheduleTime.Time.Before(at) {
		cj.Status.LastScheduleTime = &metav1.Time{Time: at}
	}
	return true
}

func isListed(cj *batchv1.CronJob, job types.UID) bool {
	return slices.ContainsFunc(cj.Status.Active, func(ref corev1.ObjectReference) bool { return ref.UID == job })
}

func unlist(cj *batchv1.CronJob, job types.UID) {
	cj.Status.Active = slices.DeleteFunc(cj.Status.Active, func(ref corev1.ObjectReference) bool { return ref.UID == job })
}

func refTo(job *batchv1.Job) corev1.ObjectReference {
	return corev1.ObjectReference{
		APIVersion: jobKind().GroupVersion().String(), Kind: jobKind().Kind,
		Namespace: job.Namespace, Name: job.Name, UID: job.UID, ResourceVersion: job.ResourceVersion,
	}
}

// start is what a CronJob is to do now.
type start struct {
	due    bool          // a job is to start
	at     time.Time     // for this time
	events []event       // to tell
	again  time.Duration // until the next look; 0 for none before something changes
}

// planStart says whether a job is to start now. It may say so twice for one time: the job's name
// keeps it from being made twice.
func planStart(cj *batchv1.CronJob, now time.Time) start {
	if cj.DeletionTimestamp != nil {
		return start{}
	}
	if zone := cj.Spec.TimeZone; zone != nil {
		if _, err := time.LoadLocation(*zone); err != nil {
			return start{events: []event{{corev1.EventTypeWarning, "UnknownTimeZone", fmt.Sprintf("invalid timeZone: %q: %s", *zone, err)}}}
		}
	}
	if cj.Spec.Suspend != nil && *cj.Spec.Suspend {
		return start{}
	}
	var s start
	tell := func(kind, reason, format string, args ...any) start {
		s.events = append(s.events, event{kind, reason, fmt.Sprintf(format, args...)})
		return s
	}
	if hasZone(cj) {
		tell(corev1.EventTypeWarning, "UnsupportedSchedule", "CRON_TZ or TZ used in schedule %q is not officially supported, "+
			"see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details", cj.Spec.Schedule)
	}
	schedule, err := parseSchedule(cj)
	if err != nil {
		return tell(corev1.EventTypeWarning, "UnparseableSchedule", "unparseable schedule: %q : %s", cj.Spec.Schedule, err)
	}
	m, err := latestBetween(cj, now, schedule, true)
	if err != nil {
		return tell(corev1.EventTypeWarning, "InvalidSchedule", "invalid schedule: %s : %s", cj.Spec.Schedule, err)
	}
	s.again = untilNext(cj, now, schedule)
	if m.latest.IsZero() {
		return s
	}
	if m.count > manyMissed {
		tell(corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	deadline := cj.Spec.StartingDeadlineSeconds
	switch {
	case deadline != nil && m.latest.Add(time.Duration(*deadline)*time.Second).Before(now):
		return tell(corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", m.latest.UTC().Format(time.RFC1123Z))
	case isStarted(cj, m.latest):
		return s
	case cj.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && len(cj.Status.Active) > 0:
		return tell(corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
	}
	s.due, s.at = true, m.latest
	return s
}

// isStarted reports whether cj has started a job for a time.
func isStarted(cj *batchv1.CronJob, at time.Time) bool {
	name := jobName(cj, at)
	return cj.Status.LastScheduleTime.Equal(&metav1.Time{Time: at}) ||
		slices.ContainsFunc(cj.Status.Active, func(ref corev1.ObjectReference) bool { return ref.Name == name && ref.Namespace == cj.Namespace })
}

// jobName is the name of the job for a time: one a minute, so that it cannot be made twice.
func jobName(cj *batchv1.CronJob, at time.Time) string {
	return cj.Name + "-" + strconv.FormatInt(at.Unix()/60, 10)
}

// newScheduledJob is the job of cj for a time.
func newScheduledJob(cj *batchv1.CronJob, at time.Time) (*batchv1.Job, error) {
	zone := ""
	if cj.Spec.TimeZone != nil {
		zone = *cj.Spec.TimeZone
	}
	location, err := time.LoadLocation(zone)
	if err != nil {
		return nil, fmt.Errorf("reading the time zone of cron job %s/%s: %w", cj.Namespace, cj.Name, err)
	}
	template := cj.Spec.JobTemplate.DeepCopy()
	annotations := maps.Clone(template.Annotations)
	setKey(&annotations, batchv1.CronJobScheduledTimestampAnnotation, at.In(location).Format(time.RFC3339))
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: cj.Namespace, Name: jobName(cj, at), Labels: template.Labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cj, cronJobKind())},
		},
		Spec: template.Spec,
	}, nil
}
