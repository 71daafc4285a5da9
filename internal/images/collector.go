package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/lifecycle"
)

// CollectorOptions say what a Collector does. Store and Reader are needed.
type CollectorOptions struct {
	Store    *Store
	Reader   client.Reader // of the API: everything that may name an image
	Releases int           // whose images stay, of each application; default 10
	Grace    time.Duration // how long an image without a tag stays that nothing uses; default 24h
	Uploads  time.Duration // how long an upload may rest; default 24h
	Every    time.Duration // default 1h; a disk that is too full is looked after at once
	// Leads says whether this server decides from time to time which images go; others remove only content that is left of
	// none. nil: it does.
	Leads func() bool
	// Sync waits until Reader knows what any server has acknowledged. nil: it does always.
	Sync   func(context.Context) error
	Logger *slog.Logger
}

// fullGrace is the grace while the disk is too full to push: longer than a push takes.
const fullGrace = time.Hour

// lookEvery is how often the disk is looked at.
const lookEvery = time.Minute

// Collector removes images that nothing uses from a Store.
type Collector struct {
	opts CollectorOptions
	log  *slog.Logger
}

// NewCollector checks opts and returns a Collector that has started nothing.
func NewCollector(opts CollectorOptions) (*Collector, error) {
	if opts.Store == nil || opts.Reader == nil {
		return nil, errors.New("images: CollectorOptions need Store and Reader")
	}
	opts.Releases = cmp.Or(opts.Releases, 10)
	opts.Grace = cmp.Or(opts.Grace, 24*time.Hour)
	opts.Uploads = cmp.Or(opts.Uploads, 24*time.Hour)
	opts.Every = cmp.Or(opts.Every, time.Hour)
	if opts.Releases < 1 || opts.Grace < 0 || opts.Uploads < 0 || opts.Every < 0 {
		return nil, errors.New("images: CollectorOptions are out of range")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Collector{opts: opts, log: opts.Logger}, nil
}

// Run collects from time to time until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	last := time.Now() // not at the start: the applications may not be there yet
	for lifecycle.Pause(ctx, lookEvery) {
		grace := c.opts.Grace
		wait := c.opts.Every
		if c.opts.Store.room(0) != nil {
			grace, wait = min(grace, fullGrace), min(wait, 10*lookEvery)
		}
		if time.Since(last) < wait {
			continue
		}
		last = time.Now()
		if done, err := c.collect(ctx, grace, c.opts.Leads == nil || c.opts.Leads()); err != nil && ctx.Err() == nil {
			c.log.Warn("collecting images that nothing uses", "error", err)
		} else if done != (Collected{}) {
			c.log.Info("collected images that nothing uses", "manifests", done.Manifests, "blobs", done.Blobs, "uploads", done.Uploads, "bytes", done.Bytes)
		}
	}
	return nil
}

// Collect collects once. Where the API cannot be read, nothing is removed.
func (c *Collector) Collect(ctx context.Context, grace time.Duration) (Collected, error) {
	return c.collect(ctx, grace, true)
}

func (c *Collector) collect(ctx context.Context, grace time.Duration, manifests bool) (Collected, error) {
	if c.opts.Sync != nil { // what an old view of the cluster does not use may be in use
		if err := c.opts.Sync(ctx); err != nil {
			return Collected{}, fmt.Errorf("ask what is in use: %w", err)
		}
	}
	keep, err := c.keep(ctx)
	if err != nil {
		return Collected{}, err
	}
	keep.Grace, keep.Uploads = grace, c.opts.Uploads
	keep.Manifests = !manifests
	return c.opts.Store.Collect(keep)
}

// keep asks the API what is in use.
func (c *Collector) keep(ctx context.Context) (Keep, error) {
	keep := Keep{Digests: map[string]map[digest.Digest]bool{}, Tags: map[string]map[string]bool{}, Projects: map[string]bool{}}
	var namespaces corev1.NamespaceList
	if err := c.opts.Reader.List(ctx, &namespaces); err != nil {
		return keep, fmt.Errorf("list projects: %w", err)
	}
	for i := range namespaces.Items {
		keep.Projects[namespaces.Items[i].Name] = true
	}
	if err := c.keepWorkloads(ctx, &keep); err != nil {
		return keep, err
	}
	return keep, c.keepReleases(ctx, &keep)
}

// add notes an image that is in use; those of other registries are nobody's business here.
func (k *Keep) add(image string) {
	if !strings.HasPrefix(image, Host+"/") {
		return
	}
	ref, err := ParseReference(image)
	if err != nil {
		return
	}
	name := ref.Repository.Name
	if ref.Digest != "" {
		k.addDigest(name, ref.Digest)
		return
	}
	if k.Tags[name] == nil {
		k.Tags[name] = map[string]bool{}
	}
	k.Tags[name][cmp.Or(ref.Tag, "latest")] = true
}

func (k *Keep) addDigest(repository string, d digest.Digest) {
	if k.Digests[repository] == nil {
		k.Digests[repository] = map[digest.Digest]bool{}
	}
	k.Digests[repository][d] = true
}

