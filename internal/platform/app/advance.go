package app

import (
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/app/render"
)

// situation is all that advance looks at.
type situation struct {
	now         time.Time
	app         *v1alpha1.App
	history     history
	unset       []string // secrets of the release that is on its way and that are not set
	deployments map[string]*appsv1.Deployment
	jobs        map[string]*batchv1.Job
	pods        []corev1.Pod
	routing     string
	counts      *Counts // of the canary's Service; nil: nobody counts
	blind       bool    // somebody does, and does not answer for the moment
	stopped     bool
}

// step is what becomes of the release that is on its way.
type step struct {
	status v1alpha1.ReleaseStatus
	job    *batchv1.Job  // to make before the status says so
	ended  string        // a Job to end
	log    verdict       // whose last lines belong into the status
	wait   time.Duration // look again after it
}

// fail ends a release that will not be live.
func (s *step) fail(now time.Time, phase string, v verdict) {
	s.status.Phase, s.status.Reason, s.status.Message, s.log = phase, v.reason, v.message, v
	s.status.Finished = stamp(now)
}

func stamp(now time.Time) *metav1.Time { return &metav1.Time{Time: now.Truncate(time.Second)} }

// advance moves the release that is on its way as far as it gets. It takes one phase at a time: the next look takes the
// next.
func advance(s situation) step {
	release := s.history.next
	out := step{status: *release.Status.DeepCopy()}
	if out.status.Started == nil {
		out.status.Started = stamp(s.now)
	}
	if release.Spec.Intent == v1alpha1.IntentAbort && release.Status.Phase != v1alpha1.ReleaseCanary {
		out.fail(s.now, v1alpha1.ReleaseAborted, verdict{reason: v1alpha1.ReasonAborted, message: "somebody aborted it"})
		out.ended = render.ReleaseJobName(s.app.Name, release.Spec.Number)
		return out
	}
	switch release.Status.Phase {
	case v1alpha1.ReleaseCommanding:
		s.command(&out)
	case v1alpha1.ReleaseRolling:
		s.roll(&out)
	case v1alpha1.ReleaseCanary:
		s.canary(&out)
	default:
		s.await(&out)
	}
	return out
}

// await waits for what a release needs before it begins.
func (s situation) await(out *step) {
	release := s.history.next
	out.status.Phase = v1alpha1.ReleaseWaiting
	out.status.Reason, out.status.Message = s.missing()
	if out.status.Reason != "" || out.status.Message != "" {
		out.wait = 5 * time.Second
		return
	}
	if returned := s.history.returnsTo(release); returned != nil {
		out.status.Warning = s.history.rollbackWarning(returned)
		s.begin(out) // its command ran when it was released first
		return
	}
	if release.Spec.Content.Release == nil {
		s.begin(out)
		return
	}
	out.status.Phase = v1alpha1.ReleaseCommanding
	if s.jobs[render.ReleaseJobName(s.app.Name, release.Spec.Number)] == nil {
		out.job = render.ReleaseJob(s.app, version(release))
	}
}

// missing says what a release waits for; both are empty if it can begin.
func (s situation) missing() (reason, message string) {
	release := s.history.next
	if len(s.unset) > 0 {
		return v1alpha1.ReasonSecretMissing, fmt.Sprintf("secret %s is not set; set it with: gantry secret set %s", strings.Join(s.unset, ", "), s.unset[0])
	}
	for _, name := range sortedKeys(release.Spec.Content.Addons) {
		status := s.app.Status.Addons[name]
		if status.Ready {
			continue
		}
		message := fmt.Sprintf("addon %s (%s) is not ready yet", name, release.Spec.Content.Addons[name].Type)
		if status.Message != "" {
			message += ": " + status.Message
		}
		return v1alpha1.ReasonAddonNotReady, message
	}
	for _, name := range sortedKeys(s.jobs) {
		job := s.jobs[name]
		if job.Labels[v1alpha1.LabelProcess] == render.ProcessRelease && name != render.ReleaseJobName(s.app.Name, release.Spec.Number) && !jobEnded(job) {
			return "", fmt.Sprintf("the release command of v%s still runs", job.Labels[v1alpha1.LabelRelease])
		}
	}
	return "", ""
}

