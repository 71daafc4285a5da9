package plan

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/server"
)

// Verb says what becomes of an object or a pod.
type Verb string

// What may become of it. Objects are created, changed or deleted; the others are of pods.
const (
	Created   Verb = "created"
	Changed   Verb = "changed"
	Deleted   Verb = "deleted"
	Placed    Verb = "placed"    // waited for a node before, and gets one
	Moved     Verb = "moved"     // the pod of that name goes to another node
	Replaced  Verb = "replaced"  // the pod of that name is made anew on its node
	Preempted Verb = "preempted" // makes room for a pod of higher priority
	Pending   Verb = "pending"   // no node takes it
)

// ObjectChange is one object that is no pod.
type ObjectChange struct {
	Verb      Verb   `json:"verb"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Fields are the paths that change, of those the user writes: not of the status.
	Fields []string `json:"fields,omitempty"`
}

// PodChange is one pod. Names that controllers make up are others in the cluster.
type PodChange struct {
	Verb      Verb   `json:"verb"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Owner     string `json:"owner,omitempty"` // "Deployment/web": who makes it in the end
	From      string `json:"from,omitempty"`  // node
	To        string `json:"to,omitempty"`    // node
	Message   string `json:"message,omitempty"`
}

// snapshot is what there is at one moment.
type snapshot struct {
	objects map[objectKey]map[string]any
	pods    map[types.UID]*corev1.Pod
	owners  map[types.UID]owner
}

type objectKey struct{ kind, namespace, name string }

// owner is an object and who controls it.
type owner struct {
	text string
	by   types.UID
}

// take reads everything in the copy but what is counted by the pods or says nothing.
func take(ctx context.Context, plane *server.ControlPlane) (*snapshot, error) {
	s := &snapshot{objects: map[objectKey]map[string]any{}, pods: map[types.UID]*corev1.Pod{}, owners: map[types.UID]owner{}}
	for _, r := range plane.Registry().Resources() {
		if !r.Primary || !slices.Contains(r.Verbs, "watch") || leftOut(r.Resource.GroupResource()) {
			continue
		}
		list, err := r.List(ctx, "", registry.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("list the copy's %s: %w", r.Resource.Resource, err)
		}
		for _, entry := range list.Entries {
			if pod, ok := entry.Object.(*corev1.Pod); ok {
				s.pods[pod.UID] = pod
				continue
			}
			s.note(r.Kind.Kind, entry.Object)
			if follows(r.Kind.Kind, entry.Object) {
				continue
			}
			data, err := entry.JSON()
			if err != nil {
				return nil, err
			}
			var content map[string]any
			if err := json.Unmarshal(data, &content); err != nil {
				return nil, fmt.Errorf("read the copy's %s: %w", entry.Key, err)
			}
			s.objects[objectKey{r.Kind.Kind, entry.Object.GetNamespace(), entry.Object.GetName()}] = wanted(content)
		}
	}
	return s, nil
}

// follows says whether an object says nothing that the others do not.
func follows(kind string, obj metav1.Object) bool {
	switch kind {
	case "Endpoints", "EndpointSlice", "ControllerRevision", "IPAddress":
		return true
	}
	return kind == "ReplicaSet" && metav1.GetControllerOfNoCopy(obj) != nil
}

func (s *snapshot) note(kind string, obj metav1.Object) {
	o := owner{text: kind + "/" + obj.GetName()}
	if by := metav1.GetControllerOfNoCopy(obj); by != nil {
		o.by = by.UID
	}
	s.owners[obj.GetUID()] = o
}

// wanted leaves what users write.
func wanted(content map[string]any) map[string]any {
	delete(content, "status")
	if metadata, ok := content["metadata"].(map[string]any); ok {
		for _, key := range []string{"managedFields", "resourceVersion", "generation", "creationTimestamp", "uid", "selfLink"} {
			delete(metadata, key)
		}
		if annotations, ok := metadata["annotations"].(map[string]any); ok {
			delete(annotations, "deployment.kubernetes.io/revision")
			if len(annotations) == 0 {
				delete(metadata, "annotations")
			}
		}
	}
	return content
}

// root is the last of those who control a pod.
func (s *snapshot) root(pod *corev1.Pod) string {
	by := metav1.GetControllerOfNoCopy(pod)
	if by == nil {
		return ""
	}
	text, uid := by.Kind+"/"+by.Name, by.UID
	for range 8 {
		o, ok := s.owners[uid]
		if !ok {
			return text
		}
		text, uid = o.text, o.by
		if uid == "" {
			return text
		}
	}
	return text
}

