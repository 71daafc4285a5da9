package registry

import (
	"cmp"
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/metrics/pkg/apis/metrics"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"gantry.dev/gantry/internal/store"
)

// Metrics measures nodes and pods, for metrics.k8s.io. Without a name, or a namespace, it means all.
type Metrics interface {
	Nodes(ctx context.Context, name string) ([]*metricsv1beta1.NodeMetrics, error)
	Pods(ctx context.Context, namespace, name string) ([]*metricsv1beta1.PodMetrics, error)
}

// unstoredNamespaced is unstored for a kind that lies in namespaces.
type unstoredNamespaced struct{ unstored }

// NamespaceScoped implements Strategy.
func (unstoredNamespaced) NamespaceScoped() bool { return true }

// metricsKinds are those of metrics.k8s.io, which metrics-server has elsewhere.
func (r *Registry) metricsKinds() []*definition {
	if !r.opts.ServeMetrics {
		return nil
	}
	v1beta1 := metricsv1beta1.SchemeGroupVersion
	return []*definition{
		define[metricsv1beta1.NodeMetrics](v1beta1, "nodes", unstored{}).computedBy(r.nodeMetrics).prints(usageTable{}),
		define[metricsv1beta1.PodMetrics](v1beta1, "pods", unstoredNamespaced{}).computedBy(r.podMetrics).prints(usageTable{}),
	}
}

func (r *Registry) nodeMetrics(ctx context.Context, _, name string) ([]store.Object, error) {
	if r.metrics == nil {
		return nil, apierrors.NewServiceUnavailable("nothing measures this cluster's nodes")
	}
	list, err := r.metrics.Nodes(ctx, name)
	return objectsOf(list), err
}

func (r *Registry) podMetrics(ctx context.Context, namespace, name string) ([]store.Object, error) {
	if r.metrics == nil {
		return nil, apierrors.NewServiceUnavailable("nothing measures this cluster's nodes")
	}
	list, err := r.metrics.Pods(ctx, namespace, name)
	return objectsOf(list), err
}

func objectsOf[P store.Object](list []P) []store.Object {
	out := make([]store.Object, len(list))
	for i, obj := range list {
		out[i] = obj
	}
	slices.SortFunc(out, func(a, b store.Object) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return out
}

// usageTable makes metrics-server's columns: the name, what is used of each resource, and the window.
type usageTable struct{}

// ConvertToTable implements rest.TableConvertor.
func (usageTable) ConvertToTable(_ context.Context, object, _ runtime.Object) (*metav1.Table, error) {
	table := &metav1.Table{ColumnDefinitions: []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: "Name of the resource"},
		{Name: "cpu", Type: "string", Format: "quantity"}, {Name: "memory", Type: "string", Format: "quantity"},
		{Name: "Window", Type: "string", Format: "duration"},
	}}
	add := func(name string, cpu, memory resource.Quantity, window metav1.Duration) {
		table.Rows = append(table.Rows, metav1.TableRow{Cells: []any{name, cpu.String(), memory.String(), window.Duration.String()}})
	}
	switch obj := object.(type) {
	case *metrics.NodeMetrics:
		add(obj.Name, obj.Usage[metricsCPU], obj.Usage[metricsMemory], obj.Window)
	case *metrics.PodMetrics:
		var cpu, memory resource.Quantity
		for _, c := range obj.Containers {
			cpu.Add(c.Usage[metricsCPU])
			memory.Add(c.Usage[metricsMemory])
		}
		add(obj.Name, cpu, memory, obj.Window)
	}
	return table, nil
}

// The resources that are measured.
const (
	metricsCPU    = corev1.ResourceCPU
	metricsMemory = corev1.ResourceMemory
)
