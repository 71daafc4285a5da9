package workload

import (
	"fmt"
	"maps"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// rollback answers the annotation by which clients of old APIs ask for an earlier template.
type rollback struct {
	d                     *appsv1.Deployment // to be written: without the request, with the template
	kind, reason, message string             // of the event
}

// requestedRevision is the revision asked for, 0 for the one before; ok is false if nothing
// readable is.
func requestedRevision(d *appsv1.Deployment) (revision int64, ok bool) {
	revision, err := strconv.ParseInt(d.Annotations[appsv1.DeprecatedRollbackTo], 10, 64)
	return revision, err == nil
}

// rollBack plans to put an earlier template back.
func (p *planner) rollBack(revision int64) {
	p.syncRevision(true)
	next := p.stored.DeepCopy()
	delete(next.Annotations, appsv1.DeprecatedRollbackTo)
	p.plan.rollback = &rollback{
		d: next, kind: corev1.EventTypeWarning, reason: "DeploymentRollbackRevisionNotFound", message: "Unable to find the revision to rollback to.",
	}
	if revision == 0 {
		if revision = p.revisionBefore(); revision == 0 {
			p.plan.rollback.message = "Unable to find last revision."
			return
		}
	}
	for _, m := range p.all() {
		if number, err := strconv.ParseInt(m.annotations[annotationRevision], 10, 64); err != nil || number != revision {
			continue
		}
		if sameTemplate(&p.d.Spec.Template, &m.rs.Spec.Template) {
			p.plan.rollback.reason = "DeploymentRollbackTemplateUnchanged"
			p.plan.rollback.message = fmt.Sprintf("The rollback revision contains the same template as current deployment %q", p.d.Name)
			return
		}
		next.Spec.Template = *m.rs.Spec.Template.DeepCopy()
		next.Spec.Template.Labels = withoutHash(next.Spec.Template.Labels)
		takeAnnotations(next, m.annotations)
		p.plan.rollback.kind, p.plan.rollback.reason = corev1.EventTypeNormal, "DeploymentRollback"
		p.plan.rollback.message = fmt.Sprintf("Rolled back deployment %q to revision %d", p.d.Name, revision)
		return
	}
}

// revisionBefore is the second highest revision, 0 if there is none.
func (p *planner) revisionBefore() int64 {
	var highest, second int64
	for _, m := range p.all() {
		number, err := strconv.ParseInt(m.annotations[annotationRevision], 10, 64)
		switch {
		case err != nil:
		case number >= highest:
			highest, second = number, highest
		default:
			second = max(second, number)
		}
	}
	return second
}

// takeAnnotations gives a Deployment the annotations it had when a ReplicaSet was its
// newest, such as the cause of the change.
func takeAnnotations(d *appsv1.Deployment, from map[string]string) {
	kept := maps.Clone(d.Annotations)
	maps.DeleteFunc(kept, func(key, _ string) bool { return !skipAnnotation(key) })
	for key, value := range from {
		if !skipAnnotation(key) {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[key] = value
		}
	}
	d.Annotations = kept
}
