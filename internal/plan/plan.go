package plan

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// manager is the field manager of kubectl apply --server-side.
const manager = "kubectl"

// serveLimit is how long a kind that is defined in the same documents may take until it is served.
const serveLimit = 5 * time.Second

// Options says what to plan.
type Options struct {
	Cluster   *rest.Config
	Namespace string        // of objects that name none; default "default"
	Quiet     time.Duration // the copy is done when nothing has changed for so long; default 700ms
	Limit     time.Duration // the copy is looked at after so long in any case; default 30s
	Progress  func(string)  // told what is being done; may be nil
}

// Result is what would happen.
type Result struct {
	Objects []ObjectChange `json:"objects"`
	Pods    []PodChange    `json:"pods"`
	// Missing are kinds that the user may not read: the plan does without them.
	Missing []string `json:"missing,omitempty"`
	// Settled says that nothing was changing any more when the copy was looked at.
	Settled bool `json:"settled"`
}

// InputError is an error of the documents, not of the cluster.
type InputError struct{ Err error }

// Error returns the message.
func (e *InputError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *InputError) Unwrap() error { return e.Err }

func (o *Options) setDefaults() {
	o.Namespace = cmp.Or(o.Namespace, metav1.NamespaceDefault)
	o.Quiet = cmp.Or(o.Quiet, 700*time.Millisecond)
	o.Limit = cmp.Or(o.Limit, 30*time.Second)
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
}

// Manifest says what would happen if the documents, YAML or JSON, were applied. An error of the documents is an
// *InputError.
func Manifest(ctx context.Context, documents io.Reader, opts Options) (Result, error) {
	opts.setDefaults()
	objects, err := parse(documents)
	if err != nil {
		return Result{}, &InputError{err}
	}
	real, err := connect(opts.Cluster)
	if err != nil {
		return Result{}, err
	}
	opts.Progress("asking the cluster to check the documents")
	defines := slices.ContainsFunc(objects, func(obj *unstructured.Unstructured) bool { return obj.GetKind() == "CustomResourceDefinition" })
	for i, obj := range objects {
		if _, _, ok := real.resourceOf(obj.GroupVersionKind()); !ok && !defines {
			return Result{}, &InputError{fmt.Errorf("%s %s: the cluster serves no %s", obj.GetKind(), obj.GetName(), obj.GroupVersionKind())}
		}
		if objects[i], err = real.dryRun(ctx, obj, opts.Namespace); err != nil {
			return Result{}, err
		}
	}
	opts.Progress("copying the cluster")
	d, err := real.newDouble(ctx, false)
	if err != nil {
		return Result{}, err
	}
	result, err := d.compare(ctx, objects, opts)
	result.Missing = d.missing
	return result, errors.Join(err, d.stop())
}

// compare lets the copy come to rest before and after the objects are applied.
func (d *double) compare(ctx context.Context, objects []*unstructured.Unstructured, opts Options) (Result, error) {
	var err error
	playing, cancel := context.WithCancel(ctx)
	defer cancel()
	if d.agents, err = startAgents(playing, d.plane); err != nil {
		return Result{}, err
	}
	defer d.agents.wait()
	defer cancel()
	if _, err := d.settle(ctx, opts); err != nil {
		return Result{}, err
	}
	before, err := take(ctx, d.plane)
	if err != nil {
		return Result{}, err
	}
	opts.Progress("applying the documents to the copy")
	for _, obj := range objects {
		if err := d.apply(ctx, obj); err != nil {
			return Result{}, err
		}
	}
	settled, err := d.settle(ctx, opts)
	if err != nil {
		return Result{}, err
	}
	after, err := take(ctx, d.plane)
	if err != nil {
		return Result{}, err
	}
	d.agents.mu.Lock()
	gone := maps.Clone(d.agents.gone)
	d.agents.mu.Unlock()
	return Result{Objects: objectChanges(before, after), Pods: podChanges(before, after, gone), Settled: settled}, nil
}

// settle waits until the copy does not change any more and says whether it came to rest.
func (d *double) settle(ctx context.Context, opts Options) (bool, error) {
	const step = 20 * time.Millisecond
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	begun := time.Now()
	last, since := d.plane.Revision(), begun
	for {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case now := <-ticker.C:
			if revision := d.plane.Revision(); revision != last {
				last, since = revision, now
			}
			if now.Sub(since) >= opts.Quiet {
				return true, nil
			}
			if now.Sub(begun) >= opts.Limit {
				return false, nil
			}
		}
	}
}

