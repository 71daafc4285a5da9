package deploy

import (
	"fmt"

	"gantry.dev/gantry/api/v1alpha1"
)

// RollbackTarget picks the release to go back to: the number's, or with 0 the newest that served before the one that serves, or that
// serves while a later one failed.
func RollbackTarget(releases []v1alpha1.Release, number int64) (*v1alpha1.Release, error) {
	latest := latestOf(releases)
	if latest == nil {
		return nil, failure(CodeUsage, "NoRelease", "there is no release yet")
	}
	for i := len(releases) - 1; i >= 0; i-- {
		r := &releases[i]
		switch {
		case number != 0 && r.Spec.Number != number:
			continue
		case number != 0:
			return r, nil
		case r == latest:
			continue
		}
		if r.Status.Phase == v1alpha1.ReleaseReplaced || r.Status.Phase == v1alpha1.ReleaseLive {
			return r, nil
		}
	}
	if number != 0 {
		return nil, failure(CodeUsage, "NoRelease", "there is no release v%d", number).try("gantry release ls")
	}
	return nil, failure(CodeUsage, "NoRelease", "no earlier release served, so there is none to go back to").try("gantry release ls")
}

// RollBack makes an App what a release had: image, environment and processes. What acts at once stays as it is now.
func RollBack(app *v1alpha1.App, to *v1alpha1.Release) {
	now := app.Spec
	app.Spec = *to.Spec.Content.DeepCopy()
	app.Spec.Rollout = now.Rollout
	app.Spec.Domains, app.Spec.Expires, app.Spec.Restarts, app.Spec.Suspended = now.Domains, now.Expires, now.Restarts, now.Suspended
	for name := range app.Spec.Addons { // data is not rolled back, nor is what holds it taken away
		if addon, there := now.Addons[name]; there {
			app.Spec.Addons[name] = addon
		}
	}
	keepAddons(&app.Spec, now.Addons, func(v1alpha1.Addon) bool { return true })
	for name, process := range app.Spec.Processes {
		if current, same := now.Processes[name]; same {
			process.Scale = current.Scale
			app.Spec.Processes[name] = process
		}
	}
	if app.Spec.Source == nil {
		app.Spec.Source = &v1alpha1.Source{}
	}
	app.Spec.Source.ID = newID()
	app.Spec.Source.Reason = fmt.Sprintf("rollback to v%d", to.Spec.Number)
}

// Touch gives an App's next release an ID of its own and a reason, so that who changed it can follow it.
func Touch(app *v1alpha1.App, reason string) {
	if app.Spec.Source == nil {
		app.Spec.Source = &v1alpha1.Source{}
	}
	app.Spec.Source.ID, app.Spec.Source.Reason = newID(), reason
}
