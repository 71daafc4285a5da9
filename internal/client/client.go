package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// Options says who uses a Client. Registry, User and Manager are required.
type Options struct {
	Registry   *registry.Registry
	User       user.Info
	Manager    string                // field manager of its writes, such as "kube-scheduler"
	Authorizer authorizer.Authorizer // nil allows everything: for the server's own bootstrap only
	// Lister is who lists and watches, User by default. Upstream's controllers write as service
	// accounts of their own and read informers that all of them share; this gives the same rights.
	Lister user.Info
	// Scheme knows the Go types that callers use; default the registry's. Custom resources may be of a
	// type that it knows, or unstructured.
	Scheme *runtime.Scheme
}

// Client is a controller-runtime client inside the server's process. Safe for concurrent use.
type Client struct {
	opts   Options
	scheme *runtime.Scheme
	mapper *mapper
	byType *sync.Map // reflect.Type of an object to *registry.Resource
}

var _ ctrlclient.Client = (*Client)(nil)

// New checks opts and returns a Client.
func New(opts Options) (*Client, error) {
	switch {
	case opts.Registry == nil:
		return nil, errors.New("client: Registry is nil")
	case opts.User == nil:
		return nil, errors.New("client: User is nil")
	case opts.Manager == "":
		return nil, errors.New("client: Manager is empty")
	}
	return &Client{
		opts:   opts,
		scheme: cmp.Or(opts.Scheme, opts.Registry.Scheme()),
		mapper: &mapper{registry: opts.Registry},
		byType: new(sync.Map),
	}, nil
}

// Scheme implements ctrlclient.Client.
func (c *Client) Scheme() *runtime.Scheme { return c.scheme }

// RESTMapper implements ctrlclient.Client.
func (c *Client) RESTMapper() meta.RESTMapper { return c.mapper }

// GroupVersionKindFor implements ctrlclient.Client.
func (c *Client) GroupVersionKindFor(obj runtime.Object) (schema.GroupVersionKind, error) {
	return apiutil.GVKForObject(obj, c.scheme)
}

// IsObjectNamespaced implements ctrlclient.Client.
func (c *Client) IsObjectNamespaced(obj runtime.Object) (bool, error) {
	r, err := c.resource(obj)
	if err != nil {
		return false, err
	}
	return r.Namespaced, nil
}

// resource finds what serves the type of obj.
func (c *Client) resource(obj runtime.Object) (*registry.Resource, error) {
	goType := reflect.TypeOf(obj)
	if r, ok := c.byType.Load(goType); ok {
		return r.(*registry.Resource), nil
	}
	kind, err := c.GroupVersionKindFor(obj)
	if err != nil {
		return nil, err
	}
	r := c.opts.Registry.ResourceOf(kind)
	if r == nil {
		return nil, &meta.NoKindMatchError{GroupKind: kind.GroupKind(), SearchedVersions: []string{kind.Version}}
	}
	if !isGeneric(obj) && r.Custom() == nil { // a custom resource may be served another way soon
		c.byType.Store(goType, r)
	}
	return r, nil
}

// listResource finds what serves the items of a list.
func (c *Client) listResource(list ctrlclient.ObjectList) (*registry.Resource, error) {
	goType := reflect.TypeOf(list)
	if r, ok := c.byType.Load(goType); ok {
		return r.(*registry.Resource), nil
	}
	kind, err := c.GroupVersionKindFor(list)
	if err != nil {
		return nil, err
	}
	if n := len(kind.Kind) - len("List"); n > 0 && kind.Kind[n:] == "List" {
		kind.Kind = kind.Kind[:n]
	}
	r := c.opts.Registry.ResourceOf(kind)
	if r == nil {
		return nil, &meta.NoKindMatchError{GroupKind: kind.GroupKind(), SearchedVersions: []string{kind.Version}}
	}
	if !isGeneric(list) && r.Custom() == nil {
		c.byType.Store(goType, r)
	}
	return r, nil
}

// isGeneric reports whether one Go type stands for many kinds.
func isGeneric(obj runtime.Object) bool {
	switch obj.(type) {
	case *unstructured.Unstructured, *unstructured.UnstructuredList, *metav1.PartialObjectMetadata, *metav1.PartialObjectMetadataList:
		return true
	}
	return false
}

// authorize asks whether the user may, and puts it into the context.
func (c *Client) authorize(ctx context.Context, r *registry.Resource, verb, sub, namespace, name string) (context.Context, error) {
	return c.ask(ctx, r, authorizer.AttributesRecord{Verb: verb, Subresource: sub, Namespace: namespace, Name: name})
}

