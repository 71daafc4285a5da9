package app

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/app/render"
)

// keptReleases is how many releases of an application are kept.
const keptReleases = 50

// history is the releases of an application in the order of their numbers, and what they are for it.
type history struct {
	all  []*v1alpha1.Release
	live *v1alpha1.Release // serves; nil: none
	next *v1alpha1.Release // on its way; nil: none
}

// newHistory sorts releases. The newest one that ever was live and was not replaced serves.
func newHistory(releases []*v1alpha1.Release) history {
	h := history{all: slices.SortedFunc(slices.Values(releases), func(a, b *v1alpha1.Release) int {
		return cmp.Compare(a.Spec.Number, b.Spec.Number)
	})}
	for _, r := range h.all {
		if r.Status.Phase == v1alpha1.ReleaseLive {
			h.live = r
		}
	}
	if last := h.last(); last != nil && !finished(last.Status.Phase) {
		h.next = last
	}
	return h
}

func (h history) last() *v1alpha1.Release {
	if len(h.all) == 0 {
		return nil
	}
	return h.all[len(h.all)-1]
}

// superseded are unfinished releases that a later one came before.
func (h history) superseded() (out []*v1alpha1.Release) {
	for _, r := range h.all {
		if r != h.last() && !finished(r.Status.Phase) {
			out = append(out, r)
		}
	}
	return out
}

// replaced are releases that are said to serve and do not any more.
func (h history) replaced() (out []*v1alpha1.Release) {
	for _, r := range h.all {
		if r.Status.Phase == v1alpha1.ReleaseLive && r != h.live {
			out = append(out, r)
		}
	}
	return out
}

// surplus are old releases beyond the number that is kept.
func (h history) surplus() (out []*v1alpha1.Release) {
	for _, r := range h.all[:max(len(h.all)-keptReleases, 0)] {
		if r != h.live && finished(r.Status.Phase) {
			out = append(out, r)
		}
	}
	return out
}

// finished says whether nothing becomes of a release any more by itself.
func finished(phase string) bool {
	switch phase {
	case v1alpha1.ReleaseLive, v1alpha1.ReleaseReplaced, v1alpha1.ReleaseSuperseded, v1alpha1.ReleaseFailed, v1alpha1.ReleaseAborted:
		return true
	}
	return false
}

// failed says whether a release ended without ever being live.
func failed(phase string) bool {
	return phase == v1alpha1.ReleaseFailed || phase == v1alpha1.ReleaseAborted
}

// essence is what of a spec makes a release.
func essence(spec *v1alpha1.AppSpec) *v1alpha1.AppSpec {
	out := spec.DeepCopy()
	out.Domains, out.Source, out.Expires, out.Rollout, out.Build = nil, nil, nil, nil, nil
	out.Restarts, out.Suspended = 0, false
	for name, addon := range out.Addons { // all else of them acts at once
		out.Addons[name] = v1alpha1.Addon{Type: addon.Type}
	}
	for name, process := range out.Processes {
		process.Scale = nil
		out.Processes[name] = process
	}
	return out
}

func sameEssence(a, b *v1alpha1.AppSpec) bool {
	return equality.Semantic.DeepEqual(essence(a), essence(b))
}

// nextRelease is the release to make for an application, or nil if the last one is as the application wants it. prints
// are fingerprints of its secrets.
func nextRelease(app *v1alpha1.App, h history, prints map[string]string) *v1alpha1.Release {
	if app.Spec.Image == "" {
		return nil
	}
	last := h.last()
	reason := ""
	switch {
	case last == nil:
		reason = sourceReason(&app.Spec)
	case !sameEssence(&app.Spec, &last.Spec.Content):
		reason = changeReason(&app.Spec, &last.Spec.Content)
	case failed(last.Status.Phase) && app.Spec.Restarts != last.Spec.Content.Restarts:
		reason = "retry of v" + strconv.FormatInt(last.Spec.Number, 10)
	default:
		changed := changedSecrets(last, prints)
		if len(changed) == 0 {
			return nil
		}
		reason = "secret " + strings.Join(changed, ", ")
	}
	number := app.Status.Latest
	if last != nil {
		number = max(number, last.Spec.Number)
	}
	number++
	out := &v1alpha1.Release{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: "Release"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: app.Namespace, Name: render.ReleaseName(app.Name, number),
			Labels:          map[string]string{v1alpha1.LabelApp: app.Name, render.LabelManagedBy: render.ManagedBy},
			OwnerReferences: []metav1.OwnerReference{render.Owner(app)},
		},
		Spec: v1alpha1.ReleaseSpec{App: app.Name, Number: number, Content: *app.Spec.DeepCopy()},
	}
	if out.Spec.Content.Source == nil {
		out.Spec.Content.Source = &v1alpha1.Source{}
	}
	out.Spec.Content.Source.Reason = reason
	return out
}

