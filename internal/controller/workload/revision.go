package workload

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Annotations that a Deployment and its ReplicaSets carry; kubectl rollout reads them.
const (
	annotationRevision        = "deployment.kubernetes.io/revision"
	annotationRevisionHistory = "deployment.kubernetes.io/revision-history"
	annotationDesired         = "deployment.kubernetes.io/desired-replicas"
	annotationMax             = "deployment.kubernetes.io/max-replicas"
)

// revisionHistoryBytes bounds the list of revisions a ReplicaSet has served.
const revisionHistoryBytes = 2000

// member is a ReplicaSet of a Deployment while a pass plans: rs is what is stored and
// read-only, the other fields are what the plan wants it to say.
type member struct {
	rs          *appsv1.ReplicaSet
	replicas    int32
	minReady    int32
	annotations map[string]string // replaced, never changed in place
	stored      bool              // false for one that is yet to be created
}

func newMember(rs *appsv1.ReplicaSet) *member {
	return &member{
		rs: rs, replicas: replicasOf(rs), minReady: rs.Spec.MinReadySeconds,
		annotations: rs.Annotations, stored: true,
	}
}

// changed says whether the plan differs from what is stored.
func (m *member) changed() bool {
	return m.replicas != replicasOf(m.rs) || m.minReady != m.rs.Spec.MinReadySeconds || !maps.Equal(m.annotations, m.rs.Annotations)
}

// wanted is the ReplicaSet the plan wants.
func (m *member) wanted() *appsv1.ReplicaSet {
	rs := m.rs.DeepCopy()
	rs.Spec.Replicas = &m.replicas
	rs.Spec.MinReadySeconds = m.minReady
	rs.Annotations = m.annotations
	return rs
}

func (m *member) annotate(key, value string) bool {
	if have, ok := m.annotations[key]; ok && have == value {
		return false
	}
	m.annotations = maps.Clone(m.annotations)
	if m.annotations == nil {
		m.annotations = map[string]string{}
	}
	m.annotations[key] = value
	return true
}

// annotateSize records what the Deployment wanted when this size was chosen.
func (m *member) annotateSize(d *appsv1.Deployment) {
	m.annotate(annotationDesired, strconv.Itoa(int(desired(d))))
	m.annotate(annotationMax, strconv.Itoa(int(desired(d)+maxSurge(d))))
}

// count reads a size annotation.
func (m *member) count(key string) (int32, bool) {
	value, err := strconv.ParseUint(m.annotations[key], 10, 31)
	if err != nil {
		return 0, false
	}
	return int32(value), true
}

// revisionOf is 0 for a ReplicaSet that has none.
func revisionOf(rs *appsv1.ReplicaSet) (int64, error) {
	text, ok := rs.Annotations[annotationRevision]
	if !ok {
		return 0, nil
	}
	return strconv.ParseInt(text, 10, 64)
}

func maxRevision(sets []*member) int64 {
	var highest int64
	for _, m := range sets {
		if revision, err := revisionOf(m.rs); err == nil {
			highest = max(highest, revision)
		}
	}
	return highest
}

// skipAnnotation says which of a Deployment's annotations its ReplicaSets do not get.
func skipAnnotation(key string) bool {
	switch key {
	case corev1.LastAppliedConfigAnnotation, annotationRevision, annotationRevisionHistory,
		annotationDesired, annotationMax, appsv1.DeprecatedRollbackTo:
		return true
	}
	return false
}

// annotateNew gives the newest ReplicaSet the Deployment's annotations and its revision,
// keeping a list of the revisions it served before a rollback made it the newest again.
func annotateNew(d *appsv1.Deployment, m *member, revision int64) {
	for _, key := range slices.Sorted(maps.Keys(d.Annotations)) {
		if !skipAnnotation(key) {
			m.annotate(key, d.Annotations[key])
		}
	}
	text, had := m.annotations[annotationRevision]
	before, err := strconv.ParseInt(text, 10, 64)
	if err != nil && text != "" {
		return // somebody else's value: leave it
	}
	if before >= revision {
		return
	}
	m.annotate(annotationRevision, strconv.FormatInt(revision, 10))
	if had {
		if history, ok := appendRevision(m.annotations[annotationRevisionHistory], text); ok {
			m.annotate(annotationRevisionHistory, history)
		}
	}
}

// appendRevision adds a revision to a list and drops the oldest ones that no longer fit.
func appendRevision(history, revision string) (string, bool) {
	if history == "" {
		return revision, true
	}
	revisions := strings.Split(history, ",")
	size := len(history) + len(revision) + 1
	for size > revisionHistoryBytes && len(revisions) > 0 {
		size -= len(revisions[0]) + 1
		revisions = revisions[1:]
	}
	if size > revisionHistoryBytes {
		return "", false
	}
	return strings.Join(append(revisions, revision), ","), true
}

// sameTemplate compares templates without the hash label that a ReplicaSet's has.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	left, right := *a, *b
	left.Labels, right.Labels = withoutHash(a.Labels), withoutHash(b.Labels)
	return apiequality.Semantic.DeepEqual(&left, &right)
}

func withoutHash(labels map[string]string) map[string]string {
	if _, ok := labels[appsv1.DefaultDeploymentUniqueLabelKey]; !ok {
		return labels
	}
	labels = maps.Clone(labels)
	delete(labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return labels
}

// desired is the Deployment's number of replicas.
func desired(d *appsv1.Deployment) int32 {
	if d.Spec.Replicas == nil {
		return 1 // the API's default
	}
	return *d.Spec.Replicas
}

func rolling(d *appsv1.Deployment) bool {
	return d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType
}

// fenceposts resolves maxSurge (rounded up) and maxUnavailable (rounded down). If both
// come to nothing one pod may be unavailable, or no rollout could ever move.
func fenceposts(d *appsv1.Deployment) (surge, unavailable int32) {
	if !rolling(d) || d.Spec.Strategy.RollingUpdate == nil {
		return 0, 0
	}
	zero := intstr.FromInt32(0)
	total := int(desired(d))
	resolve := func(value *intstr.IntOrString, up bool) int32 {
		n, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(value, zero), total, up)
		if err != nil {
			return 0 // validation lets no such value in
		}
		return int32(n)
	}
	surge = resolve(d.Spec.Strategy.RollingUpdate.MaxSurge, true)
	unavailable = resolve(d.Spec.Strategy.RollingUpdate.MaxUnavailable, false)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

func maxSurge(d *appsv1.Deployment) int32 {
	surge, _ := fenceposts(d)
	return surge
}

func maxUnavailable(d *appsv1.Deployment) int32 {
	if !rolling(d) || desired(d) == 0 {
		return 0
	}
	_, unavailable := fenceposts(d)
	return min(unavailable, desired(d))
}

func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}
