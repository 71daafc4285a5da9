package registry

import (
	"context"
	"slices"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"gantry.dev/gantry/internal/invariant"
	"gantry.dev/gantry/internal/store"
)

// OwnerIndex is the index of namespaced kinds by the UID of the controlling owner.
const OwnerIndex = "metadata.ownerUID"

// allVerbs are the verbs of an ordinary resource as upstream's discovery lists them.
func allVerbs() []string {
	return []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
}

// withoutDeleteCollection are the verbs of a resource whose objects are deleted one by one.
func withoutDeleteCollection() []string {
	return slices.DeleteFunc(allVerbs(), func(verb string) bool { return verb == "deletecollection" })
}

// define starts the definition of a kind with Go type T.
func define[T any, P interface {
	*T
	protoObject
}](gv schema.GroupVersion, plural string, strategy Strategy) *definition {
	kinds, _, err := legacyscheme.Scheme.ObjectKinds(P(new(T)))
	invariant.Check(err == nil && len(kinds) == 1, "kind of %s: %v, %v", plural, kinds, err)
	kind := kinds[0]
	name := plural
	if gv.Group != "" {
		name += "." + gv.Group
	}
	d := &definition{
		info: Info{
			Resource:   gv.WithResource(plural),
			Kind:       kind,
			Stored:     kind,
			Primary:    true,
			ListKind:   kind.Kind + "List",
			Namespaced: strategy.NamespaceScoped(),
			Singular:   strings.ToLower(kind.Kind),
			Verbs:      allVerbs(),
		},
		strategy: strategy,
		newObj: func() store.Object {
			obj := P(new(T))
			obj.GetObjectKind().SetGroupVersionKind(kind)
			return obj
		},
		stored: &store.Kind{
			Name:       name,
			Prefix:     "/registry/" + plural + "/",
			Namespaced: strategy.NamespaceScoped(),
			Codec:      typedCodec[T, P]{kind},
			Indexes:    map[string]store.IndexFunc{},
		},
		versions: typedVersions{kind, kind},
		served:   typedCodec[T, P]{kind},
	}
	if d.info.Namespaced {
		d.stored.Indexes[OwnerIndex] = ownerUID
	}
	return d
}

func ownerUID(obj store.Object) []string {
	if owner := metav1.GetControllerOfNoCopy(obj); owner != nil {
		return []string{string(owner.UID)}
	}
	return nil
}

func (d *definition) short(names ...string) *definition {
	d.info.ShortNames = names
	return d
}

func (d *definition) category(names ...string) *definition {
	d.info.Categories = names
	return d
}

// verbs sets what can be done with the kind where that is not everything.
func (d *definition) verbs(names []string) *definition {
	d.info.Verbs = names
	return d
}

// returnsDeleted has a finished delete answered with the object, not a Status.
func (d *definition) returnsDeleted() *definition {
	d.returnDeleted = true
	return d
}

// at sets a place in etcd that is not the plural name.
func (d *definition) at(prefix string) *definition {
	d.stored.Prefix = prefix
	return d
}

// prints sets what makes the columns of the kind.
func (d *definition) prints(table rest.TableConvertor) *definition {
	d.table = table
	return d
}

// normalized has the scheme rewrite what a client sends before anything looks at it: conversions of
// the kind move fields, and managed fields are of what upstream sees then.
func (d *definition) normalized() *definition {
	d.normalizes = true
	return d
}

// warnsOfDelete adds warnings to the answer of a delete.
func (d *definition) warnsOfDelete(warn func(ctx context.Context, opts *metav1.DeleteOptions)) *definition {
	d.hooks.beforeDelete = warn
	return d
}

// storedAsJSON keeps the objects in etcd as JSON, not protobuf.
func (d *definition) storedAsJSON() *definition {
	d.stored.Codec = jsonStored{d.stored.Codec}
	return d
}

// selects names the fields beyond metadata.name and metadata.namespace that selectors know.
func (d *definition) selects(set func(obj store.Object) fields.Set) *definition {
	d.selectable = set
	return d
}