func sourceReason(spec *v1alpha1.AppSpec) string {
	if spec.Source != nil && spec.Source.Reason != "" {
		return spec.Source.Reason
	}
	return "deploy"
}

// changeReason says in a word or two why now differs from before. Whoever changed it may have said so in the source.
func changeReason(now, before *v1alpha1.AppSpec) string {
	said := now.Source.DeepCopy()
	if said != nil && before.Source != nil {
		known := before.Source.DeepCopy()
		if reason := said.Reason; reason != "" && (reason != known.Reason || !equality.Semantic.DeepEqual(said, known)) && now.Image != before.Image {
			return reason
		}
	}
	if keys := changedKeys(now.Config, before.Config); len(keys) > 0 {
		rest := essence(now)
		rest.Config = before.Config
		if sameEssence(rest, before) {
			return "env " + strings.Join(keys, ", ")
		}
	}
	return sourceReason(now)
}

func changedKeys(now, before map[string]string) (out []string) {
	for key, value := range now {
		if old, ok := before[key]; !ok || old != value {
			out = append(out, key)
		}
	}
	for key := range before {
		if _, ok := now[key]; !ok {
			out = append(out, key)
		}
	}
	return slices.Sorted(slices.Values(out))
}

// changedSecrets are the secrets of a release that are not what they were when it began.
func changedSecrets(release *v1alpha1.Release, prints map[string]string) (out []string) {
	for key, old := range fingerprints(release) {
		if now, ok := prints[key]; ok && now != old && slices.Contains(release.Spec.Content.Secrets, key) {
			out = append(out, key)
		}
	}
	return slices.Sorted(slices.Values(out))
}

// fingerprints are those that a release began with; none before it began.
func fingerprints(release *v1alpha1.Release) map[string]string {
	var out map[string]string
	if json.Unmarshal([]byte(release.Annotations[v1alpha1.AnnotationSecrets]), &out) != nil {
		return nil
	}
	return out
}

// returnsTo is the release that was live once and whose content a release has again; nil if there is none.
func (h history) returnsTo(release *v1alpha1.Release) *v1alpha1.Release {
	last := len(h.all) - 1
	if last > 0 && h.all[last] == release && h.live != nil && sameEssence(&h.live.Spec.Content, &release.Spec.Content) {
		return nil // as what serves: a secret changed, or a failed one is given up
	}
	for _, r := range slices.Backward(h.all) {
		if r.Spec.Number < release.Spec.Number && (r.Status.Phase == v1alpha1.ReleaseLive || r.Status.Phase == v1alpha1.ReleaseReplaced) &&
			sameEssence(&r.Spec.Content, &release.Spec.Content) {
			return r
		}
	}
	return nil
}

// commandsSince names the releases after one that ran a release command, up to the one that serves.
func (h history) commandsSince(number int64) (out []string) {
	for _, r := range h.all {
		ran := r.Status.Phase == v1alpha1.ReleaseLive || r.Status.Phase == v1alpha1.ReleaseReplaced || failed(r.Status.Phase)
		if r.Spec.Number > number && ran && r.Spec.Content.Release != nil {
			out = append(out, "v"+strconv.FormatInt(r.Spec.Number, 10))
		}
	}
	return out
}

// rollbackWarning is what to know about going back to an earlier release; empty if nothing.
func (h history) rollbackWarning(to *v1alpha1.Release) string {
	ran := h.commandsSince(to.Spec.Number)
	if len(ran) == 0 {
		return ""
	}
	return fmt.Sprintf("the release command of %s ran since v%d, and a rollback does not undo what it did", strings.Join(ran, ", "), to.Spec.Number)
}

// version is a release as far as objects follow from it.
func version(release *v1alpha1.Release) *render.Version {
	if release == nil {
		return nil
	}
	out := &render.Version{Number: release.Spec.Number, Content: &release.Spec.Content, Ports: map[string]int32{}}
	for name, progress := range release.Status.Progress {
		out.Ports[name] = progress.Port
	}
	return out
}

// assign says which release each process runs while next is on its way. What runs at its times changes when next is
// live; what next does not have ends then.
func assign(h history, next v1alpha1.ReleaseStatus) map[string]*render.Version {
	out := map[string]*render.Version{}
	if live := version(h.live); live != nil {
		for name := range render.Processes(live.Content) {
			out[name] = live
		}
	}
	if h.next == nil {
		return out
	}
	coming := h.next.DeepCopy()
	coming.Status = next
	v := version(coming)
	switch next.Phase {
	case v1alpha1.ReleaseLive:
		clear(out)
		for name := range render.Processes(v.Content) {
			out[name] = v
		}
	case v1alpha1.ReleaseRolling:
		for name, process := range render.Processes(v.Content) {
			if process.Schedule == "" {
				out[name] = v
			}
		}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
