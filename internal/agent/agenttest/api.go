package agenttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// API is as much of a Kubernetes API as an agent needs, in memory: objects, strategic merge
// patches, graceful deletion of pods, and informers that are told of a change before the call
// that made it returns.
type API struct {
	client.Client // what is not implemented panics

	mu       sync.Mutex // guards the fields below
	revision int64
	objects  map[schema.GroupVersionKind]map[client.ObjectKey]client.Object
	handlers map[schema.GroupVersionKind][]*registration
	down     bool
	writes   map[string]int
}

// ErrDown is what every call answers while the API cannot be reached.
var ErrDown = errors.New("connection refused")

// NewAPI makes an empty API.
func NewAPI() *API {
	return &API{
		objects:  map[schema.GroupVersionKind]map[client.ObjectKey]client.Object{},
		handlers: map[schema.GroupVersionKind][]*registration{},
		writes:   map[string]int{},
	}
}

// SetDown makes every call fail, or work again.
func (a *API) SetDown(down bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = down
}

// Writes counts the writes of a kind by verb, such as "patch Pod".
func (a *API) Writes(what string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.writes[what]
}

func kindOf(object client.Object) schema.GroupVersionKind {
	gvk, err := apiutil.GVKForObject(object, scheme.Scheme)
	if err != nil {
		panic(err)
	}
	return gvk
}

func resourceOf(gvk schema.GroupVersionKind) schema.GroupResource {
	return schema.GroupResource{Group: gvk.Group, Resource: gvk.Kind}
}

func (a *API) tableLocked(gvk schema.GroupVersionKind) map[client.ObjectKey]client.Object {
	if a.objects[gvk] == nil {
		a.objects[gvk] = map[client.ObjectKey]client.Object{}
	}
	return a.objects[gvk]
}

// Get implements client.Client.
func (a *API) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		return ErrDown
	}
	gvk := kindOf(into)
	object, ok := a.tableLocked(gvk)[key]
	if !ok {
		return apierrors.NewNotFound(resourceOf(gvk), key.Name)
	}
	reflect.ValueOf(into).Elem().Set(reflect.ValueOf(object.DeepCopyObject()).Elem())
	return nil
}

// List implements client.Client; of the options it knows the namespace.
func (a *API) List(_ context.Context, list client.ObjectList, opts ...client.ListOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		return ErrDown
	}
	var options client.ListOptions
	options.ApplyOptions(opts)
	gvk, err := apiutil.GVKForObject(list, scheme.Scheme)
	if err != nil {
		return err
	}
	gvk.Kind = gvk.Kind[:len(gvk.Kind)-len("List")]
	items := reflect.ValueOf(list).Elem().FieldByName("Items")
	for key, object := range a.tableLocked(gvk) {
		if options.Namespace == "" || options.Namespace == key.Namespace {
			items.Set(reflect.Append(items, reflect.ValueOf(object.DeepCopyObject()).Elem()))
		}
	}
	return nil
}

// Create implements client.Client.
func (a *API) Create(_ context.Context, object client.Object, _ ...client.CreateOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		return ErrDown
	}
	gvk, key := kindOf(object), client.ObjectKeyFromObject(object)
	if _, ok := a.tableLocked(gvk)[key]; ok {
		return apierrors.NewAlreadyExists(resourceOf(gvk), key.Name)
	}
	a.revision++
	if object.GetUID() == "" {
		object.SetUID(types.UID(fmt.Sprintf("uid-%d", a.revision)))
	}
	object.SetCreationTimestamp(metav1.Now())
	object.SetGeneration(1)
	a.storeLocked("create", gvk, key, object)
	return nil
}

func (a *API) storeLocked(verb string, gvk schema.GroupVersionKind, key client.ObjectKey, object client.Object) {
	a.revision++
	object.SetResourceVersion(strconv.FormatInt(a.revision, 10))
	before, existed := a.tableLocked(gvk)[key]
	stored := object.DeepCopyObject().(client.Object)
	a.objects[gvk][key] = stored
	a.writes[verb+" "+gvk.Kind]++
	for _, h := range a.handlers[gvk] {
		if existed {
			h.handler.OnUpdate(before, stored)
		} else {
			h.handler.OnAdd(stored, false)
		}
	}
}

// Update implements client.Client.
func (a *API) Update(_ context.Context, object client.Object, _ ...client.UpdateOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		return ErrDown
	}
	gvk, key := kindOf(object), client.ObjectKeyFromObject(object)
	before, ok := a.tableLocked(gvk)[key]
	if !ok {
		return apierrors.NewNotFound(resourceOf(gvk), key.Name)
	}
	object.SetUID(before.GetUID())
	object.SetGeneration(before.GetGeneration() + 1)
	a.storeLocked("update", gvk, key, object)
	return nil
}

