package api

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"slices"
	"time"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	custommetrics "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"

	"gantry.dev/gantry/internal/api/registry"
)

// CustomMetrics measures Services, for custom.metrics.k8s.io. A metrics adapter that a user installs takes that group over
// by its APIService.
type CustomMetrics interface {
	// Names lists the metrics that a Service has.
	Names() []string
	// Value is one of them, when it was measured, and over which time; zero for what is no rate.
	Value(ctx context.Context, service types.NamespacedName, metric string) (float64, time.Time, time.Duration, error)
}

// customMetricsVersion is the group version of metrics that are no CPU and no memory.
func customMetricsVersion() schema.GroupVersion { return custommetrics.SchemeGroupVersion }

// measuredKind is what is answered for a metric.
const measuredKind = "MetricValueList"

// measuredResources are the metrics as discovery lists them: as subresources of Services.
func (r *routes) measuredResources(gv schema.GroupVersion) (list []metav1.APIResource, aggregated []apidiscovery.APIResourceDiscovery) {
	if gv != customMetricsVersion() || len(r.measured) == 0 {
		return nil, nil
	}
	kind := &metav1.GroupVersionKind{Kind: measuredKind}
	services := apidiscovery.APIResourceDiscovery{Resource: "services", ResponseKind: kind, Scope: apidiscovery.ScopeNamespace, Verbs: []string{"get"}}
	for _, name := range r.measured {
		list = append(list, metav1.APIResource{Name: "services/" + name, Namespaced: true, Kind: measuredKind, Verbs: []string{"get"}})
		services.Subresources = append(services.Subresources, apidiscovery.APISubresourceDiscovery{Subresource: name, ResponseKind: kind, Verbs: []string{"get"}})
	}
	return list, []apidiscovery.APIResourceDiscovery{services}
}

// customMetrics answers /namespaces/NAMESPACE/services/NAME/METRIC, where NAME may be * for those that a selector chooses.
func (s *Server) customMetrics(q *query) int {
	p := &q.path
	if p.APIVersion != customMetricsVersion().Version || p.Resource != "services" || p.Namespace == "" || p.Name == "" || p.Verb != "get" {
		return s.fail(q, errNoRoute())
	}
	if !slices.Contains(s.opts.CustomMetrics.Names(), p.Subresource) {
		return s.fail(q, apierrors.NewNotFound(customMetricsVersion().WithResource("services").GroupResource(), p.Subresource))
	}
	return s.bounded(q, func() int {
		names, err := s.measuredServices(q)
		if err != nil {
			return s.fail(q, err)
		}
		out := custommetrics.MetricValueList{
			TypeMeta: metav1.TypeMeta{APIVersion: customMetricsVersion().String(), Kind: measuredKind}, Items: []custommetrics.MetricValue{},
		}
		for _, name := range names {
			value, at, window, err := s.opts.CustomMetrics.Value(q.context(), types.NamespacedName{Namespace: p.Namespace, Name: name}, p.Subresource)
			if err != nil {
				return s.fail(q, apierrors.NewServiceUnavailable(err.Error()))
			}
			item := custommetrics.MetricValue{
				DescribedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: p.Namespace, Name: name},
				Metric:          custommetrics.MetricIdentifier{Name: p.Subresource}, Timestamp: metav1.NewTime(at),
				Value: *resource.NewMilliQuantity(int64(math.Round(value*1000)), resource.DecimalSI),
			}
			if window > 0 {
				seconds := int64(math.Round(window.Seconds()))
				item.WindowSeconds = &seconds
			}
			out.Items = append(out.Items, item)
		}
		data, err := json.Marshal(out)
		if err != nil {
			return s.fail(q, err)
		}
		q.w.Header().Set("Content-Type", "application/json")
		q.w.WriteHeader(http.StatusOK)
		_, _ = q.w.Write(data)
		return http.StatusOK
	})
}

// measuredServices are the names of the Services that a request is about.
func (s *Server) measuredServices(q *query) ([]string, error) {
	services := s.opts.Registry.Resource(corev1.SchemeGroupVersion.WithResource("services"))
	if q.path.Name != "*" {
		if _, err := services.Get(q.context(), q.path.Namespace, q.path.Name, ""); err != nil {
			return nil, err
		}
		return []string{q.path.Name}, nil
	}
	selector, err := labels.Parse(q.r.URL.Query().Get("labelSelector"))
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	list, err := services.List(q.context(), q.path.Namespace, registry.ListOptions{Labels: selector})
	if err != nil {
		return nil, err
	}
	names := make([]string, len(list.Entries))
	for i, e := range list.Entries {
		names[i] = e.Object.GetName()
	}
	return names, nil
}
