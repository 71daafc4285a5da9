package job

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// scheduleDelay is how long after its time a CronJob is looked at, so that a clock that is a
// little behind does not miss it (kubernetes, pkg/controller/cronjob).
const scheduleDelay = 100 * time.Millisecond

// manyMissed is how many missed starts are worth a warning.
const manyMissed = 100

// errNoInterval is about a schedule that can be written and never comes, as the 31st of February.
var errNoInterval = errors.New("time difference between two schedules is less than 1 second")

// hasZone reports whether the schedule itself names a time zone, which the API no longer accepts.
func hasZone(cj *batchv1.CronJob) bool { return strings.Contains(cj.Spec.Schedule, "TZ") }

// parseSchedule reads the schedule of cj in its time zone.
func parseSchedule(cj *batchv1.CronJob) (schedule cron.Schedule, err error) {
	text := cj.Spec.Schedule
	if cj.Spec.TimeZone != nil && !hasZone(cj) {
		if _, err := time.LoadLocation(*cj.Spec.TimeZone); err == nil {
			text = "TZ=" + *cj.Spec.TimeZone + " " + text
		}
	}
	defer func() { // the library panics on some malformed zones
		if cause := recover(); cause != nil {
			schedule, err = nil, fmt.Errorf("invalid schedule format: %v", cause)
		}
	}()
	return cron.ParseStandard(text)
}

// missed is what a schedule says about the time between two moments.
type missed struct {
	since  time.Time // the first moment
	latest time.Time // the last time that should have come; zero if there is none
	count  int       // how many there were, roughly
}

// latestBetween finds the last time of a schedule between the last start of cj and now. With a
// starting deadline, times before it do not count if deadline says so.
func latestBetween(cj *batchv1.CronJob, now time.Time, schedule cron.Schedule, deadline bool) (missed, error) {
	m := missed{since: cj.CreationTimestamp.Time}
	if cj.Status.LastScheduleTime != nil {
		m.since = cj.Status.LastScheduleTime.Time
	}
	if deadline && cj.Spec.StartingDeadlineSeconds != nil {
		if limit := now.Add(-time.Duration(*cj.Spec.StartingDeadlineSeconds) * time.Second); limit.After(m.since) {
			m.since = limit
		}
	}
	first := schedule.Next(m.since)
	second := schedule.Next(first)
	if now.Before(first) {
		return m, nil
	}
	if now.Before(second) {
		m.latest = first
		return m, nil
	}
	between := int64(second.Sub(first).Round(time.Second) / time.Second)
	if between < 1 {
		return m, errNoInterval
	}
	passed := int64(now.Sub(first) / time.Second)
	m.count = int(passed/between) + 1
	// Walking every time of a schedule could take for ever after a jump of the clock. So start near
	// the end, one interval early: intervals differ.
	for t := schedule.Next(first.Add(time.Duration(m.count-2) * time.Duration(between) * time.Second)); !t.After(now); t = schedule.Next(t) {
		m.latest = t
	}
	return m, nil
}

// untilNext is how long it takes until cj is due again.
func untilNext(cj *batchv1.CronJob, now time.Time, schedule cron.Schedule) time.Duration {
	m, err := latestBetween(cj, now, schedule, false)
	from := m.latest
	switch {
	case err != nil, m.latest.IsZero() && m.count > 0:
		from = now
	case m.latest.IsZero():
		from = m.since
	}
	return schedule.Next(from).Add(scheduleDelay).Sub(now)
}

// clockJumped reports whether the clock has been set, or the machine slept, between two readings.
func clockJumped(before, now time.Time) bool {
	jump := now.Round(0).Sub(before.Round(0)) - now.Sub(before)
	return jump.Abs() > time.Second
}
