package registry

import (
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1beta1 "k8s.io/api/coordination/v1beta1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"gantry.dev/gantry/internal/store"
)

func podFields(obj store.Object) fields.Set {
	pod := obj.(*corev1.Pod)
	return fields.Set{
		"spec.nodeName":            pod.Spec.NodeName,
		"spec.restartPolicy":       string(pod.Spec.RestartPolicy),
		"spec.schedulerName":       pod.Spec.SchedulerName,
		"spec.serviceAccountName":  pod.Spec.ServiceAccountName,
		"spec.hostNetwork":         strconv.FormatBool(pod.Spec.HostNetwork),
		"status.phase":             string(pod.Status.Phase),
		"status.podIP":             pod.Status.PodIP,
		"status.nominatedNodeName": pod.Status.NominatedNodeName,
	}
}

func podNodeName(obj store.Object) []string { return []string{obj.(*corev1.Pod).Spec.NodeName} }

func nodeFields(obj store.Object) fields.Set {
	return fields.Set{"spec.unschedulable": strconv.FormatBool(obj.(*corev1.Node).Spec.Unschedulable)}
}

func namespaceFields(obj store.Object) fields.Set {
	return fields.Set{"status.phase": string(obj.(*corev1.Namespace).Status.Phase), "name": obj.GetName()}
}

func secretFields(obj store.Object) fields.Set {
	return fields.Set{"type": string(obj.(*corev1.Secret).Type)}
}

func serviceFields(obj store.Object) fields.Set {
	svc := obj.(*corev1.Service)
	return fields.Set{"spec.clusterIP": svc.Spec.ClusterIP, "spec.type": string(svc.Spec.Type)}
}

func replicaSetFields(obj store.Object) fields.Set {
	return fields.Set{"status.replicas": strconv.Itoa(int(obj.(*appsv1.ReplicaSet).Status.Replicas))}
}

func replicationControllerFields(obj store.Object) fields.Set {
	return fields.Set{"status.replicas": strconv.Itoa(int(obj.(*corev1.ReplicationController).Status.Replicas))}
}

func jobFields(obj store.Object) fields.Set {
	return fields.Set{"status.successful": strconv.Itoa(int(obj.(*batchv1.Job).Status.Succeeded))}
}

func signingRequestFields(obj store.Object) fields.Set {
	return fields.Set{"spec.signerName": obj.(*certificatesv1.CertificateSigningRequest).Spec.SignerName}
}

func resourceSliceFields(obj store.Object) fields.Set {
	slice := obj.(*resourcev1.ResourceSlice)
	set := fields.Set{resourcev1.ResourceSliceSelectorDriver: slice.Spec.Driver, resourcev1.ResourceSliceSelectorNodeName: ""}
	if slice.Spec.NodeName != nil {
		set[resourcev1.ResourceSliceSelectorNodeName] = *slice.Spec.NodeName
	}
	return set
}

func leaseCandidateFields(obj store.Object) fields.Set {
	return fields.Set{"spec.leaseName": obj.(*coordinationv1beta1.LeaseCandidate).Spec.LeaseName}
}

// nameField is a second spelling of metadata.name that some kinds have kept.
func nameField(obj store.Object) fields.Set { return fields.Set{"name": obj.GetName()} }

func eventFields(obj store.Object) fields.Set {
	ev := obj.(*corev1.Event)
	source := ev.Source.Component
	if source == "" {
		source = ev.ReportingController
	}
	about := ev.InvolvedObject
	return fields.Set{
		"involvedObject.kind":            about.Kind,
		"involvedObject.namespace":       about.Namespace,
		"involvedObject.name":            about.Name,
		"involvedObject.uid":             string(about.UID),
		"involvedObject.apiVersion":      about.APIVersion,
		"involvedObject.resourceVersion": about.ResourceVersion,
		"involvedObject.fieldPath":       about.FieldPath,
		"reason":                         ev.Reason,
		"reportingComponent":             ev.ReportingController,
		"source":                         source,
		"type":                           ev.Type,
	}
}

// lastSeen is when the event was written or counted last.
func lastSeen(obj store.Object) time.Time {
	ev := obj.(*corev1.Event)
	latest := ev.CreationTimestamp.Time
	for _, t := range []time.Time{ev.LastTimestamp.Time, ev.EventTime.Time} {
		if t.After(latest) {
			latest = t
		}
	}
	if ev.Series != nil && ev.Series.LastObservedTime.After(latest) {
		latest = ev.Series.LastObservedTime.Time
	}
	return latest
}