// apply puts an object, as the cluster would have stored it, into the copy.
func (d *double) apply(ctx context.Context, obj *unstructured.Unstructured) error {
	kind := obj.GroupVersionKind()
	wait, cancel := context.WithTimeout(ctx, serveLimit)
	defer cancel()
	if !served(wait, d.plane, kind) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &InputError{fmt.Errorf("%s %s: the cluster serves no %s", kind.Kind, obj.GetName(), kind)}
	}
	if !d.plane.Registry().ResourceOf(kind).Namespaced {
		obj.SetNamespace("")
	}
	data, err := json.Marshal(obj)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", kind.Kind, obj.GetName(), err)
	}
	target := &unstructured.Unstructured{}
	target.SetGroupVersionKind(kind)
	target.SetNamespace(obj.GetNamespace())
	target.SetName(obj.GetName())
	err = d.plane.Admin().Patch(ctx, target, client.RawPatch(types.ApplyPatchType, data), client.FieldOwner(manager), client.ForceOwnership)
	if err != nil {
		return &InputError{fmt.Errorf("%s %s: %w", kind.Kind, obj.GetName(), err)}
	}
	return nil
}

// dryRun asks the cluster what it would store. What needs a namespace or a kind of the same documents is taken as it is.
func (c *cluster) dryRun(ctx context.Context, obj *unstructured.Unstructured, namespace string) (*unstructured.Unstructured, error) {
	kind := obj.GroupVersionKind()
	if obj.GetName() == "" {
		return nil, &InputError{fmt.Errorf("a %s without metadata.name cannot be applied", kind.Kind)}
	}
	resource, namespaced, ok := c.resourceOf(kind)
	if !ok {
		if obj.GetNamespace() == "" {
			obj.SetNamespace(namespace) // of a definition in the same documents; one without namespaces ignores it
		}
		return obj, nil
	}
	var target = c.dynamic.Resource(resource).Namespace("")
	if namespaced {
		if obj.GetNamespace() == "" {
			obj.SetNamespace(namespace)
		}
		target = c.dynamic.Resource(resource).Namespace(obj.GetNamespace())
	} else {
		obj.SetNamespace("")
	}
	stored, err := target.Apply(ctx, obj.GetName(), obj, metav1.ApplyOptions{FieldManager: manager, Force: true, DryRun: []string{metav1.DryRunAll}})
	switch {
	case apierrors.IsNotFound(err):
		return obj, nil // its namespace is in the documents, or does not exist: the copy will say
	case apierrors.IsInvalid(err) || apierrors.IsBadRequest(err):
		return nil, &InputError{fmt.Errorf("%s %s: %w", kind.Kind, obj.GetName(), err)}
	case err != nil:
		return nil, fmt.Errorf("%s %s: %w", kind.Kind, obj.GetName(), err)
	}
	delete(stored.Object, "status")
	for _, field := range []string{"managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink"} {
		unstructured.RemoveNestedField(stored.Object, "metadata", field)
	}
	return stored, nil
}

// resourceOf finds a kind among what the cluster serves, in its preferred version or any other.
func (c *cluster) resourceOf(kind schema.GroupVersionKind) (resource schema.GroupVersionResource, namespaced, ok bool) {
	for _, list := range c.found {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil || gv.Group != kind.Group {
			continue
		}
		for i := range list.APIResources {
			if r := &list.APIResources[i]; r.Kind == kind.Kind && slices.Contains(r.Verbs, "patch") {
				return kind.GroupVersion().WithResource(r.Name), r.Namespaced, true
			}
		}
	}
	return schema.GroupVersionResource{}, false, false
}

// parse reads YAML or JSON documents; lists are taken apart.
func parse(documents io.Reader) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	decoder := utilyaml.NewYAMLOrJSONDecoder(documents, 4096)
	for number := 1; ; number++ {
		var raw json.RawMessage
		err := decoder.Decode(&raw)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("document %d is neither YAML nor JSON: %w", number, err)
		}
		if trimmed := bytes.TrimSpace(raw); len(trimmed) == 0 || bytes.Equal(trimmed, []byte("null")) {
			continue
		}
		var obj unstructured.Unstructured
		if err := json.Unmarshal(raw, &obj.Object); err != nil || obj.GetKind() == "" || obj.GetAPIVersion() == "" {
			return nil, fmt.Errorf("document %d is no object: it needs apiVersion, kind and metadata.name", number)
		}
		if !obj.IsList() {
			out = append(out, &obj)
			continue
		}
		err = obj.EachListItem(func(item runtime.Object) error {
			one, ok := item.(*unstructured.Unstructured)
			if !ok || one.GetKind() == "" {
				return errors.New("it has an item without a kind")
			}
			out = append(out, one)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("document %d, a %s: %w", number, obj.GetKind(), err)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("there is no object in it")
	}
	return out, nil
}
