package quota

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	upstream "k8s.io/apiserver/pkg/admission/plugin/resourcequota"
	"k8s.io/apiserver/pkg/quota/v1/generic"
	"k8s.io/kubernetes/pkg/quota/v1/install"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/api/admission/view"
)

// workers is how many namespaces are accounted for at once (kube-apiserver's number).
const workers = 5

// Options says what the plugin needs. All are required.
type Options struct {
	View   *view.View
	Client ctrlclient.Client // writes the status of quotas
	Stop   <-chan struct{}   // ends the workers that the first limited request starts
}

// Plugin is upstream's ResourceQuota over the store. Make it with New; safe for concurrent use.
type Plugin struct {
	opts      Options
	quotas    *view.Table
	evaluator func() (upstream.Evaluator, error)
}

// New checks opts and returns a Plugin that has built nothing yet.
func New(opts Options) (*Plugin, error) {
	switch {
	case opts.View == nil:
		return nil, errors.New("quota: View is nil")
	case opts.Client == nil:
		return nil, errors.New("quota: Client is nil")
	case opts.Stop == nil:
		return nil, errors.New("quota: Stop is nil")
	}
	p := &Plugin{opts: opts, quotas: opts.View.Table(corev1.SchemeGroupVersion.WithResource("resourcequotas"))}
	p.evaluator = sync.OnceValues(p.newEvaluator)
	return p, nil
}

func (p *Plugin) newEvaluator() (upstream.Evaluator, error) {
	configuration, err := install.NewQuotaConfigurationForAdmission(p.opts.View.Informers(), nil)
	if err != nil {
		return nil, fmt.Errorf("preparing quota: %w", err)
	}
	known := generic.NewRegistry(configuration.Evaluators())
	return upstream.NewQuotaEvaluator(accessor{p.opts}, configuration.IgnoredResources(), known, nil, nil, workers, p.opts.Stop), nil
}

// Handles implements admission.Interface.
func (p *Plugin) Handles(op admission.Operation) bool {
	return op == admission.Create || op == admission.Update
}

// Unlimited reports that no quota can limit the request; it is cheap.
func (p *Plugin) Unlimited(a admission.Attributes) bool {
	return a.GetNamespace() == "" || p.quotas.Empty()
}

// Validate implements admission.ValidationInterface.
func (p *Plugin) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	kind := a.GetKind()
	if a.GetNamespace() == "" || (kind.Group == "" && kind.Kind == "Namespace") {
		return nil
	}
	evaluator, err := p.evaluator()
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	p.opts.View.Refresh(resourcev1.SchemeGroupVersion.WithResource("deviceclasses")) // an evaluator keeps what they map
	return evaluator.Evaluate(a)
}

// accessor reads and writes quotas. It implements upstream's QuotaAccessor.
type accessor struct{ opts Options }

// GetQuotas implements upstream's QuotaAccessor.
func (q accessor) GetQuotas(namespace string) ([]corev1.ResourceQuota, error) {
	items, err := q.opts.View.Informers().Core().V1().ResourceQuotas().Lister().ResourceQuotas(namespace).List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("error resolving quota: %w", err)
	}
	out := make([]corev1.ResourceQuota, len(items))
	for i, item := range items {
		out[i] = *item.DeepCopy()
	}
	return out, nil
}

// UpdateQuotaStatus implements upstream's QuotaAccessor. A quota that was changed since it was
// read is a conflict; the evaluator reads it again then.
func (q accessor) UpdateQuotaStatus(next *corev1.ResourceQuota) error {
	return q.opts.Client.Status().Update(context.Background(), next.DeepCopy())
}
