package scheduler

import (
	"hash/maphash"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// template is the pods that are interchangeable for the scheduler: of one shape and
// controller, in one namespace, with equal labels and spread constraints.
type template struct {
	*shape
	sum   uint64
	pod   *corev1.Pod // the first pod seen, read-only
	pods  int         // placed or waiting pods that use it
	owner types.UID   // of the controller; may be empty

	spots   spots   // where its pods are
	watches []watch // the views that its pods count in
	plan    *plan   // nil unless pods of it are being placed

	failedAt   uint64    // State.freed when no node was found last
	failedWith uint64    // State.added then; pods that come may help those that are social
	social     bool      // where the pods fit depends on where others are
	failure    *FitError // what was found then
}

// template returns the template of a pod, making it if no other pod has it.
func (s *State) template(pod *corev1.Pod) *template {
	shapeSum, sum := fingerprint(s.seed, pod)
	for _, t := range s.templates[sum] {
		if s.sameTemplate(t, pod) {
			return t
		}
	}
	t := s.newTemplate(pod, s.shape(pod, shapeSum))
	t.sum = sum
	s.templates[sum] = append(s.templates[sum], t)
	t.shape.templates = append(t.shape.templates, t)
	space := s.spaces[pod.Namespace]
	if space == nil {
		space = map[*template]struct{}{}
		s.spaces[pod.Namespace] = space
	}
	space[t] = struct{}{}
	s.admit(t)
	return t
}

// shape returns the shape of a pod, making it if no other pod has it.
func (s *State) shape(pod *corev1.Pod, sum uint64) *shape {
	for _, h := range s.shapes[sum] {
		if h.profile == s.profileOf(pod) && sameShape(h.pod, pod) {
			return h
		}
	}
	h := s.newShape(pod, sum)
	s.shapes[sum] = append(s.shapes[sum], h)
	if h.terms == nil {
		return h
	}
	s.holders = append(s.holders, h)
	if h.terms.needsNamespaces() {
		s.wantsNamespaces = true
	}
	for _, t := range s.planned {
		if !t.plan.stale && s.touches(h, t, nil, nil) {
			t.plan.stale = true
		}
	}
	return h
}

// newTemplate is a template that nothing refers to yet.
func (s *State) newTemplate(pod *corev1.Pod, h *shape) *template {
	t := &template{shape: h, pod: pod}
	if by := metav1.GetControllerOfNoCopy(pod); by != nil {
		t.owner = by.UID
	}
	return t
}

// sameTemplate says whether a template is that of a pod.
func (s *State) sameTemplate(t *template, pod *corev1.Pod) bool {
	var owner types.UID
	if by := metav1.GetControllerOfNoCopy(pod); by != nil {
		owner = by.UID
	}
	return t.owner == owner && t.pod.Namespace == pod.Namespace && mapsEqual(t.pod.Labels, pod.Labels) &&
		t.profile == s.profileOf(pod) && preempts(t.pod) == preempts(pod) &&
		sameConstraints(t.pod.Spec.TopologySpreadConstraints, pod.Spec.TopologySpreadConstraints) && sameShape(t.shape.pod, pod) && sameClaims(t.pod, pod)
}

// preempts says whether a pod may evict others.
func preempts(pod *corev1.Pod) bool {
	return pod.Spec.PreemptionPolicy == nil || *pod.Spec.PreemptionPolicy != corev1.PreemptNever
}

// SetProfiles says what is configured, before anything else is known.
func (s *State) SetProfiles(profiles ...*Profile) error {
	s.profiles = map[string]*Profile{}
	for _, p := range profiles {
		if err := p.prepare(); err != nil {
			return err
		}
		s.profiles[p.Name] = p
	}
	return nil
}

func (s *State) profileOf(pod *corev1.Pod) *Profile {
	if p := s.profiles[pod.Spec.SchedulerName]; p != nil {
		return p
	}
	return s.fallback
}

// ref is template for a pod that waits; unref ends the use.
func (s *State) ref(pod *corev1.Pod) *template {
	t := s.template(pod)
	t.pods++
	return t
}

// unref drops one use of a template.
func (s *State) unref(t *template) {
	if t.pods--; t.pods > 0 {
		return
	}
	same := slices.DeleteFunc(s.templates[t.sum], func(other *template) bool { return other == t })
	if len(same) == 0 {
		delete(s.templates, t.sum)
	} else {
		s.templates[t.sum] = same
	}
	if delete(s.spaces[t.pod.Namespace], t); len(s.spaces[t.pod.Namespace]) == 0 {
		delete(s.spaces, t.pod.Namespace)
	}
	s.unplan(t)
	s.dismiss(t)
	h := t.shape
	h.templates = slices.DeleteFunc(h.templates, func(other *template) bool { return other == t })
	if len(h.templates) == 0 {
		s.dropShape(h)
	}
}

// dropShape forgets a shape without templates.
func (s *State) dropShape(h *shape) {
	is := func(other *shape) bool { return other == h }
	if same := slices.DeleteFunc(s.shapes[h.sum], is); len(same) > 0 {
		s.shapes[h.sum] = same
	} else {
		delete(s.shapes, h.sum)
	}
	if h.terms != nil {
		s.holders = slices.DeleteFunc(s.holders, is)
	}
	s.hot = slices.DeleteFunc(s.hot, is)
}

// fingerprint hashes what the scheduler reads of a pod: what makes its shape, and all.
// Parts that are rare or costly to hash are left to sameShape and sameTemplate.
func fingerprint(seed maphash.Seed, pod *corev1.Pod) (shape, all uint64) {
	var h maphash.Hash
	h.SetSeed(seed)
	write := func(text string) {
		_, _ = h.WriteString(text)
		_ = h.WriteByte(0)
	}
	for _, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range containers {
			c := &containers[i]
			write(c.Image)
			var sum uint64 // of an unordered map
			for name, quantity := range c.Resources.Requests {
				sum += maphash.String(seed, string(name)) * uint64(quantity.MilliValue()+1)
			}
			maphash.WriteComparable(&h, sum)
		}
	}
	maphash.WriteComparable(&h, hashOf(seed, pod.Spec.NodeSelector))
	for i := range pod.Spec.Tolerations {
		write(pod.Spec.Tolerations[i].Key)
	}
	if pod.Spec.Affinity != nil {
		write(pod.Namespace)
	}
	shape = h.Sum64()
	write(pod.Namespace)
	maphash.WriteComparable(&h, hashOf(seed, pod.Labels))
	if owner := metav1.GetControllerOfNoCopy(pod); owner != nil {
		write(string(owner.UID))
	}
	for i := range pod.Spec.Volumes { // each pod of a StatefulSet has claims of its own
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			write(v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			write(pod.Name)
		}
	}
	return shape, h.Sum64()
}

