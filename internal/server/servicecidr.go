package server

import (
	"context"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// publishServiceCIDR makes the default range of service addresses and says that it is ready, which
// is the server's to say (kubernetes, pkg/controlplane/controller/defaultservicecidr).
func (cp *ControlPlane) publishServiceCIDR(ctx context.Context) error {
	services := cp.opts.ServiceCIDR.Masked()
	cidr := &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{services.String()}},
	}
	if err := cp.ensure(ctx, cidr); err != nil {
		return err
	}
	there := new(networkingv1.ServiceCIDR)
	if err := cp.admin.Get(ctx, ctrlclient.ObjectKeyFromObject(cidr), there); err != nil {
		return err
	}
	if meta.FindStatusCondition(there.Status.Conditions, networkingv1.ServiceCIDRConditionReady) != nil {
		return nil
	}
	next := there.DeepCopy()
	meta.SetStatusCondition(&next.Status.Conditions, metav1.Condition{
		Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, Message: "Kubernetes default Service CIDR is ready",
	})
	return cp.admin.Status().Update(ctx, next)
}