// begin gives a release its first pods.
func (s situation) begin(out *step) {
	out.status.Reason, out.status.Message = "", ""
	out.status.Phase = v1alpha1.ReleaseRolling
	out.wait = time.Second
	content := &s.history.next.Spec.Content
	if s.history.live != nil && !render.PortSaid(content, v1alpha1.WebProcess) { // it probably listens where the one before did
		if port := s.history.live.Status.Progress[v1alpha1.WebProcess].Port; port > 0 {
			setProgress(&out.status, v1alpha1.WebProcess, v1alpha1.ProcessStatus{Port: port})
		}
	}
	if rollout := s.app.Spec.Rollout; rollout == nil || rollout.Strategy != v1alpha1.RolloutCanary || s.history.live == nil || s.stopped {
		return
	}
	if s.history.returnsTo(s.history.next) != nil {
		return // it served before, and who goes back to it wants it now
	}
	before, ok := render.Processes(&s.history.live.Spec.Content)[v1alpha1.WebProcess]
	now, too := render.Processes(content)[v1alpha1.WebProcess]
	switch {
	case !ok || !too || before.Schedule != "" || now.Schedule != "":
	case len(now.Volumes) > 0:
		out.status.Warning = "rolled out at once: a process with volumes cannot run beside its canary"
	case s.routing != render.RouteGateway:
		out.status.Warning = "rolled out at once: this cluster has no Gateway API that could divide requests"
	default:
		out.status.Phase = v1alpha1.ReleaseCanary
	}
}

// command waits for the release command.
func (s situation) command(out *step) {
	release := s.history.next
	name := render.ReleaseJobName(s.app.Name, release.Spec.Number)
	job := s.jobs[name]
	if job == nil {
		out.fail(s.now, v1alpha1.ReleaseFailed, verdict{reason: v1alpha1.ReasonCommandFailed,
			message: "the Job of the release command was deleted; whether the command ended is not known"})
		return
	}
	pod := s.jobPod(name)
	if done, cause := jobOutcome(job); done {
		if cause == nil {
			s.begin(out)
			return
		}
		out.fail(s.now, v1alpha1.ReleaseFailed, commandVerdict("the release command", cause, pod))
		return
	}
	out.wait = 5 * time.Second
	if pod == nil {
		return
	}
	if v := judgePod(judged{name: "the release command"}, pod, s.now); v.bad() {
		if v.reason == v1alpha1.ReasonCrashing {
			v.reason = v1alpha1.ReasonCommandFailed
		}
		out.fail(s.now, v1alpha1.ReleaseFailed, v)
		out.ended = name
	}
}

// commandVerdict says how a command failed.
func commandVerdict(what string, cause *batchv1.JobCondition, pod *corev1.Pod) verdict {
	v := verdict{reason: v1alpha1.ReasonCommandFailed, message: what + " failed: " + cause.Message}
	if cause.Reason == batchv1.JobReasonDeadlineExceeded {
		v.message = what + " took longer than it may"
	}
	if pod == nil {
		return v
	}
	v.pod = pod.Name
	if status := containerStatus(pod); status != nil && status.State.Terminated != nil && cause.Reason != batchv1.JobReasonDeadlineExceeded {
		v.message = what + " ended " + ended(status.State.Terminated)
	}
	return v
}

// jobOutcome says whether a Job ended, and why it failed.
func jobOutcome(job *batchv1.Job) (done bool, cause *batchv1.JobCondition) {
	for i := range job.Status.Conditions {
		cond := &job.Status.Conditions[i]
		switch {
		case cond.Status != corev1.ConditionTrue:
		case cond.Type == batchv1.JobComplete:
			return true, nil
		case cond.Type == batchv1.JobFailed:
			return true, cond
		}
	}
	return false, nil
}

func jobEnded(job *batchv1.Job) bool {
	done, _ := jobOutcome(job)
	return done
}

// jobPod is the pod of a Job.
func (s situation) jobPod(job string) *corev1.Pod {
	for i := range s.pods {
		if s.pods[i].Labels[batchv1.JobNameLabel] == job {
			return &s.pods[i]
		}
	}
	return nil
}

// releasePods are the pods of a process that run the release that is on its way.
func (s situation) releasePods(process, track string) (out []corev1.Pod) {
	number := fmt.Sprint(s.history.next.Spec.Number)
	for i := range s.pods {
		labels := s.pods[i].Labels
		if labels[v1alpha1.LabelProcess] == process && labels[v1alpha1.LabelTrack] == track && labels[v1alpha1.LabelRelease] == number {
			out = append(out, s.pods[i])
		}
	}
	return out
}

// judge says why a process will not become well, and notes where it was found to listen.
func (s situation) judge(out *step, name, track string) verdict {
	v := version(s.history.next)
	process := render.Processes(v.Content)[name]
	pods := s.releasePods(name, track)
	j := judged{name: name, process: process, port: render.Port(v, name), said: render.PortSaid(v.Content, name)}
	progress := out.status.Progress[name]
	if found := foundPort(pods); found > 0 && j.port > 0 && !j.said && found != j.port {
		progress.Port, j.port = found, found
	}
	if progress.Port == 0 {
		progress.Port = j.port
	}
	setProgress(&out.status, name, progress)
	return judgePods(j, pods, s.now)
}

func setProgress(status *v1alpha1.ReleaseStatus, name string, progress v1alpha1.ProcessStatus) {
	if status.Progress == nil {
		status.Progress = map[string]v1alpha1.ProcessStatus{}
	}
	status.Progress[name] = progress
}