// index makes lists by the field selector of that name quick.
func (d *definition) index(field string, values store.IndexFunc) *definition {
	d.stored.Indexes[field] = values
	d.indexedFields = append(d.indexedFields, field)
	return d
}

func (d *definition) expiring(expires func(obj store.Object) time.Time) *definition {
	d.expires = expires
	return d
}

func (d *definition) hooked(h hooks) *definition {
	d.hooks = h
	return d
}

// guarded checks every change of the object before it is stored.
func (d *definition) guarded(check func(ctx context.Context, obj, old runtime.Object) error) *definition {
	d.hooks.begin = func(ctx context.Context, obj, old runtime.Object, _ bool) (func(bool), error) {
		return nil, check(ctx, obj, old)
	}
	return d
}

// alsoServedAs serves the objects of d in another version too: o, of which only type, names and
// strategy count. What d has else, o has. It comes last.
func (d *definition) alsoServedAs(o *definition) *definition {
	o.info.Stored, o.info.Primary = d.info.Kind, false
	o.stored, o.versions = d.stored, typedVersions{o.info.Kind, d.info.Kind}
	o.info.ShortNames, o.info.Categories, o.info.Verbs = d.info.ShortNames, d.info.Categories, d.info.Verbs
	o.selectable, o.indexedFields, o.returnDeleted, o.hooks, o.table = d.selectable, d.indexedFields, d.returnDeleted, d.hooks, d.table
	for _, sub := range d.subs {
		if sub.strategy != nil {
			o.view(sub.info.Name, sub.strategy, sub.info.Verbs...)
		} else {
			o.action(sub)
		}
	}
	d.also = append(d.also, o)
	return d
}

func (d *definition) withStatus(strategy rest.RESTUpdateStrategy) *definition {
	return d.view("status", strategy, "get", "patch", "update")
}

// view adds a subresource that is the whole object under another strategy.
func (d *definition) view(name string, strategy rest.RESTUpdateStrategy, verbs ...string) *definition {
	return d.action(&subresource{
		info:     SubresourceInfo{Name: name, Kind: d.info.Kind, Verbs: verbs},
		newObj:   func() runtime.Object { return d.newObj() },
		strategy: strategy,
	})
}

// action adds a subresource of another type.
func (d *definition) action(sub *subresource) *definition {
	d.subs = append(d.subs, sub)
	d.info.Subresources = append(d.info.Subresources, sub.info)
	slices.SortFunc(d.info.Subresources, func(a, b SubresourceInfo) int { return strings.Compare(a.Name, b.Name) })
	return d
}

// connects adds subresources that open a stream to a node; the HTTP layer serves them.
func (d *definition) connects(names ...string) *definition {
	for _, name := range names {
		verbs := []string{"create", "get"}
		kind := d.info.Kind.Kind + strings.ToUpper(name[:1]) + name[1:] + "Options"
		if name == "portforward" {
			kind = "PodPortForwardOptions"
		}
		if name == "proxy" {
			verbs = []string{"create", "delete", "get", "patch", "update"}
		}
		d.action(&subresource{info: SubresourceInfo{Name: name, Kind: d.info.Kind.GroupVersion().WithKind(kind), Verbs: verbs}})
	}
	return d
}

// reads adds a subresource that is only read, by the HTTP layer.
func (d *definition) reads(name string) *definition {
	return d.action(&subresource{info: SubresourceInfo{Name: name, Kind: d.info.Kind, Verbs: []string{"get"}}})
}

// scaled adds the scale subresource.
func (d *definition) scaled(m scaleMapping) *definition {
	return d.action(&subresource{
		info: SubresourceInfo{
			Name: "scale", Kind: autoscalingv1.SchemeGroupVersion.WithKind("Scale"), Verbs: []string{"get", "patch", "update"},
		},
		newObj:     func() runtime.Object { return &autoscalingv1.Scale{} },
		fromParent: m.toScale,
		toParent:   m.fromScale,
	})
}
