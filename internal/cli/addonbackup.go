package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
)

func (a *app) addonBackupNowCommand() *cobra.Command {
	f := &appFlags{}
	var wait time.Duration
	cmd := f.register(&cobra.Command{
		Use: "now NAME", Short: "Back an addon up at once, and wait for it", Args: exactArgs("the addon's NAME"),
		Long: "Make a backup now, as the schedule does it: it counts among the last ones that are kept, and \"addon load --backup\" loads it.",
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.addonTarget(cmd, f, args[0])
			if err != nil {
				return err
			}
			if t.addon.Backup == "" {
				return usage("%s is not backed up: say when in gantry.yaml, as in backup: daily, or take a dump: gantry addon dump %s > FILE", t.name, t.name)
			}
			return a.addonBackupNow(cmd, t, wait)
		},
	})
	cmd.Flags().DurationVar(&wait, "timeout", 6*time.Hour, "how long to wait")
	return cmd
}

// addonBackupNow runs the Job that the schedule would run.
func (a *app) addonBackupNow(cmd *cobra.Command, t *addonTarget, wait time.Duration) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	name := v1alpha1.BackupName(t.key.Name, t.name)
	schedule := &batchv1.CronJob{}
	err := t.cluster.Client.Get(ctx, types.NamespacedName{Namespace: t.key.Namespace, Name: name}, schedule)
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("the backups of %s are not set up yet: they begin with the release that asks for them", t.name)
	}
	if err != nil {
		return deploy.Reached("look for the backups of "+t.name, err)
	}
	job := backupJob(schedule, time.Now())
	a.announce(t.appTarget, name)
	if err := t.cluster.Client.Create(ctx, job); err != nil {
		return deploy.Reached("begin the backup", err)
	}
	begun, stopped := time.Now(), &batchv1.JobCondition{}
	var done bool
	awaited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err = t.cluster.Await(awaited, t.key.Namespace, func() (bool, error) {
		if err := t.cluster.Client.Get(awaited, keyOf(job), job); err != nil {
			return false, err
		}
		for i := range job.Status.Conditions {
			c := &job.Status.Conditions[i]
			if c.Status == corev1.ConditionTrue && (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) {
				stopped, done = c, c.Type == batchv1.JobComplete
				return true, nil
			}
		}
		return false, nil
	}, &batchv1.JobList{})
	switch {
	case err != nil && ctx.Err() != nil:
		return withCode(exitTimeout, fmt.Errorf("the backup goes on without you; see \"gantry addon backup ls %s\"", t.name))
	case err != nil && awaited.Err() != nil:
		return withCode(exitTimeout, fmt.Errorf("the backup still runs after %s; see \"gantry addon backup ls %s\"", wait, t.name))
	case err != nil:
		return err
	case !done:
		return fmt.Errorf("the backup failed: %s\n→ see what it said: gantry logs -a %s", strings.TrimSpace(stopped.Message), t.key.Name)
	}
	var text strings.Builder
	if err := t.script(ctx, `ls -1r /backup | head -n 1`, nil, &text, a.env.Stderr); err != nil {
		return fmt.Errorf("see what was written: %w", err)
	}
	file := strings.TrimSpace(text.String())
	if a.json {
		return a.printJSON(map[string]string{"name": file})
	}
	return a.printf("%s is backed up: %s (%s)\n", t.name, file, took(time.Since(begun)))
}

// backupJob is what the schedule makes, by hand.
func backupJob(schedule *batchv1.CronJob, now time.Time) *batchv1.Job {
	template := schedule.Spec.JobTemplate.DeepCopy()
	annotations := template.Annotations
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations["cronjob.kubernetes.io/instantiate"] = "manual"
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: schedule.Namespace, Name: fmt.Sprintf("%s-%d", schedule.Name, now.Unix()), Labels: template.Labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: batchv1.SchemeGroupVersion.String(), Kind: "CronJob", Name: schedule.Name, UID: schedule.UID, Controller: new(true)}},
		},
		Spec: template.Spec,
	}
}