// roll waits until every process runs the release, or one cannot.
func (s situation) roll(out *step) {
	release := s.history.next
	processes := render.Processes(&release.Spec.Content)
	complete := true
	out.wait = time.Second
	for _, name := range sortedKeys(processes) {
		if processes[name].Schedule != "" {
			continue
		}
		if v := s.judge(out, name, render.TrackStable); v.bad() {
			out.fail(s.now, v1alpha1.ReleaseFailed, v)
			return
		}
		progress := out.status.Progress[name]
		d := s.deployments[v1alpha1.ObjectName(s.app.Name, name)]
		if d != nil && d.Spec.Template.Labels[v1alpha1.LabelRelease] == fmt.Sprint(release.Spec.Number) {
			progress.Desired, progress.Ready = desired(d), d.Status.AvailableReplicas
			if d.Status.UpdatedReplicas < progress.Ready {
				progress.Ready = d.Status.UpdatedReplicas
			}
			complete = complete && rolledOut(d) && templatePort(d) == progress.Port
		} else {
			complete = false
		}
		setProgress(&out.status, name, progress)
	}
	if complete {
		out.status.Phase, out.status.Reason, out.status.Message = v1alpha1.ReleaseLive, "", ""
		out.status.Finished = stamp(s.now)
		out.wait = 0
	}
}

// templatePort is the port of a Deployment's template; 0 is none.
func templatePort(d *appsv1.Deployment) int32 {
	if c := d.Spec.Template.Spec.Containers; len(c) > 0 && len(c[0].Ports) > 0 {
		return c[0].Ports[0].ContainerPort
	}
	return 0
}

func desired(d *appsv1.Deployment) int32 {
	if d.Spec.Replicas == nil {
		return 1
	}
	return *d.Spec.Replicas
}

// rolledOut says whether all pods of a Deployment are of its template and available.
func rolledOut(d *appsv1.Deployment) bool {
	n := desired(d)
	return d.Status.ObservedGeneration >= d.Generation && d.Status.UpdatedReplicas == n && d.Status.Replicas == n && d.Status.AvailableReplicas >= n
}

// canary takes a release through the steps of its canary.
func (s situation) canary(out *step) {
	release := s.history.next
	plan := rolloutOf(s.app.Spec.Rollout)
	name := render.CanaryName(s.app.Name)
	d := s.deployments[name]
	o := observed{now: s.now, counts: s.counts, blind: s.blind, intent: release.Spec.Intent, step: release.Spec.Step}
	o.ready = d != nil && rolledOut(d) && d.Spec.Template.Labels[v1alpha1.LabelRelease] == fmt.Sprint(release.Spec.Number)
	bad := s.judge(out, v1alpha1.WebProcess, render.TrackCanary)
	o.ready = o.ready && templatePort(d) == out.status.Progress[v1alpha1.WebProcess].Port
	for _, pod := range s.releasePods(v1alpha1.WebProcess, render.TrackCanary) {
		if out.status.Canary != nil && !out.status.Canary.Since.IsZero() {
			o.restarts += endsOf(&pod)
		}
	}
	if d != nil {
		progress := out.status.Progress[v1alpha1.WebProcess]
		progress.Desired, progress.Ready = desired(d), d.Status.AvailableReplicas
		setProgress(&out.status, v1alpha1.WebProcess, progress)
	}
	if bad.bad() {
		out.fail(s.now, v1alpha1.ReleaseFailed, bad)
		return
	}
	if s.counts == nil && !s.blind {
		out.status.Warning = "nobody counts requests here: the canary is judged by time, restarts and its test only"
	}
	testPod := s.test(out, plan, &o)
	next, move, reason, message, wait := stepCanary(out.status.Canary, plan, o)
	out.status.Canary, out.wait = next, wait
	switch move {
	case canaryAbort:
		out.fail(s.now, v1alpha1.ReleaseAborted, verdict{reason: reason, message: message, pod: testPod})
	case canaryDone:
		out.status.Phase, out.wait = v1alpha1.ReleaseRolling, time.Second
	}
}

// test looks at the test of the step, and makes it. It returns the pod of a test that failed.
func (s situation) test(out *step, plan plannedRollout, o *observed) (pod string) {
	at := out.status.Canary
	if !plan.test || at == nil || at.Since.IsZero() {
		return ""
	}
	release := s.history.next
	name := render.TestJobName(s.app.Name, release.Spec.Number, at.Step)
	job := s.jobs[name]
	if job == nil {
		v := version(release)
		v.Content = v.Content.DeepCopy()
		v.Content.Rollout = s.app.Spec.Rollout
		out.job, o.test = render.TestJob(s.app, v, at.Step), testRunning
		return ""
	}
	done, cause := jobOutcome(job)
	switch {
	case !done:
		o.test = testRunning
	case cause == nil:
		o.test = testPassed
	default:
		o.test = testFailed
		if p := s.jobPod(name); p != nil {
			return p.Name
		}
	}
	return ""
}