// Patch implements client.Client for strategic merge patches.
func (a *API) Patch(_ context.Context, object client.Object, patch client.Patch, _ ...client.PatchOption) error {
	return a.patch("patch", object, patch)
}

func (a *API) patch(verb string, object client.Object, patch client.Patch) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		return ErrDown
	}
	gvk, key := kindOf(object), client.ObjectKeyFromObject(object)
	before, ok := a.tableLocked(gvk)[key]
	if !ok {
		return apierrors.NewNotFound(resourceOf(gvk), key.Name)
	}
	data, err := patch.Data(object)
	if err != nil {
		return err
	}
	if patch.Type() != types.StrategicMergePatchType {
		return fmt.Errorf("patch of type %s", patch.Type())
	}
	old, err := json.Marshal(before)
	if err != nil {
		return err
	}
	merged, err := strategicpatch.StrategicMergePatch(old, data, before)
	if err != nil {
		return err
	}
	fresh := reflect.New(reflect.TypeOf(before).Elem()).Interface().(client.Object)
	if err := json.Unmarshal(merged, fresh); err != nil {
		return err
	}
	if fresh.GetUID() != before.GetUID() {
		return apierrors.NewConflict(resourceOf(gvk), key.Name, errors.New("the UID differs"))
	}
	a.storeLocked(verb, gvk, key, fresh)
	reflect.ValueOf(object).Elem().Set(reflect.ValueOf(fresh).Elem())
	return nil
}

// Delete implements client.Client: pods with a grace period go in two steps.
func (a *API) Delete(_ context.Context, object client.Object, opts ...client.DeleteOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		return ErrDown
	}
	var options client.DeleteOptions
	options.ApplyOptions(opts)
	gvk, key := kindOf(object), client.ObjectKeyFromObject(object)
	before, ok := a.tableLocked(gvk)[key]
	if !ok {
		return apierrors.NewNotFound(resourceOf(gvk), key.Name)
	}
	if p := options.Preconditions; p != nil && p.UID != nil && *p.UID != before.GetUID() {
		return apierrors.NewConflict(resourceOf(gvk), key.Name, errors.New("the UID differs"))
	}
	if pod, ok := before.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
		grace := int64(30)
		if pod.Spec.TerminationGracePeriodSeconds != nil {
			grace = *pod.Spec.TerminationGracePeriodSeconds
		}
		if options.GracePeriodSeconds != nil {
			grace = *options.GracePeriodSeconds
		}
		if grace > 0 {
			pod = pod.DeepCopy()
			now := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second))
			if pod.DeletionTimestamp == nil || grace < *pod.DeletionGracePeriodSeconds {
				pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &now, &grace
			}
			pod.Generation++
			a.storeLocked("delete", gvk, key, pod)
			return nil
		}
	}
	delete(a.objects[gvk], key)
	a.writes["delete "+gvk.Kind]++
	for _, h := range a.handlers[gvk] {
		h.handler.OnDelete(before)
	}
	return nil
}

// Status implements client.Client.
func (a *API) Status() client.SubResourceWriter { return subResource{api: a, name: "status"} }

// SubResource implements client.Client.
func (a *API) SubResource(name string) client.SubResourceClient {
	return subResource{api: a, name: name}
}

type subResource struct {
	client.SubResourceClient
	api  *API
	name string
}

// Patch implements client.SubResourceWriter.
func (s subResource) Patch(_ context.Context, object client.Object, patch client.Patch, _ ...client.SubResourcePatchOption) error {
	return s.api.patch("patch "+s.name, object, patch)
}

// GetInformer is an agent's source of events.
func (a *API) GetInformer(_ context.Context, object client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	return informer{api: a, gvk: kindOf(object)}, nil
}

type informer struct {
	cache.Informer
	api *API
	gvk schema.GroupVersionKind
}

type registration struct {
	handler toolscache.ResourceEventHandler
}

func (*registration) HasSynced() bool                          { return true }
func (*registration) HasSyncedChecker() toolscache.DoneChecker { return synced{} }

type synced struct{}

func (synced) Name() string { return "memory" }
func (synced) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

// AddEventHandler implements cache.Informer.
func (i informer) AddEventHandler(handler toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	i.api.mu.Lock()
	defer i.api.mu.Unlock()
	r := &registration{handler}
	i.api.handlers[i.gvk] = append(i.api.handlers[i.gvk], r)
	for _, object := range i.api.tableLocked(i.gvk) {
		handler.OnAdd(object, true)
	}
	return r, nil
}

// RemoveEventHandler implements cache.Informer.
func (i informer) RemoveEventHandler(handle toolscache.ResourceEventHandlerRegistration) error {
	i.api.mu.Lock()
	defer i.api.mu.Unlock()
	list := i.api.handlers[i.gvk]
	for n, r := range list {
		if r == handle {
			i.api.handlers[i.gvk] = append(list[:n:n], list[n+1:]...)
			break
		}
	}
	return nil
}
