package view

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"gantry.dev/gantry/internal/api/registry"
)

// indexer reads one table. It implements cache.Indexer; what it returns is shared and
// read-only. The namespace is an index of the table; others are computed by a scan.
type indexer struct {
	view     *View
	resource schema.GroupVersionResource

	indexMu  sync.Mutex // guards indexers
	indexers cache.Indexers
}

var (
	_ cache.Indexer = (*indexer)(nil)

	errReadOnly = errors.New("view: the store is changed by requests only")
)

// list is every object of a namespace ("" is all).
func list(ctx context.Context, r *registry.Resource, namespace string) []any {
	if r == nil || (r.Namespaced && namespace == "" && r.Version()() == 0) {
		return nil
	}
	got, err := r.List(ctx, namespace, registry.ListOptions{Revision: "0"})
	if err != nil {
		return nil
	}
	out := make([]any, len(got.Entries))
	for i, e := range got.Entries {
		out[i] = e.Object
	}
	return out
}

// List implements cache.Store.
func (x *indexer) List() []any {
	return list(context.Background(), x.view.resource(x.resource), "")
}

// ListKeys implements cache.Store.
func (x *indexer) ListKeys() []string { return keysOf(x.List()) }

func keysOf(items []any) []string {
	keys := make([]string, 0, len(items))
	for _, item := range items {
		if key, err := cache.MetaNamespaceKeyFunc(item); err == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

// Get implements cache.Store.
func (x *indexer) Get(obj any) (item any, exists bool, err error) {
	key, err := cache.MetaNamespaceKeyFunc(obj)
	if err != nil {
		return nil, false, err
	}
	return x.GetByKey(key)
}

// GetByKey implements cache.Store.
func (x *indexer) GetByKey(key string) (item any, exists bool, err error) {
	namespace, name, namespaced := strings.Cut(key, "/")
	if !namespaced {
		namespace, name = "", key
	}
	return x.get(namespace, name)
}

func (x *indexer) get(namespace, name string) (item any, exists bool, err error) {
	r := x.view.resource(x.resource)
	if r == nil {
		return nil, false, nil
	}
	entry, err := r.Get(context.Background(), namespace, name, "0")
	switch {
	case err == nil:
		return entry.Object, true, nil
	case apierrors.IsNotFound(err):
		return nil, false, nil
	}
	return nil, false, err
}

// Index implements cache.Indexer.
func (x *indexer) Index(name string, obj any) ([]any, error) {
	if name == cache.NamespaceIndex {
		if namespace, ok := namespaceOf(obj); ok {
			return x.ByIndex(name, namespace)
		}
	}
	index, err := x.index(name)
	if err != nil {
		return nil, err
	}
	values, err := index(obj)
	if err != nil {
		return nil, err
	}
	return x.scan(index, values)
}

// ByIndex implements cache.Indexer.
func (x *indexer) ByIndex(name, value string) ([]any, error) {
	if name == cache.NamespaceIndex {
		return list(context.Background(), x.view.resource(x.resource), value), nil
	}
	index, err := x.index(name)
	if err != nil {
		return nil, err
	}
	return x.scan(index, []string{value})
}

func (x *indexer) index(name string) (cache.IndexFunc, error) {
	x.indexMu.Lock()
	defer x.indexMu.Unlock()
	if index := x.indexers[name]; index != nil {
		return index, nil
	}
	return nil, fmt.Errorf("view: no index %q of %s", name, x.resource.Resource)
}

// scan finds the objects that have one of the values under index.
func (x *indexer) scan(index cache.IndexFunc, values []string) ([]any, error) {
	var out []any
	for _, item := range x.List() {
		has, err := index(item)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(has, func(v string) bool { return slices.Contains(values, v) }) {
			out = append(out, item)
		}
	}
	return out, nil
}

// IndexKeys implements cache.Indexer.
func (x *indexer) IndexKeys(name, value string) ([]string, error) {
	items, err := x.ByIndex(name, value)
	return keysOf(items), err
}

// ListIndexFuncValues implements cache.Indexer.
func (x *indexer) ListIndexFuncValues(name string) []string {
	index, err := x.index(name)
	if err != nil {
		return nil
	}
	seen := make(map[string]struct{})
	for _, item := range x.List() {
		values, err := index(item)
		if err != nil {
			continue
		}
		for _, v := range values {
			seen[v] = struct{}{}
		}
	}
	return slices.Collect(maps.Keys(seen))
}

// GetIndexers implements cache.Indexer.
func (x *indexer) GetIndexers() cache.Indexers {
	x.indexMu.Lock()
	defer x.indexMu.Unlock()
	return maps.Clone(x.indexers)
}

// AddIndexers implements cache.Indexer.
func (x *indexer) AddIndexers(indexers cache.Indexers) error {
	x.indexMu.Lock()
	defer x.indexMu.Unlock()
	maps.Copy(x.indexers, indexers)
	return nil
}

// LastStoreSyncResourceVersion implements cache.Store.
func (x *indexer) LastStoreSyncResourceVersion() string {
	r := x.view.resource(x.resource)
	if r == nil {
		return "0"
	}
	return strconv.FormatInt(r.Version()(), 10)
}

// Bookmark implements cache.Store.
func (x *indexer) Bookmark(string) {}

// Add implements cache.Store; it always fails.
func (x *indexer) Add(any) error { return errReadOnly }

// Update implements cache.Store; it always fails.
func (x *indexer) Update(any) error { return errReadOnly }

// Delete implements cache.Store; it always fails.
func (x *indexer) Delete(any) error { return errReadOnly }

// Replace implements cache.Store; it always fails.
func (x *indexer) Replace([]any, string) error { return errReadOnly }

// Resync implements cache.Store.
func (x *indexer) Resync() error { return nil }
