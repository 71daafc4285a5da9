package quota

import (
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	quotav1 "k8s.io/apiserver/pkg/quota/v1"
	"k8s.io/apiserver/pkg/quota/v1/generic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/quota/v1/install"

	"gantry.dev/gantry/internal/api/admission/view"
)

// Counter says what the objects of a namespace use, from the store and with upstream's
// arithmetic. Safe for concurrent use.
type Counter struct {
	view  *view.View
	known func() (quotav1.Registry, error)
}

// NewCounter returns a Counter of what v shows. It has built nothing yet.
func NewCounter(v *view.View) *Counter {
	c := &Counter{view: v}
	c.known = sync.OnceValues(func() (quotav1.Registry, error) {
		configuration, err := install.NewQuotaConfigurationForControllers(c.lister, v.Informers())
		if err != nil {
			return nil, fmt.Errorf("preparing to count: %w", err)
		}
		return generic.NewRegistry(configuration.Evaluators()), nil
	})
	return c
}

func (c *Counter) lister(resource schema.GroupVersionResource) (cache.GenericLister, error) {
	return c.view.Generic(resource).Lister(), nil
}

// evaluators are those that have something to say about the quota.
func (c *Counter) evaluators(q *corev1.ResourceQuota) (quotav1.Registry, error) {
	known, err := c.known()
	if err != nil {
		return nil, err
	}
	names := quotav1.ResourceNames(q.Spec.Hard)
	var out []quotav1.Evaluator
	for _, evaluator := range known.List() {
		if len(evaluator.MatchingResources(names)) > 0 {
			out = append(out, evaluator)
		}
	}
	for _, name := range names {
		if resource, ok := c.counted(name); ok && known.Get(resource.GroupResource()) == nil {
			out = append(out, generic.NewObjectCountEvaluator(resource.GroupResource(), generic.ListResourceUsingListerFunc(c.lister, resource), ""))
		}
	}
	return generic.NewRegistry(out), nil
}

// counted is the resource that a name like count/widgets.example.com counts.
func (c *Counter) counted(name corev1.ResourceName) (schema.GroupVersionResource, bool) {
	what, ok := strings.CutPrefix(string(name), "count/")
	if !ok {
		return schema.GroupVersionResource{}, false
	}
	return c.view.Resource(schema.ParseGroupResource(what))
}

// Count is what the objects in the quota's namespace use of each resource that it limits.
func (c *Counter) Count(q *corev1.ResourceQuota) (corev1.ResourceList, error) {
	evaluators, err := c.evaluators(q)
	if err != nil {
		return nil, err
	}
	return quotav1.CalculateUsage(q.Namespace, q.Spec.Scopes, q.Spec.Hard, evaluators, q.Spec.ScopeSelector)
}

// Kinds lists the kinds whose objects count for the quota.
func (c *Counter) Kinds(q *corev1.ResourceQuota) ([]schema.GroupVersionKind, error) {
	evaluators, err := c.evaluators(q)
	if err != nil {
		return nil, err
	}
	var out []schema.GroupVersionKind
	for _, evaluator := range evaluators.List() {
		resource, ok := c.view.Resource(evaluator.GroupResource())
		if !ok {
			continue
		}
		if kind, err := c.view.Mapper().KindFor(resource); err == nil {
			out = append(out, kind)
		}
	}
	return out, nil
}
