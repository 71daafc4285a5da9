package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// A StatefulSet and a DaemonSet keep the templates they had as ControllerRevisions: each
// holds a patch that puts one template back. kubectl rollout reads and applies them.

// labelRevisionHash is on the revisions of a StatefulSet.
const labelRevisionHash = "controller.kubernetes.io/hash"

// templatePatch is the data of the revision that holds a template. Its bytes are those
// that upstream writes: revisions are compared by them.
func templatePatch(template *corev1.PodTemplateSpec) ([]byte, error) {
	text, err := json.Marshal(template)
	if err != nil {
		return nil, fmt.Errorf("encoding a pod template: %w", err)
	}
	var content map[string]any
	if err := json.Unmarshal(text, &content); err != nil {
		return nil, fmt.Errorf("reading a pod template: %w", err)
	}
	content["$patch"] = "replace"
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": content}})
	if err != nil {
		return nil, fmt.Errorf("encoding a revision: %w", err)
	}
	return patch, nil
}

// templateOf is the template that a revision holds.
func templateOf(revision *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var content struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(revision.Data.Raw, &content); err != nil {
		return nil, fmt.Errorf("reading revision %s: %w", revision.Name, err)
	}
	return &content.Spec.Template, nil
}

// sortRevisions puts the oldest first.
func sortRevisions(revisions []*appsv1.ControllerRevision) {
	slices.SortStableFunc(revisions, func(a, b *appsv1.ControllerRevision) int {
		switch {
		case a.Revision != b.Revision:
			return int(a.Revision - b.Revision)
		case !a.CreationTimestamp.Equal(&b.CreationTimestamp):
			return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// revisionHash is the hash in the names of a StatefulSet's revisions; collisions leads to
// another one when two templates share it.
func revisionHash(patch []byte, collisions int32) string {
	sum := fnv.New32()
	_, _ = sum.Write(patch)
	_, _ = sum.Write(strconv.AppendInt(nil, int64(collisions), 10))
	return rand.SafeEncodeString(fmt.Sprint(sum.Sum32()))
}

// revisionName leaves room for the hash in a name of 253 bytes.
func revisionName(owner, hash string) string {
	return owner[:min(len(owner), 223)] + "-" + hash
}

// revisionChoice says which revision holds an owner's template.
type revisionChoice struct {
	found  *appsv1.ControllerRevision // nil: there is none, and one is to be made
	number int64                      // that it should have
}

// chooseRevision looks for the template of a patch among revisions, oldest first. latest is
// asked whether the latest one means the same though its bytes differ.
func chooseRevision(revisions []*appsv1.ControllerRevision, patch []byte, latest func(*appsv1.ControllerRevision) bool) revisionChoice {
	if len(revisions) == 0 {
		return revisionChoice{number: 1}
	}
	last := revisions[len(revisions)-1]
	for _, revision := range slices.Backward(revisions) {
		if bytes.Equal(revision.Data.Raw, patch) {
			if revision != last {
				return revisionChoice{revision, last.Revision + 1} // an old one is wanted again
			}
			return revisionChoice{last, last.Revision}
		}
	}
	if latest(last) {
		return revisionChoice{last, last.Revision}
	}
	return revisionChoice{number: last.Revision + 1}
}

// surplusRevisions are the oldest of those that nothing uses, beyond limit.
func surplusRevisions(revisions []*appsv1.ControllerRevision, live map[string]bool, limit *int32) []*appsv1.ControllerRevision {
	if limit == nil || *limit < 0 {
		return nil
	}
	unused := slices.DeleteFunc(slices.Clone(revisions), func(r *appsv1.ControllerRevision) bool { return live[r.Name] })
	return unused[:max(0, len(unused)-int(*limit))]
}

// createRevision makes the revision of a StatefulSet's template. Two templates with one
// hash are told apart by counting collisions up.
func createRevision(ctx context.Context, c client.Client, set *appsv1.StatefulSet, patch []byte, number int64, collisions *int32) (*appsv1.ControllerRevision, error) {
	first := revisionHash(patch, *collisions) // upstream's label keeps it whatever the name becomes
	for {
		labels := maps.Clone(set.Spec.Template.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[labelRevisionHash] = first
		revision := &appsv1.ControllerRevision{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: set.Namespace, Name: revisionName(set.Name, revisionHash(patch, *collisions)),
				Labels: labels, Annotations: maps.Clone(set.Annotations),
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, statefulSetKind())},
			},
			Data: runtime.RawExtension{Raw: patch}, Revision: number,
		}
		err := c.Create(ctx, revision)
		if !apierrors.IsAlreadyExists(err) {
			if err != nil {
				return nil, fmt.Errorf("creating revision %s: %w", revision.Name, err)
			}
			return revision, nil
		}
		var existing appsv1.ControllerRevision
		if err := c.Get(ctx, client.ObjectKeyFromObject(revision), &existing); err != nil {
			return nil, fmt.Errorf("getting revision %s: %w", revision.Name, err)
		}
		if bytes.Equal(existing.Data.Raw, patch) {
			return &existing, nil
		}
		*collisions++
	}
}

// renumber gives a revision another number.
func renumber(ctx context.Context, c client.Client, revision *appsv1.ControllerRevision, number int64) (*appsv1.ControllerRevision, error) {
	next := revision.DeepCopy()
	next.Revision = number
	if err := c.Update(ctx, next); err != nil {
		return nil, fmt.Errorf("renumbering revision %s: %w", revision.Name, err)
	}
	return next, nil
}

func deleteRevision(ctx context.Context, c client.Client, revision *appsv1.ControllerRevision) error {
	uid := revision.UID
	target := &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Namespace: revision.Namespace, Name: revision.Name}}
	if err := c.Delete(ctx, target, client.Preconditions{UID: &uid}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting revision %s: %w", revision.Name, err)
	}
	return nil
}

