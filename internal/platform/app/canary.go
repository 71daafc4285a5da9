package app

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
)

const (
	defaultEvery     = 5 * time.Minute
	defaultSample    = 100
	defaultErrorRate = 0.05
)

// Counts is what the gateways counted of the requests to a Service.
type Counts struct {
	Requests    int64 // since they began to count
	Errors      int64 // answered with 5xx, or not at all
	P95         time.Duration
	Concurrency float64 // requests at once
}

// plannedRollout is a rollout with its defaults filled in.
type plannedRollout struct {
	steps  []int32
	every  time.Duration // 0: each step waits for a promotion
	errors float64       // share of requests
	p95    time.Duration // 0: not judged
	sample int64
	test   bool
}

func rolloutOf(r *v1alpha1.Rollout) plannedRollout {
	out := plannedRollout{steps: []int32{5, 25, 50, 100}, every: defaultEvery, errors: defaultErrorRate, sample: defaultSample}
	if r == nil {
		return out
	}
	if len(r.Steps) > 0 {
		out.steps = r.Steps
	}
	if r.Every != nil {
		out.every = r.Every.Duration
	}
	if share, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(r.Errors), "%"), 64); err == nil {
		out.errors = share / 100
	}
	if r.P95 != nil {
		out.p95 = r.P95.Duration
	}
	if r.Sample > 0 {
		out.sample = int64(r.Sample)
	}
	out.test = r.Test != ""
	return out
}

// observed is what is known of a canary at a moment.
type observed struct {
	now      time.Time
	ready    bool    // all its pods are
	counts   *Counts // nil: nobody counts
	blind    bool    // somebody does, and does not answer for the moment
	restarts int     // of its containers
	test     testState
	intent   string
	step     int32 // that the intent was given for
}

// testState is how the test of the current step is.
type testState int

// States of a test.
const (
	testNone testState = iota
	testRunning
	testPassed
	testFailed
)

// canaryMove is what to do with a canary.
type canaryMove int

// Moves of a canary.
const (
	canaryStay  canaryMove = iota
	canaryDone             // every step went well: everything gets the release
	canaryAbort            // it is given up
)

// stepCanary moves a canary on. at is where it is, nil before its pods are ready; what it returns replaces it. A reason
// comes with an abort; wait is until when to look again.
func stepCanary(at *v1alpha1.CanaryStatus, plan plannedRollout, o observed) (next *v1alpha1.CanaryStatus, move canaryMove, reason, message string, wait time.Duration) {
	if at == nil || at.Since.IsZero() {
		if !o.ready {
			return nil, canaryStay, "", "", time.Second
		}
		return beginStep(0, plan, o), canaryStay, "", "", time.Second
	}
	next = at.DeepCopy()
	weight := next.Weight
	count(next, o.counts)
	if reason, message = judgeCanary(next, plan, o); reason != "" {
		return next, canaryAbort, reason, message, 0
	}
	promoted := o.intent == v1alpha1.IntentPromote && o.step == next.Step
	due := next.Since.Add(plan.every)
	switch {
	case promoted:
	case plan.every == 0, o.blind, plan.test && o.test != testPassed:
		return next, canaryStay, "", "", 5 * time.Second
	case o.now.Before(due):
		return next, canaryStay, "", "", min(due.Sub(o.now), 5*time.Second)
	}
	if int(next.Step)+1 >= len(plan.steps) {
		next.Waits = false
		next.Weight = weight
		return next, canaryDone, "", "", 0
	}
	return beginStep(next.Step+1, plan, o), canaryStay, "", "", time.Second
}

// beginStep is the state at the beginning of a step.
func beginStep(step int32, plan plannedRollout, o observed) *v1alpha1.CanaryStatus {
	out := &v1alpha1.CanaryStatus{
		Step: step, Weight: min(max(plan.steps[step], 0), 100), Since: metav1.NewTime(o.now.Truncate(time.Second)), Waits: plan.every == 0,
	}
	if o.counts != nil {
		out.BaseRequests, out.BaseErrors = o.counts.Requests, o.counts.Errors
	}
	return out
}

// count notes what was counted in the step. Counts that went down began anew.
func count(c *v1alpha1.CanaryStatus, counts *Counts) {
	if counts == nil {
		return
	}
	if counts.Requests < c.BaseRequests || counts.Errors < c.BaseErrors {
		c.BaseRequests, c.BaseErrors = 0, 0
	}
	c.Requests, c.Errors = counts.Requests-c.BaseRequests, counts.Errors-c.BaseErrors
	c.P95 = nil
	if counts.P95 > 0 {
		c.P95 = &metav1.Duration{Duration: counts.P95.Round(time.Millisecond)}
	}
}

// judgeCanary says why a canary must be given up; empty if it need not.
func judgeCanary(c *v1alpha1.CanaryStatus, plan plannedRollout, o observed) (reason, message string) {
	switch {
	case o.intent == v1alpha1.IntentAbort:
		return v1alpha1.ReasonAborted, "somebody aborted it"
	case o.restarts > 0:
		return v1alpha1.ReasonAnalysis, fmt.Sprintf("its containers ended %d times at %d%% of the requests; see gantry logs", o.restarts, c.Weight)
	case plan.test && o.test == testFailed:
		return v1alpha1.ReasonCommandFailed, fmt.Sprintf("its test failed at %d%% of the requests", c.Weight)
	case o.counts == nil || c.Requests < plan.sample:
		return "", ""
	}
	if rate := float64(c.Errors) / float64(c.Requests); rate > plan.errors {
		return v1alpha1.ReasonAnalysis, fmt.Sprintf("%d of %d requests failed at %d%% of the requests: %.1f%%, where %s is allowed",
			c.Errors, c.Requests, c.Weight, 100*rate, percent(plan.errors))
	}
	if plan.p95 > 0 && c.P95 != nil && c.P95.Duration > plan.p95 {
		return v1alpha1.ReasonAnalysis, fmt.Sprintf("95 of 100 requests were answered within %s at %d%% of the requests, where %s is allowed", c.P95.Duration, c.Weight, plan.p95)
	}
	return "", ""
}

func percent(share float64) string { return strconv.FormatFloat(100*share, 'f', -1, 64) + "%" }

// canaryReplicas is how many pods a canary needs for its share of the requests.
func canaryReplicas(stable, weight int32) int32 {
	return max((max(stable, 1)*weight+99)/100, 1)
}
