package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// evictAfterSeconds is how long a pod stays on a node that is not ready or unreachable when
// neither it nor the configuration says so. Upstream's is 300.
const evictAfterSeconds = 1

// defaultTolerationSeconds bounds the stay of pods on failed nodes (upstream: DefaultTolerationSeconds).
type defaultTolerationSeconds struct{ notReady, unreachable int64 }

func newDefaultTolerationSeconds(opts *Options) defaultTolerationSeconds {
	d := defaultTolerationSeconds{evictAfterSeconds, evictAfterSeconds}
	if opts.NotReadySeconds != nil {
		d.notReady = *opts.NotReadySeconds
	}
	if opts.UnreachableSeconds != nil {
		d.unreachable = *opts.UnreachableSeconds
	}
	return d
}

// Handles implements admission.Interface.
func (defaultTolerationSeconds) Handles(op admission.Operation) bool {
	return op == admission.Create || op == admission.Update
}

// Admit implements admission.MutationInterface.
func (d defaultTolerationSeconds) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := a.GetObject().(*api.Pod)
	if !ok || a.GetSubresource() != "" {
		return nil
	}
	for _, taint := range []struct {
		key     string
		seconds int64
	}{{corev1.TaintNodeNotReady, d.notReady}, {corev1.TaintNodeUnreachable, d.unreachable}} {
		if toleratesNoExecute(pod.Spec.Tolerations, taint.key) {
			continue
		}
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, api.Toleration{
			Key: taint.key, Operator: api.TolerationOpExists, Effect: api.TaintEffectNoExecute, TolerationSeconds: &taint.seconds,
		})
	}
	return nil
}

func toleratesNoExecute(tolerations []api.Toleration, key string) bool {
	for _, t := range tolerations {
		if (t.Key == key || t.Key == "") && (t.Effect == api.TaintEffectNoExecute || t.Effect == "") {
			return true
		}
	}
	return false
}