func hashOf(seed maphash.Seed, set map[string]string) uint64 {
	var sum uint64
	for key, value := range set {
		sum += maphash.String(seed, key) * (maphash.String(seed, value) | 1)
	}
	return sum
}

// tolerated says whether any toleration covers a taint. (The comparison operators Lt
// and Gt are off by default in 1.36.)
func tolerated(tolerations []corev1.Toleration, taint *corev1.Taint) bool {
	for i := range tolerations {
		t := &tolerations[i]
		if (t.Effect != "" && t.Effect != taint.Effect) || (t.Key != "" && t.Key != taint.Key) {
			continue
		}
		switch t.Operator {
		case corev1.TolerationOpExists:
			return true
		case "", corev1.TolerationOpEqual:
			if t.Value == taint.Value {
				return true
			}
		}
	}
	return false
}

// untolerated says whether any taint keeps pods with these tolerations away.
func untolerated(tolerations []corev1.Toleration, taints []corev1.Taint) bool {
	for i := range taints {
		taint := &taints[i]
		if taint.Effect != corev1.TaintEffectNoSchedule && taint.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		if !tolerated(tolerations, taint) {
			return true
		}
	}
	return false
}

// warm gives a template a plan, and its shape caches for all slots, taking those of the
// shape that got them first when there are many.
func (s *State) warm(t *template) *plan {
	if t.cache == nil {
		t.cache = &nodeCache{}
		if len(s.hot) >= s.hotLimit() {
			coldest := s.hot[0]
			s.hot = slices.Delete(s.hot, 0, 1)
			t.cache, coldest.cache = coldest.cache, nil
			clear(t.cache.version)
			clear(t.cache.imageAt)
		}
		s.hot = append(s.hot, t.shape)
	}
	t.cache.grow(len(s.nodes))
	return s.ready(t)
}

func (c *nodeCache) grow(slots int) {
	if missing := slots - len(c.version); missing > 0 {
		c.version = append(c.version, make([]uint32, missing)...)
		c.verdict = append(c.verdict, make([]Plugin, missing)...)
		c.affinity = append(c.affinity, make([]int32, missing)...)
		c.taints = append(c.taints, make([]int32, missing)...)
		c.imageAt = append(c.imageAt, make([]uint32, missing)...)
		c.image = append(c.image, make([]int32, missing)...)
	}
}