// objectChanges compares two moments.
func objectChanges(before, after *snapshot) []ObjectChange {
	var out []ObjectChange
	for key, now := range after.objects {
		old, ok := before.objects[key]
		switch {
		case !ok:
			out = append(out, ObjectChange{Verb: Created, Kind: key.kind, Namespace: key.namespace, Name: key.name})
		case !reflect.DeepEqual(old, now):
			out = append(out, ObjectChange{Verb: Changed, Kind: key.kind, Namespace: key.namespace, Name: key.name, Fields: differing("", old, now)})
		}
	}
	for key := range before.objects {
		if _, ok := after.objects[key]; !ok {
			out = append(out, ObjectChange{Verb: Deleted, Kind: key.kind, Namespace: key.namespace, Name: key.name})
		}
	}
	slices.SortFunc(out, func(a, b ObjectChange) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return out
}

// differing lists the paths at which two documents differ.
func differing(path string, old, now map[string]any) []string {
	var out []string
	keys := map[string]bool{}
	for key := range old {
		keys[key] = true
	}
	for key := range now {
		keys[key] = true
	}
	for key := range keys {
		if reflect.DeepEqual(old[key], now[key]) {
			continue
		}
		at := strings.TrimPrefix(path+"."+key, ".")
		x, xOK := old[key].(map[string]any)
		y, yOK := now[key].(map[string]any)
		if xOK && yOK {
			out = append(out, differing(at, x, y)...)
		} else {
			out = append(out, at)
		}
	}
	slices.Sort(out)
	return out
}

// podChanges compares two moments; gone is the last that was seen of pods that went between.
func podChanges(before, after *snapshot, gone map[types.UID]*corev1.Pod) []PodChange {
	var out []PodChange
	byName := map[types.NamespacedName]*corev1.Pod{}
	for _, pod := range after.pods {
		byName[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = pod
	}
	again := map[types.UID]bool{} // new pods that take the name of an old one
	for uid, old := range before.pods {
		now, still := after.pods[uid]
		change := PodChange{Namespace: old.Namespace, Name: old.Name, Owner: before.root(old), From: old.Spec.NodeName}
		next := byName[types.NamespacedName{Namespace: old.Namespace, Name: old.Name}]
		switch {
		case still && old.Spec.NodeName == "" && now.Spec.NodeName != "":
			change.Verb, change.To = Placed, now.Spec.NodeName
		case still:
			continue
		case isPreempted(gone[uid]):
			change.Verb, change.Message = Preempted, "a pod of higher priority needs its place"
			if next != nil && next.Spec.NodeName != "" {
				change.To, again[next.UID] = next.Spec.NodeName, true
			}
		case next != nil && next.Spec.NodeName != "" && next.Spec.NodeName != old.Spec.NodeName:
			change.Verb, change.To, again[next.UID] = Moved, next.Spec.NodeName, true
		case next != nil && next.Spec.NodeName != "":
			change.Verb, change.To, again[next.UID] = Replaced, next.Spec.NodeName, true
		default:
			change.Verb = Deleted
		}
		out = append(out, change)
	}
	for uid, pod := range after.pods {
		change := PodChange{Namespace: pod.Namespace, Name: pod.Name, Owner: after.root(pod), To: pod.Spec.NodeName, Verb: Created}
		old := before.pods[uid]
		switch {
		case pod.Spec.NodeName == "":
			change.Verb, change.Message = Pending, pendingMessage(pod)
			if old != nil && pendingMessage(old) == change.Message {
				continue // as it was
			}
		case old != nil || again[uid]:
			continue
		}
		out = append(out, change)
	}
	slices.SortFunc(out, func(a, b PodChange) int {
		return cmp.Or(strings.Compare(string(a.Verb), string(b.Verb)), strings.Compare(a.Namespace, b.Namespace),
			strings.Compare(a.Owner, b.Owner), strings.Compare(a.From, b.From), strings.Compare(a.To, b.To), strings.Compare(a.Name, b.Name))
	})
	return out
}

func isPreempted(pod *corev1.Pod) bool {
	if pod == nil {
		return false
	}
	for i := range pod.Status.Conditions {
		c := &pod.Status.Conditions[i]
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			return c.Reason == corev1.PodReasonPreemptionByScheduler
		}
	}
	return false
}

func pendingMessage(pod *corev1.Pod) string {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return c.Message
		}
	}
	if name := pod.Spec.SchedulerName; name != corev1.DefaultSchedulerName {
		return fmt.Sprintf("waits for the scheduler %q, which does not take part in a plan", name)
	}
	return ""
}
