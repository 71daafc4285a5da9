package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"gantry.dev/gantry/internal/store"
)

// Custom is what the definition of a custom resource says about one served version of it, where the
// scheme speaks for built-in kinds.
type Custom interface {
	Versions
	Reader
	Owners
	Describer
}

// Reader makes objects of what clients send.
type Reader interface {
	// Decode reads a document, with the defaults of its schema. problems are unknown and duplicate
	// fields, looked for if strict.
	Decode(data []byte, yaml, strict bool) (obj store.Object, problems []error, err error)
	// Coerce drops what the schema does not know and gives the metadata its form. problems are the
	// unknown fields, if strict.
	Coerce(obj store.Object, strict bool) (problems []error, err error)
	SetDefaults(obj store.Object)
	// FieldLabel checks a label of a field selector.
	FieldLabel(label, value string) (string, string, error)
}

// Owners keeps managed fields.
type Owners interface {
	// FieldManager is of the object, or as it is written through a subresource.
	FieldManager(sub string) (*managedfields.FieldManager, error)
	// TypeConverter knows the structure of the objects, for merging.
	TypeConverter() (managedfields.TypeConverter, error)
}

// Describer tells clients about the version.
type Describer interface {
	rest.TableConvertor // makes the columns of an object or list
	OpenAPIV2() (*spec.Swagger, error)
	OpenAPIV3() (*spec3.OpenAPI, error)
}

// CustomKind is a kind that comes and goes: one table and the versions in which it is served.
type CustomKind struct {
	Table    *store.Kind
	Versions []CustomVersion
	// Terminating refuses to create objects.
	Terminating bool

	all       []*Resource
	resources []*Resource // that are served
}

// CustomVersion is one version of a CustomKind.
type CustomVersion struct {
	Info     Info // without subresources
	Hidden   bool // not served: it is there because objects are stored in it
	Strategy Strategy
	New      func() store.Object
	Codec    store.Codec                   // of the served version
	Custom   Custom                        // required
	Fields   func(store.Object) fields.Set // what field selectors know beyond the metadata; nil for nothing
	Status   rest.RESTUpdateStrategy       // nil: there is no status subresource
	Scale    *CustomScale                  // nil: there is no scale subresource
}

// CustomScale maps objects to their Scale and back.
type CustomScale struct {
	FromParent func(parent store.Object) (store.Object, error)
	// Before is FromParent for a change: a Scale that says where the parent has no replicas.
	Before   func(parent store.Object) (store.Object, error)
	ToParent func(parent, scale store.Object) error
	Replicas managedfields.ResourcePathMappings
}

// SetCustom serves kinds, or serves them another way. Their tables are made when they are not there.
// Watches of kinds that change end, so that their readers see what is served from now on.
func (r *Registry) SetCustom(ctx context.Context, kinds ...*CustomKind) error {
	r.customMu.Lock()
	defer r.customMu.Unlock()
	var added []*store.Kind
	for _, kind := range kinds {
		if r.opts.Sealers != nil && len(kind.Versions) > 0 {
			kind.Table.Sealer = r.opts.Sealers(kind.Versions[0].Info.Resource.GroupResource())
		}
		if !r.store.HasKind(kind.Table.Name) {
			added = append(added, kind.Table)
		}
	}
	if err := r.store.AddKinds(ctx, added...); err != nil {
		return fmt.Errorf("adding custom kinds: %w", err)
	}
	var changed []string
	for _, kind := range kinds {
		name := kind.Table.Name
		if r.custom[name] != nil {
			changed = append(changed, name)
		}
		r.custom[name] = kind
		for _, v := range kind.Versions {
			res := r.newResource(v.definition(kind))
			kind.all = append(kind.all, res)
			if !v.Hidden {
				kind.resources = append(kind.resources, res)
			}
		}
	}
	r.publishLocked()
	for _, name := range changed {
		r.store.EndWatches(name)
	}
	return nil
}