// authorizeSelected asks about a list or watch that a field selector narrows.
func (c *Client) authorizeSelected(ctx context.Context, r *registry.Resource, verb, namespace string, selector fields.Selector) (context.Context, error) {
	about := authorizer.AttributesRecord{Verb: verb, Namespace: namespace}
	if selector != nil {
		about.FieldSelectorRequirements = selector.Requirements()
		about.Name, _ = selector.RequiresExactMatch("metadata.name")
	}
	return c.ask(ctx, r, about)
}

func (c *Client) ask(ctx context.Context, r *registry.Resource, about authorizer.AttributesRecord) (context.Context, error) {
	ctx = genericapirequest.WithUser(ctx, c.opts.User)
	if c.opts.Authorizer == nil {
		return ctx, nil
	}
	about.User, about.ResourceRequest = c.opts.User, true
	about.APIGroup, about.APIVersion, about.Resource = r.Resource.Group, r.Resource.Version, r.Resource.Resource
	if c.opts.Lister != nil && about.Subresource == "" && (about.Verb == "get" || about.Verb == "list" || about.Verb == "watch") {
		about.User, about.Verb, about.Name = c.opts.Lister, "list", "" // as an informer's copy is read
	}
	decision, reason, err := c.opts.Authorizer.Authorize(ctx, &about)
	if decision == authorizer.DecisionAllow {
		return ctx, nil
	}
	if err != nil {
		return ctx, apierrors.NewInternalError(err)
	}
	return ctx, forbidden(about.User, r, about.Verb, about.Subresource, about.Namespace, about.Name, reason)
}

// guardCreate makes an update or apply that turns into a create ask for that right, too.
func (c *Client) guardCreate(ctx context.Context, r *registry.Resource, sub string, obj ctrlclient.Object) context.Context {
	if c.opts.Authorizer == nil || sub != "" {
		return ctx
	}
	return registry.WithCreateGuard(ctx, func(ctx context.Context) error {
		_, err := c.authorize(ctx, r, "create", "", obj.GetNamespace(), obj.GetName())
		return err
	})
}

func forbidden(who user.Info, r *registry.Resource, verb, sub, namespace, name, reason string) error {
	resource := r.Resource.Resource
	if sub != "" {
		resource += "/" + sub
	}
	where := "at the cluster scope"
	if namespace != "" {
		where = fmt.Sprintf("in the namespace %q", namespace)
	}
	msg := fmt.Sprintf("User %q cannot %s resource %q in API group %q %s", who.GetName(), verb, resource, r.Resource.Group, where)
	if reason != "" {
		msg += ": " + reason
	}
	return apierrors.NewForbidden(r.Resource.GroupResource(), name, errors.New(msg))
}

// Get implements ctrlclient.Client. obj shares its insides with the store.
func (c *Client) Get(ctx context.Context, key ctrlclient.ObjectKey, obj ctrlclient.Object, opts ...ctrlclient.GetOption) error {
	r, err := c.resource(obj)
	if err != nil {
		return err
	}
	if ctx, err = c.authorize(ctx, r, "get", "", key.Namespace, key.Name); err != nil {
		return err
	}
	options := (&ctrlclient.GetOptions{}).ApplyOptions(opts)
	revision := "0" // what this server's tables say, as an informer would
	if options.Raw != nil && options.Raw.ResourceVersion != "" {
		revision = options.Raw.ResourceVersion
	}
	entry, err := r.Get(ctx, key.Namespace, key.Name, revision)
	if apierrors.IsNotFound(err) && r.HasCompany() { // another server may just have made it
		entry, err = r.Get(ctx, key.Namespace, key.Name, "")
	}
	if err != nil {
		return err
	}
	return fill(obj, entry.Object)
}

// List implements ctrlclient.Client. Items share their insides with the store. A field
// selector may also name an index of the store, such as "metadata.ownerUID".
func (c *Client) List(ctx context.Context, list ctrlclient.ObjectList, opts ...ctrlclient.ListOption) error {
	r, err := c.listResource(list)
	if err != nil {
		return err
	}
	options := (&ctrlclient.ListOptions{}).ApplyOptions(opts)
	if ctx, err = c.authorizeSelected(ctx, r, "list", options.Namespace, options.FieldSelector); err != nil {
		return err
	}
	revision := "0" // as in Get
	if options.Continue != "" {
		revision = ""
	}
	got, err := r.List(ctx, options.Namespace, registry.ListOptions{
		Revision: revision,
		Labels:   options.LabelSelector, Fields: options.FieldSelector, Limit: options.Limit, Continue: options.Continue, Internal: true,
	})
	if err != nil {
		return err
	}
	if err := fillList(list, got.Entries); err != nil {
		return err
	}
	list.SetResourceVersion(fmt.Sprint(got.Revision))
	list.SetContinue(got.Continue)
	list.SetRemainingItemCount(got.Remaining)
	return nil
}