func (k *Keep) addPod(spec *corev1.PodSpec) {
	for i := range spec.InitContainers {
		k.add(spec.InitContainers[i].Image)
	}
	for i := range spec.Containers {
		k.add(spec.Containers[i].Image)
	}
	for i := range spec.EphemeralContainers {
		k.add(spec.EphemeralContainers[i].Image)
	}
	for i := range spec.Volumes {
		if image := spec.Volumes[i].Image; image != nil {
			k.add(image.Reference)
		}
	}
}

// keepWorkloads notes what pods and templates of pods name, those scaled to nothing too.
func (c *Collector) keepWorkloads(ctx context.Context, keep *Keep) error {
	var pods corev1.PodList
	if err := c.opts.Reader.List(ctx, &pods); err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	for i := range pods.Items {
		keep.addPod(&pods.Items[i].Spec)
		for _, list := range [][]corev1.ContainerStatus{pods.Items[i].Status.InitContainerStatuses, pods.Items[i].Status.ContainerStatuses} {
			for j := range list {
				keep.add(list[j].ImageID) // what a tag meant when the container was made
			}
		}
	}
	for _, list := range []client.ObjectList{
		&appsv1.DeploymentList{}, &appsv1.ReplicaSetList{}, &appsv1.StatefulSetList{}, &appsv1.DaemonSetList{}, &batchv1.JobList{}, &batchv1.CronJobList{},
	} {
		if err := c.opts.Reader.List(ctx, list); err != nil {
			return fmt.Errorf("list workloads: %w", err)
		}
		err := meta.EachListItem(list, func(obj runtime.Object) error {
			keep.addPod(podOf(obj))
			return nil
		})
		if err != nil {
			return fmt.Errorf("look at workloads: %w", err)
		}
	}
	return nil
}

// podOf is what a workload makes its pods of.
func podOf(workload runtime.Object) *corev1.PodSpec {
	switch w := workload.(type) {
	case *appsv1.Deployment:
		return &w.Spec.Template.Spec
	case *appsv1.ReplicaSet:
		return &w.Spec.Template.Spec
	case *appsv1.StatefulSet:
		return &w.Spec.Template.Spec
	case *appsv1.DaemonSet:
		return &w.Spec.Template.Spec
	case *batchv1.Job:
		return &w.Spec.Template.Spec
	case *batchv1.CronJob:
		return &w.Spec.JobTemplate.Spec.Template.Spec
	}
	panic(fmt.Sprintf("images: %T has no pods", workload)) // the list of kinds above is all there is
}

// platform lists objects of gantry.dev; where the kind is not installed there are none.
func (c *Collector) platform(ctx context.Context, kind string) ([]unstructured.Unstructured, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(schema.GroupVersionKind{Group: "gantry.dev", Version: "v1alpha1", Kind: kind + "List"})
	err := c.opts.Reader.List(ctx, list)
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %ss: %w", kind, err)
	}
	return list.Items, nil
}

// keepReleases notes the images of each application, of its last releases and of those that are not over, and the images and
// the source of builds.
func (c *Collector) keepReleases(ctx context.Context, keep *Keep) error {
	apps, err := c.platform(ctx, "App")
	if err != nil {
		return err
	}
	for i := range apps {
		keep.add(text(&apps[i], "spec", "image"))
	}
	releases, err := c.platform(ctx, "Release")
	if err != nil {
		return err
	}
	type entry struct {
		number int64
		image  string
		live   bool
	}
	byApp := map[string][]entry{}
	for i := range releases {
		release := &releases[i]
		number, _, _ := unstructured.NestedInt64(release.Object, "spec", "number")
		app := release.GetNamespace() + "/" + text(release, "spec", "app")
		phase := text(release, "status", "phase")
		byApp[app] = append(byApp[app], entry{number, text(release, "spec", "content", "image"), !slices.Contains(endedPhases(), phase)})
	}
	for _, list := range byApp {
		slices.SortFunc(list, func(a, b entry) int { return cmp.Compare(b.number, a.number) })
		for i, release := range list {
			if i < c.opts.Releases || release.live {
				keep.add(release.image)
			}
		}
	}
	builds, err := c.platform(ctx, "Build")
	if err != nil {
		return err
	}
	for i := range builds {
		build := &builds[i]
		if text(build, "status", "finished") != "" {
			continue // its image is a release's by now, or young
		}
		if d, err := digest.Parse(text(build, "spec", "source")); err == nil {
			keep.addDigest(build.GetNamespace()+"/"+text(build, "spec", "app"), d)
		}
		keep.add(text(build, "status", "image"))
	}
	return nil
}

// endedPhases are those of releases that will not serve again but by a rollback.
func endedPhases() []string { return []string{"Replaced", "Superseded", "Failed", "Aborted"} }

func text(object *unstructured.Unstructured, path ...string) string {
	value, _, _ := unstructured.NestedString(object.Object, path...)
	return value
}