// patches remembers the patch of each owner's template, since every pass asks for it.
type patches struct {
	mu      sync.Mutex // guards byOwner
	byOwner map[controller.Key]rememberedPatch
}

type rememberedPatch struct {
	uid        types.UID
	generation int64
	patch      []byte
	same       string // resource version of a revision that was found to mean the same
}

// recall returns what is known of an owner as it is now.
func (p *patches) recall(owner client.Object) (rememberedPatch, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known, ok := p.byOwner[controller.KeyOf(owner)]
	return known, ok && known.uid == owner.GetUID() && known.generation == owner.GetGeneration()
}

func (p *patches) remember(owner client.Object, patch []byte, same string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byOwner == nil {
		p.byOwner = map[controller.Key]rememberedPatch{}
	}
	p.byOwner[controller.KeyOf(owner)] = rememberedPatch{owner.GetUID(), owner.GetGeneration(), patch, same}
}

func (p *patches) forget(owner controller.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byOwner, owner)
}

// of returns the patch of an owner's template.
func (p *patches) of(owner client.Object, template *corev1.PodTemplateSpec) ([]byte, error) {
	if known, ok := p.recall(owner); ok {
		return known.patch, nil
	}
	patch, err := templatePatch(template)
	if err != nil {
		return nil, err
	}
	p.remember(owner, patch, "")
	return patch, nil
}

// means says whether a revision, with defaults put in, holds the same template as owner,
// whose patch is given. A revision that an earlier Kubernetes wrote may lack fields that
// have defaults since; it must not start a rollout.
func (p *patches) means(revision *appsv1.ControllerRevision, owner client.Object, patch []byte, withDefaults func(*corev1.PodTemplateSpec)) bool {
	if known, ok := p.recall(owner); ok && known.same != "" && known.same == revision.ResourceVersion {
		return true
	}
	template, err := templateOf(revision)
	if err != nil {
		return false
	}
	withDefaults(template)
	held, err := templatePatch(template)
	if err != nil || !bytes.Equal(held, patch) {
		return false
	}
	p.remember(owner, patch, revision.ResourceVersion)
	return true
}