// RemoveCustom stops serving a kind and drops its table. What etcd holds stays.
func (r *Registry) RemoveCustom(ctx context.Context, name string) error {
	r.customMu.Lock()
	defer r.customMu.Unlock()
	if r.custom[name] == nil {
		return nil
	}
	delete(r.custom, name)
	r.publishLocked()
	if err := r.store.RemoveKind(ctx, name); err != nil && !errors.Is(err, store.ErrClosed) {
		return fmt.Errorf("removing custom kind %s: %w", name, err)
	}
	return nil
}

// CustomResource is the primary version of a custom kind, served or not; nil if there is no such kind.
func (r *Registry) CustomResource(name string) *Resource {
	r.customMu.Lock()
	defer r.customMu.Unlock()
	kind := r.custom[name]
	if kind == nil {
		return nil
	}
	for _, res := range kind.all {
		if res.Primary {
			return res
		}
	}
	return nil
}

// IsBuiltin reports whether a built-in kind, in any version, has that name.
func (r *Registry) IsBuiltin(group, plural string) bool {
	for _, d := range r.defs {
		if d.info.Resource.Group == group && d.info.Resource.Resource == plural {
			return true
		}
	}
	return false
}

// Clear deletes every object of the table. Admission is not asked.
func (r *Resource) Clear(ctx context.Context) error {
	quiet := *r
	quiet.quiet = true
	_, err := quiet.DeleteCollection(ctx, "", &metav1.DeleteOptions{}, ListOptions{})
	return err
}

// publishLocked makes the index of built-in and custom kinds. A custom kind does not hide a built-in
// one. r.customMu is held.
func (r *Registry) publishLocked() {
	old := r.index.Load()
	resources := slices.DeleteFunc(slices.Clone(old.resources), func(res *Resource) bool { return res.def.custom != nil })
	builtin := newIndex(resources)
	names := make([]string, 0, len(r.custom))
	for name := range r.custom {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, res := range r.custom[name].resources {
			if builtin.byName[res.Resource] == nil {
				resources = append(resources, res)
			}
		}
	}
	r.index.Store(newIndex(resources))
	close(old.changed)
}

func (v *CustomVersion) definition(kind *CustomKind) *definition {
	d := &definition{
		info: v.Info, strategy: v.Strategy, newObj: v.New, stored: kind.Table, versions: v.Custom, served: v.Codec,
		custom: v.Custom, selectable: v.Fields, table: v.Custom,
	}
	if v.Status != nil {
		d.withStatus(v.Status)
	}
	if v.Scale != nil {
		d.action(&subresource{
			info: SubresourceInfo{
				Name: "scale", Kind: autoscalingv1.SchemeGroupVersion.WithKind("Scale"), Verbs: []string{"get", "patch", "update"},
			},
			newObj:     func() runtime.Object { return &autoscalingv1.Scale{} },
			fromParent: v.Scale.FromParent, before: v.Scale.Before, toParent: v.Scale.ToParent, replicas: v.Scale.Replicas,
		})
	}
	if kind.Terminating {
		d.hooks.begin = func(_ context.Context, obj, old runtime.Object, _ bool) (func(bool), error) {
			if old != nil {
				return nil, nil
			}
			meta, err := metaOf(obj)
			if err != nil {
				return nil, err
			}
			return nil, apierrors.NewForbidden(v.Info.Resource.GroupResource(), meta.GetName(),
				errors.New("create not allowed while custom resource definition is terminating"))
		}
	}
	return d
}

// NewCustomTable describes the table of a custom resource, kept where upstream keeps it.
func NewCustomTable(group, plural string, namespaced bool, codec store.Codec) *store.Kind {
	kind := &store.Kind{
		Name: plural + "." + group, Prefix: "/registry/" + strings.Join([]string{group, plural}, "/") + "/",
		Namespaced: namespaced, Codec: codec, Indexes: map[string]store.IndexFunc{},
	}
	if namespaced {
		kind.Indexes[OwnerIndex] = ownerUID
	}
	return kind
}