// Create implements ctrlclient.Client.
func (c *Client) Create(ctx context.Context, obj ctrlclient.Object, opts ...ctrlclient.CreateOption) error {
	r, err := c.resource(obj)
	if err != nil {
		return err
	}
	if ctx, err = c.authorize(ctx, r, "create", "", obj.GetNamespace(), ""); err != nil {
		return err
	}
	options := (&ctrlclient.CreateOptions{}).ApplyOptions(opts)
	in, err := typed(r, obj)
	if err != nil {
		return err
	}
	entry, err := r.Create(ctx, obj.GetNamespace(), in, c.manager(options.FieldManager), options.AsCreateOptions())
	if err != nil {
		return err
	}
	return fill(obj, entry.Object)
}

func (c *Client) manager(asked string) string {
	if asked != "" {
		return asked
	}
	return c.opts.Manager
}

// Update implements ctrlclient.Client.
func (c *Client) Update(ctx context.Context, obj ctrlclient.Object, opts ...ctrlclient.UpdateOption) error {
	options := (&ctrlclient.UpdateOptions{}).ApplyOptions(opts)
	return c.update(ctx, obj, "", options)
}

func (c *Client) update(ctx context.Context, obj ctrlclient.Object, sub string, options *ctrlclient.UpdateOptions) error {
	r, err := c.resource(obj)
	if err != nil {
		return err
	}
	if ctx, err = c.authorize(ctx, r, "update", sub, obj.GetNamespace(), obj.GetName()); err != nil {
		return err
	}
	in, err := typed(r, obj)
	if err != nil {
		return err
	}
	ctx = c.guardCreate(ctx, r, sub, obj)
	entry, _, err := r.Update(ctx, obj.GetNamespace(), obj.GetName(), sub, in, c.manager(options.FieldManager), options.AsUpdateOptions())
	if err != nil {
		return err
	}
	return fill(obj, entry.Object)
}

// Patch implements ctrlclient.Client.
func (c *Client) Patch(ctx context.Context, obj ctrlclient.Object, patch ctrlclient.Patch, opts ...ctrlclient.PatchOption) error {
	options := (&ctrlclient.PatchOptions{}).ApplyOptions(opts)
	return c.patch(ctx, obj, obj, "", patch, options)
}

// patch sends patch, computed against body, to obj or one of its subresources, and fills
// body with the result.
func (c *Client) patch(ctx context.Context, obj, body ctrlclient.Object, sub string, patch ctrlclient.Patch, options *ctrlclient.PatchOptions) error {
	data, err := patch.Data(body)
	if err != nil {
		return fmt.Errorf("computing a patch of %s: %w", ctrlclient.ObjectKeyFromObject(obj), err)
	}
	r, err := c.resource(obj)
	if err != nil {
		return err
	}
	if ctx, err = c.authorize(ctx, r, "patch", sub, obj.GetNamespace(), obj.GetName()); err != nil {
		return err
	}
	ctx = c.guardCreate(ctx, r, sub, obj)
	entry, _, err := r.Patch(ctx, obj.GetNamespace(), obj.GetName(), sub, registry.PatchRequest{
		Type: patch.Type(), Data: data, Options: *options.AsPatchOptions(), Manager: c.manager(options.FieldManager),
	})
	if err != nil {
		return err
	}
	return fill(body, entry.Object)
}

// Apply implements ctrlclient.Client.
func (c *Client) Apply(ctx context.Context, config runtime.ApplyConfiguration, opts ...ctrlclient.ApplyOption) error {
	options := (&ctrlclient.ApplyOptions{}).ApplyOptions(opts)
	return c.apply(ctx, config, "", options)
}

func (c *Client) apply(ctx context.Context, config runtime.ApplyConfiguration, sub string, options *ctrlclient.ApplyOptions) error {
	data, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encoding an apply configuration: %w", err)
	}
	var about metav1.PartialObjectMetadata
	if err := json.Unmarshal(data, &about); err != nil {
		return fmt.Errorf("reading an apply configuration: %w", err)
	}
	patchOptions := &ctrlclient.PatchOptions{DryRun: options.DryRun, Force: options.Force, FieldManager: options.FieldManager}
	target := about
	return c.patch(ctx, &target, &about, sub, ctrlclient.RawPatch(types.ApplyPatchType, data), patchOptions)
}

