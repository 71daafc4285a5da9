package app

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/app/render"
)

// noWake stands for the annotation of a Service that was never woken.
const noWake = "-"

// replicasFor is how many pods a process has now. scaled says that an autoscaler chooses; rolling, that a release is being
// rolled out: it has to show that it runs, so nothing sleeps meanwhile.
func replicasFor(scale render.Scale, current *appsv1.Deployment, scaled, asleep, rolling bool) int32 {
	if asleep && !rolling && scale.Min == 0 {
		return 0
	}
	least := max(scale.Min, 1)
	if !scaled || current == nil {
		return least
	}
	return min(max(desired(current), least), scale.Max)
}

// isAsleep says whether a process sleeps and nothing has woken it since.
func isAsleep(d *appsv1.Deployment, wake string) bool {
	if d == nil {
		return false
	}
	since, ok := d.Annotations[v1alpha1.AnnotationAsleep]
	return ok && since == orNoWake(wake)
}

func orNoWake(wake string) string {
	if wake == "" {
		return noWake
	}
	return wake
}

// quiet remembers since when nobody has asked a process.
type quiet struct {
	requests int64
	since    time.Time
}

// observe takes new counts and says whether nobody asked for long enough.
func (q quiet) observe(counts Counts, now time.Time, idle time.Duration) (next quiet, asleep bool) {
	if q.since.IsZero() || counts.Requests != q.requests || counts.Concurrency > 0 {
		return quiet{requests: counts.Requests, since: now}, false
	}
	return q, now.Sub(q.since) >= idle
}
