package render

import (
	"cmp"
	"fmt"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
)

// Processes that an application does not name itself, values of v1alpha1.LabelProcess.
const (
	ProcessRelease = "release" // the release command
	ProcessTest    = "test"    // a canary's test
)

// DefaultCommandTimeout is how long a release command may take.
const DefaultCommandTimeout = 10 * time.Minute

// testTimeout is how long a canary's test may take.
const testTimeout = 5 * time.Minute

// cutOffAnnotation says what becomes of a pod whose machine is cut off (ADR 39).
const cutOffAnnotation = "gantry.dev/when-cut-off"

// cronJob is the CronJob of a process that runs at its times.
func (in Input) cronJob(name string, version *Version, process v1alpha1.Process) *batchv1.CronJob {
	template := in.template(name, TrackStable, version, process)
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	out := &batchv1.CronJob{
		TypeMeta:   metav1.TypeMeta{APIVersion: "batch/v1", Kind: "CronJob"},
		ObjectMeta: in.meta(v1alpha1.ObjectName(in.App.Name, name), name),
		Spec: batchv1.CronJobSpec{
			Schedule: process.Schedule, TimeZone: new(cmp.Or(process.Timezone, "Etc/UTC")), ConcurrencyPolicy: batchv1.ForbidConcurrent,
			Suspend:                    new(in.Stopped),
			SuccessfulJobsHistoryLimit: new(int32(3)), FailedJobsHistoryLimit: new(int32(3)),
			JobTemplate: batchv1.JobTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1alpha1.LabelApp: in.App.Name, v1alpha1.LabelProcess: name, LabelManagedBy: ManagedBy}},
				Spec:       batchv1.JobSpec{BackoffLimit: new(int32(0)), Template: template},
			},
		},
	}
	return out
}

// ReleaseJobName is the name of the Job that runs the command of a release: one for each, so it runs once.
func ReleaseJobName(app string, number int64) string { return ReleaseName(app, number) + "-release" }

// ReleaseJob runs the command of a release once. When its machine dies or is drained meanwhile it is run anew elsewhere, after the
// first run has certainly ended: two of them never run side by side.
func ReleaseJob(app *v1alpha1.App, version *Version) *batchv1.Job {
	command := version.Content.Release
	timeout := DefaultCommandTimeout
	if command.Timeout != nil && command.Timeout.Duration > 0 {
		timeout = command.Timeout.Duration
	}
	return Input{App: app}.job(ReleaseJobName(app.Name, version.Number), ProcessRelease, command.Command, timeout, version)
}

// TestJobName is the name of the Job that tests a step of a canary.
func TestJobName(app string, number int64, step int32) string {
	return fmt.Sprintf("%s-test-%d", ReleaseName(app, number), step)
}

// TestJob runs the test of a step of a canary. GANTRY_URL in its environment is where the canary answers.
func TestJob(app *v1alpha1.App, version *Version, step int32) *batchv1.Job {
	job := Input{App: app}.job(TestJobName(app.Name, version.Number, step), ProcessTest, version.Content.Rollout.Test, testTimeout, version)
	c := &job.Spec.Template.Spec.Containers[0]
	c.Env = append(c.Env, corev1.EnvVar{Name: "GANTRY_URL", Value: "http://" + CanaryName(app.Name)})
	return job
}

func (in Input) job(name, process, command string, timeout time.Duration, version *Version) *batchv1.Job {
	container := in.container(version, v1alpha1.Process{Command: command}, 0)
	spec := in.podSpec(version)
	spec.RestartPolicy = corev1.RestartPolicyNever
	spec.Containers = []corev1.Container{container}
	meta := in.meta(name, process)
	meta.Labels[v1alpha1.LabelRelease] = strconv.FormatInt(version.Number, 10)
	return &batchv1.Job{
		TypeMeta:   metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: meta,
		Spec: batchv1.JobSpec{
			BackoffLimit: new(int32(0)), ActiveDeadlineSeconds: new(max(int64(timeout/time.Second), 1)),
			PodFailurePolicy: &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
				Action:          batchv1.PodFailurePolicyActionIgnore,
				OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}},
			}}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{
				v1alpha1.LabelApp: in.App.Name, v1alpha1.LabelProcess: process, LabelManagedBy: ManagedBy,
				v1alpha1.LabelRelease: strconv.FormatInt(version.Number, 10),
			}, Annotations: map[string]string{cutOffAnnotation: "fence"}}, Spec: spec},
		},
	}
}