// Delete implements ctrlclient.Client.
func (c *Client) Delete(ctx context.Context, obj ctrlclient.Object, opts ...ctrlclient.DeleteOption) error {
	r, err := c.resource(obj)
	if err != nil {
		return err
	}
	if ctx, err = c.authorize(ctx, r, "delete", "", obj.GetNamespace(), obj.GetName()); err != nil {
		return err
	}
	options := (&ctrlclient.DeleteOptions{}).ApplyOptions(opts).AsDeleteOptions().DeepCopy()
	_, err = r.Delete(ctx, obj.GetNamespace(), obj.GetName(), options)
	return err
}

// DeleteAllOf implements ctrlclient.Client.
func (c *Client) DeleteAllOf(ctx context.Context, obj ctrlclient.Object, opts ...ctrlclient.DeleteAllOfOption) error {
	r, err := c.resource(obj)
	if err != nil {
		return err
	}
	options := (&ctrlclient.DeleteAllOfOptions{}).ApplyOptions(opts)
	if ctx, err = c.authorize(ctx, r, "deletecollection", "", options.Namespace, ""); err != nil {
		return err
	}
	_, err = r.DeleteCollection(ctx, options.Namespace, options.AsDeleteOptions().DeepCopy(), registry.ListOptions{
		Labels: options.LabelSelector, Fields: options.FieldSelector,
	})
	return err
}

// typed is a private copy of obj in the Go type that the resource stores.
func typed(r *registry.Resource, obj ctrlclient.Object) (runtime.Object, error) {
	u, ok := obj.(*unstructured.Unstructured)
	switch {
	case r.Custom() != nil && !ok:
		return asCustom(r, obj)
	case r.Custom() != nil || !ok:
		return obj.DeepCopyObject(), nil
	}
	out := r.New()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return out, nil
}

// asCustom turns an object of a Go type into the generic form in which custom resources are kept.
func asCustom(r *registry.Resource, obj ctrlclient.Object) (runtime.Object, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	out := &unstructured.Unstructured{Object: content}
	out.SetGroupVersionKind(r.Kind)
	return out, nil
}

// fillCustom is fill from a custom resource. Objects of Go types are made anew.
func fillCustom(out ctrlclient.Object, u *unstructured.Unstructured) error {
	switch target := out.(type) {
	case *unstructured.Unstructured:
		u.DeepCopyInto(target)
		return nil
	case *metav1.PartialObjectMetadata:
		target.ObjectMeta = meta.AsPartialObjectMetadata(u).ObjectMeta
		target.SetGroupVersionKind(u.GroupVersionKind())
		return nil
	}
	to := reflect.ValueOf(out).Elem()
	to.SetZero()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		return fmt.Errorf("client: reading a %s into a %T: %w", u.GetKind(), out, err)
	}
	return nil
}

// fill makes out a shallow copy of obj, which may be of a generic type.
func fill(out ctrlclient.Object, obj store.Object) error {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return fillCustom(out, u)
	}
	switch target := out.(type) {
	case *unstructured.Unstructured:
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
		if err != nil {
			return err
		}
		target.Object = content
		return nil
	case *metav1.PartialObjectMetadata:
		kind := obj.GetObjectKind().GroupVersionKind()
		target.ObjectMeta = *obj.(metav1.ObjectMetaAccessor).GetObjectMeta().(*metav1.ObjectMeta)
		target.SetGroupVersionKind(kind)
		return nil
	}
	to, from := reflect.ValueOf(out), reflect.ValueOf(obj)
	if to.Type() != from.Type() {
		return fmt.Errorf("client: a %T does not fit into a %T", obj, out)
	}
	to.Elem().Set(from.Elem())
	return nil
}

// fillList sets the items of list to shallow copies.
func fillList(list ctrlclient.ObjectList, entries []*store.Entry) error {
	items, err := meta.GetItemsPtr(list)
	if err != nil {
		return err
	}
	slice := reflect.ValueOf(items).Elem()
	out := reflect.MakeSlice(slice.Type(), len(entries), len(entries))
	for i, e := range entries {
		item := out.Index(i)
		if item.Kind() == reflect.Pointer {
			item.Set(reflect.New(item.Type().Elem()))
			item = item.Elem()
		}
		target, ok := item.Addr().Interface().(ctrlclient.Object)
		if !ok {
			return fmt.Errorf("client: items of %T are no objects", list)
		}
		if err := fill(target, e.Object); err != nil {
			return err
		}
	}
	slice.Set(out)
	return nil
}
