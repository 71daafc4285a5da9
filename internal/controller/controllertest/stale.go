package controllertest

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// mirror is a cache of a kind that lags behind, as that of a controller on another machine does: what changes
// comes to it in order, some time later. It is never older than what the controller's handlers have been told.
type mirror struct {
	f     *faulty
	ready chan struct{} // closed when it has what there was

	mu      sync.Mutex // guards the fields below
	end     func()     // nil if it follows nothing
	table   map[types.NamespacedName]client.Object
	pending []lagging
	applied uint64 // the newest resource version that is in table
}

// lagging is a change that the mirror does not show yet.
type lagging struct {
	object client.Object
	gone   bool
	due    time.Time
}

// mirrorOf returns the mirror of a kind, nil if reads of it are not stale.
func (f *faulty) mirrorOf(obj runtime.Object) (*mirror, schema.GroupVersionKind) {
	if f.faults.Stale <= 0 {
		return nil, schema.GroupVersionKind{}
	}
	switch obj.(type) {
	case *unstructured.Unstructured, *unstructured.UnstructuredList, *metav1.PartialObjectMetadata, *metav1.PartialObjectMetadataList:
		return nil, schema.GroupVersionKind{}
	}
	gvk, err := apiutil.GVKForObject(obj, clientgoscheme.Scheme)
	if err != nil {
		return nil, gvk
	}
	gvk.Kind = strings.TrimSuffix(gvk.Kind, "List")
	f.mirrorsMu.Lock()
	m, known := f.mirrors[gvk]
	if !known {
		m = &mirror{f: f, table: map[types.NamespacedName]client.Object{}, ready: make(chan struct{})}
		if f.mirrors == nil {
			f.mirrors = map[schema.GroupVersionKind]*mirror{}
		}
		f.mirrors[gvk] = m
	}
	f.mirrorsMu.Unlock()
	if !known {
		m.follow(gvk)
		close(m.ready)
	}
	select {
	case <-m.ready:
	case <-f.ctx.Done():
	}
	return m, gvk
}

// follow begins to mirror a kind, and returns when what there is has come.
func (m *mirror) follow(gvk schema.GroupVersionKind) {
	made, err := clientgoscheme.Scheme.New(gvk)
	if err != nil {
		return
	}
	inner, err := m.f.informers.GetInformer(m.f.ctx, made.(client.Object))
	if err != nil {
		return
	}
	registration, err := inner.AddEventHandler(toolscache.ResourceEventHandlerDetailedFuncs{
		AddFunc:    func(obj any, first bool) { m.observe(obj.(client.Object), false, first) },
		UpdateFunc: func(_, obj any) { m.observe(obj.(client.Object), false, false) },
		DeleteFunc: func(obj any) {
			if last, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = last.Obj
			}
			m.observe(obj.(client.Object), true, false)
		},
	})
	if err != nil {
		return
	}
	m.mu.Lock()
	m.end = func() { _ = inner.RemoveEventHandler(registration) }
	m.mu.Unlock()
	select {
	case <-registration.HasSyncedChecker().Done():
	case <-m.f.ctx.Done():
	}
}

func (m *mirror) observe(obj client.Object, gone, first bool) {
	due := time.Now().Add(m.f.upTo(m.f.faults.Stale))
	m.mu.Lock()
	defer m.mu.Unlock()
	if first {
		due = time.Time{}
	}
	m.pending = append(m.pending, lagging{obj, gone, due})
}

// applyLocked takes over the change that has waited longest.
func (m *mirror) applyLocked() {
	next := m.pending[0]
	m.pending = m.pending[1:]
	key := client.ObjectKeyFromObject(next.object)
	m.applied = max(m.applied, versionOf(next.object))
	if !next.gone {
		m.table[key] = next.object
		return
	}
	if there := m.table[key]; there != nil && there.GetUID() == next.object.GetUID() {
		delete(m.table, key)
	}
}

// advanceLocked takes over what is due. A change waits for those before it.
func (m *mirror) advanceLocked() {
	for now := time.Now(); len(m.pending) > 0 && !m.pending[0].due.After(now); {
		m.applyLocked()
	}
}

// reach takes changes over until an object is as it is in obj, or a newer one, or gone.
func (m *mirror) reach(ctx context.Context, obj client.Object, gone bool) {
	key := client.ObjectKeyFromObject(obj)
	reachedLocked := func() bool {
		if gone {
			there := m.table[key]
			return there == nil || obj.GetUID() != "" && there.GetUID() != obj.GetUID()
		}
		return m.applied >= versionOf(obj)
	}
	const patience = 10 * time.Second // the object may have come and gone before the mirror began
	for begun := time.Now(); ctx.Err() == nil && m.f.ctx.Err() == nil && time.Since(begun) < patience; {
		m.mu.Lock()
		for len(m.pending) > 0 && !reachedLocked() {
			m.applyLocked()
		}
		done := reachedLocked()
		m.mu.Unlock()
		if done {
			return
		}
		select { // the event is on its way
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
}

func versionOf(obj client.Object) uint64 {
	version, _ := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	return version
}

// reached brings the mirror up to a write of the controller's own.
func (f *faulty) reached(ctx context.Context, obj client.Object) {
	m, gvk := f.mirrorOf(obj)
	if m == nil {
		return
	}
	made, err := clientgoscheme.Scheme.New(gvk)
	if err != nil {
		return
	}
	now := made.(client.Object)
	switch err := f.Client.Get(ctx, client.ObjectKeyFromObject(obj), now); {
	case err == nil:
		m.reach(ctx, now, false)
	case apierrors.IsNotFound(err):
		m.reach(ctx, obj, true)
	}
}

// Get implements client.Reader.
func (f *faulty) Get(ctx context.Context, key client.ObjectKey, out client.Object, opts ...client.GetOption) error {
	m, gvk := f.mirrorOf(out)
	if m == nil {
		return f.Client.Get(ctx, key, out, opts...)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.advanceLocked()
	obj := m.table[key]
	if obj == nil {
		return apierrors.NewNotFound(resource(gvk), key.Name)
	}
	return copyInto(out, obj, gvk)
}

// List implements client.Reader.
func (f *faulty) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	m, _ := f.mirrorOf(list)
	if m == nil {
		return f.Client.List(ctx, list, opts...)
	}
	var o client.ListOptions
	o.ApplyOptions(opts)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.advanceLocked()
	found := make([]runtime.Object, 0, len(m.table))
	for _, obj := range m.table {
		if (o.Namespace == "" || obj.GetNamespace() == o.Namespace) &&
			(o.LabelSelector == nil || o.LabelSelector.Matches(labels.Set(obj.GetLabels()))) &&
			(o.FieldSelector == nil || matchesFields(obj, o)) {
			found = append(found, obj)
		}
	}
	sortByKey(found)
	list.SetResourceVersion(fmt.Sprint(m.applied))
	return meta.SetList(list, found)
}

// Transport makes a client's requests over HTTP fare as its other writes do: c is what Live has given to the
// controller.
func Transport(c client.Client, next http.RoundTripper) http.RoundTripper {
	f, ok := c.(*faulty)
	if !ok {
		return next
	}
	return roundTripper(func(r *http.Request) (answer *http.Response, err error) {
		if r.Method == http.MethodGet {
			return next.RoundTrip(r)
		}
		err = f.write(r.Context(), nil, func() error {
			answer, err = next.RoundTrip(r)
			return err
		})
		if err != nil && answer != nil {
			_ = answer.Body.Close()
			return nil, err
		}
		return answer, err
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (t roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }
