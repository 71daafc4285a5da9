package admission

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"
	api "k8s.io/kubernetes/pkg/apis/core"
	upstreamaccount "k8s.io/kubernetes/plugin/pkg/admission/serviceaccount"

	"gantry.dev/gantry/internal/api/admission/view"
)

// defaultAccountWait is how long a pod waits for the default account of a new namespace.
const defaultAccountWait = 1500 * time.Millisecond

// serviceAccount is upstream's ServiceAccount. Before it is asked, the default account, which a
// controller makes soon after its namespace, is waited for in short steps instead of its long ones.
type serviceAccount struct {
	*upstreamaccount.Plugin
	view *view.View
}

func (c *Chain) waitingForAccount(plugin func() (admission.Interface, error)) func() (admission.Interface, error) {
	return wrapOnce(plugin, func(p admission.Interface) admission.Interface {
		accounts, ok := p.(*upstreamaccount.Plugin)
		if !ok {
			return p
		}
		return serviceAccount{accounts, c.view}
	})
}

// Admit implements admission.MutationInterface.
func (p serviceAccount) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if err := p.await(ctx, a); err != nil {
		return err
	}
	return p.Plugin.Admit(ctx, a, o)
}

func (p serviceAccount) await(ctx context.Context, a admission.Attributes) error {
	pod, ok := a.GetObject().(*api.Pod)
	if !ok || a.GetOperation() != admission.Create || a.GetSubresource() != "" {
		return nil
	}
	if _, mirror := pod.Annotations[api.MirrorPodAnnotationKey]; mirror {
		return nil
	}
	name := pod.Spec.ServiceAccountName
	if name != "" && name != upstreamaccount.DefaultServiceAccountName {
		return nil
	}
	var deadline time.Time
	for {
		_, err := p.view.ServiceAccount(a.GetNamespace(), upstreamaccount.DefaultServiceAccountName)
		if !apierrors.IsNotFound(err) {
			return nil
		}
		now := time.Now()
		if deadline.IsZero() {
			deadline = now.Add(defaultAccountWait)
		}
		if now.After(deadline) {
			return admission.NewForbidden(a, fmt.Errorf("error looking up service account %s/%s: %w", a.GetNamespace(), upstreamaccount.DefaultServiceAccountName,
				apierrors.NewNotFound(api.Resource("serviceaccount"), upstreamaccount.DefaultServiceAccountName)))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}
