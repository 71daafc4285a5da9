package controllertest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Write describes one change that a client asks for.
type Write struct {
	Verb   string // create, update, patch, delete, deletecollection
	Sub    string // status, binding, finalize, or empty
	Object client.Object
}

// Cluster is the API. Its zero value is of no use; call New.
type Cluster struct {
	scheme *runtime.Scheme

	mu        sync.Mutex // guards the fields below
	before    func(Write) error
	version   int64
	tables    map[schema.GroupVersionKind]map[types.NamespacedName]*row
	informers map[schema.GroupVersionKind]*informer
	writes    int
}

type row struct {
	obj  client.Object
	text []byte // what obj said when it was stored
}

// New returns a cluster that holds objs as they are (UID and resource version are made
// up when empty). It is checked for changed shared objects when the test ends.
func New(t testing.TB, objs ...client.Object) *Cluster {
	c := &Cluster{
		scheme:    clientgoscheme.Scheme,
		tables:    map[schema.GroupVersionKind]map[types.NamespacedName]*row{},
		informers: map[schema.GroupVersionKind]*informer{},
	}
	for _, obj := range objs {
		c.mu.Lock()
		obj = obj.DeepCopyObject().(client.Object)
		c.stampLocked(obj)
		c.storeLocked(c.kind(obj), nil, obj)
		c.mu.Unlock()
	}
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for gvk, table := range c.tables {
			for key, r := range table {
				if now := encode(r.obj); !bytes.Equal(now, r.text) {
					t.Errorf("%s %s was changed in place:\n  stored %s\n  now    %s", gvk.Kind, key, r.text, now)
				}
			}
		}
	})
	return c
}

// SetBeforeWrite makes f be asked before each write; an error is the write's answer.
func (c *Cluster) SetBeforeWrite(f func(Write) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before = f
}

// Writes is how many writes have been tried so far, refused ones included.
func (c *Cluster) Writes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

// stampLocked gives a new object what the API sets.
func (c *Cluster) stampLocked(obj client.Object) {
	c.version++
	if obj.GetName() == "" && obj.GetGenerateName() != "" {
		obj.SetName(obj.GetGenerateName() + fmt.Sprintf("%05d", c.version))
	}
	if obj.GetUID() == "" {
		obj.SetUID(types.UID(fmt.Sprintf("uid-%d", c.version)))
	}
	if created := obj.GetCreationTimestamp(); created.IsZero() {
		obj.SetCreationTimestamp(metav1.NewTime(time.Now().Truncate(time.Second)))
	}
	if obj.GetGeneration() == 0 {
		obj.SetGeneration(1)
	}
}

// storeLocked puts current in the place of old and tells the informers.
func (c *Cluster) storeLocked(gvk schema.GroupVersionKind, old, current client.Object) {
	c.version++
	current.SetResourceVersion(strconv.FormatInt(c.version, 10))
	table := c.tables[gvk]
	if table == nil {
		table = map[types.NamespacedName]*row{}
		c.tables[gvk] = table
	}
	table[client.ObjectKeyFromObject(current)] = &row{obj: current, text: encode(current)}
	c.notifyLocked(gvk, old, current)
}

func (c *Cluster) removeLocked(gvk schema.GroupVersionKind, old client.Object) {
	c.version++
	delete(c.tables[gvk], client.ObjectKeyFromObject(old))
	c.notifyLocked(gvk, old, nil)
}

func (c *Cluster) notifyLocked(gvk schema.GroupVersionKind, old, current client.Object) {
	if i := c.informers[gvk]; i != nil {
		i.notify(old, current)
	}
}

func (c *Cluster) kind(obj runtime.Object) schema.GroupVersionKind {
	gvk, err := apiutil.GVKForObject(obj, c.scheme)
	if err != nil {
		panic(err)
	}
	gvk.Kind = strings.TrimSuffix(gvk.Kind, "List")
	return gvk
}

// copyInto makes out show what stored says, sharing its insides if the types allow.
func copyInto(out, stored client.Object, gvk schema.GroupVersionKind) error {
	if reflect.TypeOf(out) == reflect.TypeOf(stored) {
		if u, ok := stored.(*unstructured.Unstructured); ok {
			out.(*unstructured.Unstructured).Object = u.DeepCopy().Object
			return nil
		}
		reflect.ValueOf(out).Elem().Set(reflect.ValueOf(stored).Elem())
		return nil
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(stored)
	if err != nil {
		return err
	}
	switch out := out.(type) {
	case *unstructured.Unstructured:
		out.Object = content
		out.SetGroupVersionKind(gvk)
		return nil
	default:
		return runtime.DefaultUnstructuredConverter.FromUnstructured(content, out)
	}
}

// typed returns obj as the type the scheme has for it, a copy in any case.
func (c *Cluster) typed(obj client.Object) (client.Object, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return obj.DeepCopyObject().(client.Object), nil
	}
	if !c.scheme.Recognizes(u.GroupVersionKind()) {
		return u.DeepCopy(), nil
	}
	made, err := c.scheme.New(u.GroupVersionKind())
	if err != nil {
		return nil, err
	}
	out := made.(client.Object)
	return out, runtime.DefaultUnstructuredConverter.FromUnstructured(u.DeepCopy().Object, out)
}

func encode(obj any) []byte {
	text, err := json.Marshal(obj)
	if err != nil {
		panic(err)
	}
	return text
}

// part returns a field of an object, like "spec", as a map entry.
func part(obj client.Object, field string) any {
	var content map[string]any
	if err := json.Unmarshal(encode(obj), &content); err != nil {
		panic(err)
	}
	return content[field]
}

// setPart copies a top-level Go field (Spec, Status) from one typed object to another.
func setPart(to, from client.Object, field string) {
	if reflect.TypeOf(to) != reflect.TypeOf(from) {
		return
	}
	dst := reflect.ValueOf(to).Elem()
	if dst.Kind() != reflect.Struct || !dst.FieldByName(field).IsValid() {
		return
	}
	dst.FieldByName(field).Set(reflect.ValueOf(from).Elem().FieldByName(field))
}

// rowsLocked returns the objects of a kind in the order of their keys.
func (c *Cluster) rowsLocked(gvk schema.GroupVersionKind) []client.Object {
	rows := make([]client.Object, 0, len(c.tables[gvk]))
	for _, r := range c.tables[gvk] {
		rows = append(rows, r.obj)
	}
	sortByKey(rows)
	return rows
}

func sortByKey[T runtime.Object](objects []T) {
	slices.SortFunc(objects, func(x, y T) int {
		a, b := any(x).(client.Object), any(y).(client.Object)
		return strings.Compare(a.GetNamespace()+"/"+a.GetName(), b.GetNamespace()+"/"+b.GetName())
	})
}