// selection is a compiled ListOptions: which entries match, and where to look for them.
type selected struct {
	namespace string
	name      string                  // only this object, "" is all
	late      func(store.Object) bool // of a watch: matched against what is served, not what is stored; nil is everything
	index     string                  // only what the store's index gives for value
	value     string
	filter    func(*store.Entry) bool // nil is everything
}

// compile checks the selectors and turns them into a filter.
func (r *Resource) compile(namespace string, opts ListOptions) (selected, error) {
	s := selected{namespace: namespace}
	var byField fields.Selector
	if opts.Fields != nil && !opts.Fields.Empty() {
		converted, err := opts.Fields.Transform(func(label, value string) (string, string, error) {
			if label == OwnerIndex && opts.Internal {
				return label, value, nil
			}
			if r.def.custom != nil {
				return r.def.custom.FieldLabel(label, value)
			}
			return legacyscheme.Scheme.ConvertFieldLabel(r.Kind, label, value)
		})
		if err != nil {
			return s, apierrors.NewBadRequest(err.Error())
		}
		byField = s.narrow(r, converted)
	}
	byLabel := opts.Labels
	if byLabel != nil && byLabel.Empty() {
		byLabel = nil
	}
	if byField == nil && byLabel == nil {
		return s, nil
	}
	s.filter = func(e *store.Entry) bool {
		if byLabel != nil && !byLabel.Matches(labels.Set(e.Object.GetLabels())) {
			return false
		}
		return byField == nil || byField.Matches(r.fieldSet(e.Object))
	}
	if r.def.custom == nil || byField == nil || r.def.selectable == nil {
		return s, nil
	}
	// Fields are those of the served version: to find them may take a webhook, which the store's
	// own goroutine must not wait for.
	s.late = func(obj store.Object) bool { return byField.Matches(r.fieldSet(obj)) }
	s.filter = func(e *store.Entry) bool { return byLabel == nil || byLabel.Matches(labels.Set(e.Object.GetLabels())) }
	return s, nil
}

// narrow takes the requirements that name one object or one index value out of the
// selector; what it returns must still be matched, nil if nothing.
func (s *selected) narrow(r *Resource, selector fields.Selector) fields.Selector {
	if value, ok := selector.RequiresExactMatch(OwnerIndex); ok {
		s.index, s.value = OwnerIndex, value
	}
	for _, field := range r.def.indexedFields {
		if value, ok := selector.RequiresExactMatch(field); ok {
			s.index, s.value = field, value
		}
	}
	name, hasName := selector.RequiresExactMatch("metadata.name")
	if !hasName {
		return selector
	}
	s.name = name
	if requirements := selector.Requirements(); len(requirements) == 1 && requirements[0].Operator == selection.Equals {
		return nameSelector{selector, name}
	}
	return selector
}

// nameSelector matches by name without building a field set.
type nameSelector struct {
	fields.Selector
	name string
}

func (n nameSelector) Matches(set fields.Fields) bool { return set.Get("metadata.name") == n.name }

// lazyFields gives field values without building the kind's whole set for metadata alone.
type lazyFields struct {
	r   *Resource
	obj store.Object
	set fields.Set
}

func (r *Resource) fieldSet(obj store.Object) fields.Fields { return &lazyFields{r: r, obj: obj} }

// Has implements fields.Fields.
func (l *lazyFields) Has(field string) bool {
	_, ok := l.lookup(field)
	return ok
}

// Get implements fields.Fields.
func (l *lazyFields) Get(field string) string {
	value, _ := l.lookup(field)
	return value
}

func (l *lazyFields) lookup(field string) (string, bool) {
	switch field {
	case "metadata.name":
		return l.obj.GetName(), true
	case "metadata.namespace":
		return l.obj.GetNamespace(), l.r.Namespaced
	case OwnerIndex:
		for _, uid := range ownerUID(l.obj) {
			return uid, true
		}
		return "", false
	}
	if l.set == nil && l.r.def.selectable != nil {
		l.set = l.r.def.selectable(l.obj)
	}
	value, ok := l.set[field]
	return value, ok
}

// splitKey is the inverse of store.Kind.Key.
func splitKey(key string) (namespace, name string) {
	if namespace, name, ok := strings.Cut(key, "/"); ok {
		return namespace, name
	}
	return "", key
}

// HasIndex reports whether lists by that name in a field selector are quick.
func (r *Resource) HasIndex(name string) bool { return r.def.stored.Indexes[name] != nil }
