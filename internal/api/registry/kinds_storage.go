package registry

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	resourcev1alpha3 "k8s.io/api/resource/v1alpha3"
	resourcev1beta1 "k8s.io/api/resource/v1beta1"
	resourcev1beta2 "k8s.io/api/resource/v1beta2"
	storagev1 "k8s.io/api/storage/v1"
	storagev1beta1 "k8s.io/api/storage/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/registry/rest"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/kubernetes/pkg/registry/resource/deviceclass"
	"k8s.io/kubernetes/pkg/registry/resource/devicetaintrule"
	"k8s.io/kubernetes/pkg/registry/resource/resourceclaim"
	"k8s.io/kubernetes/pkg/registry/resource/resourceclaimtemplate"
	"k8s.io/kubernetes/pkg/registry/resource/resourcepoolstatusrequest"
	"k8s.io/kubernetes/pkg/registry/resource/resourceslice"
	"k8s.io/kubernetes/pkg/registry/storage/csidriver"
	"k8s.io/kubernetes/pkg/registry/storage/csinode"
	"k8s.io/kubernetes/pkg/registry/storage/csistoragecapacity"
	"k8s.io/kubernetes/pkg/registry/storage/storageclass"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattachment"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattributesclass"
)

// storageKinds say where volumes and devices come from.
func (r *Registry) storageKinds() []*definition {
	v1 := storagev1.SchemeGroupVersion
	return append(r.deviceKinds(),
		define[storagev1.CSIDriver](v1, "csidrivers", csidriver.Strategy).returnsDeleted(),
		define[storagev1.CSINode](v1, "csinodes", csinode.Strategy).returnsDeleted(),
		define[storagev1.CSIStorageCapacity](v1, "csistoragecapacities", csistoragecapacity.Strategy).
			prints(rest.NewDefaultTableConvertor(v1.WithResource("csistoragecapacities").GroupResource())),
		define[storagev1.StorageClass](v1, "storageclasses", storageclass.Strategy).short("sc").returnsDeleted(),
		define[storagev1.VolumeAttachment](v1, "volumeattachments", volumeattachment.Strategy).
			withStatus(volumeattachment.StatusStrategy).returnsDeleted(),
		define[storagev1.VolumeAttributesClass](v1, "volumeattributesclasses", volumeattributesclass.Strategy).short("vac").returnsDeleted().
			alsoServedAs(define[storagev1beta1.VolumeAttributesClass](storagev1beta1.SchemeGroupVersion, "volumeattributesclasses", volumeattributesclass.Strategy)),
	)
}

// deviceKinds are those of dynamic resource allocation.
func (r *Registry) deviceKinds() []*definition {
	v1, v1beta1, v1beta2, v1alpha3 := resourcev1.SchemeGroupVersion, resourcev1beta1.SchemeGroupVersion,
		resourcev1beta2.SchemeGroupVersion, resourcev1alpha3.SchemeGroupVersion
	namespaces := namespaceReader{registry: r}
	claims, templates := resourceclaim.NewStrategy(namespaces, r.opts.Authorizer), resourceclaimtemplate.NewStrategy(namespaces)
	return []*definition{
		define[resourcev1.DeviceClass](v1, "deviceclasses", deviceclass.Strategy).returnsDeleted().
			alsoServedAs(define[resourcev1beta2.DeviceClass](v1beta2, "deviceclasses", deviceclass.Strategy)).
			alsoServedAs(define[resourcev1beta1.DeviceClass](v1beta1, "deviceclasses", deviceclass.Strategy)),
		define[resourcev1alpha3.DeviceTaintRule](v1alpha3, "devicetaintrules", devicetaintrule.Strategy).returnsDeleted().
			withStatus(devicetaintrule.StatusStrategy).
			alsoServedAs(define[resourcev1beta2.DeviceTaintRule](v1beta2, "devicetaintrules", devicetaintrule.Strategy)),
		define[resourcev1.ResourceClaim](v1, "resourceclaims", claims).returnsDeleted().
			withStatus(resourceclaim.NewStatusStrategy(claims)).
			alsoServedAs(define[resourcev1beta2.ResourceClaim](v1beta2, "resourceclaims", claims)).
			alsoServedAs(define[resourcev1beta1.ResourceClaim](v1beta1, "resourceclaims", claims)),
		define[resourcev1.ResourceClaimTemplate](v1, "resourceclaimtemplates", templates).returnsDeleted().
			alsoServedAs(define[resourcev1beta2.ResourceClaimTemplate](v1beta2, "resourceclaimtemplates", templates)).
			alsoServedAs(define[resourcev1beta1.ResourceClaimTemplate](v1beta1, "resourceclaimtemplates", templates)),
		define[resourcev1alpha3.ResourcePoolStatusRequest](v1alpha3, "resourcepoolstatusrequests", resourcepoolstatusrequest.Strategy).
			returnsDeleted().withStatus(resourcepoolstatusrequest.StatusStrategy),
		define[resourcev1.ResourceSlice](v1, "resourceslices", resourceslice.Strategy).returnsDeleted().selects(resourceSliceFields).
			alsoServedAs(define[resourcev1beta2.ResourceSlice](v1beta2, "resourceslices", resourceslice.Strategy)).
			alsoServedAs(define[resourcev1beta1.ResourceSlice](v1beta1, "resourceslices", resourceslice.Strategy)),
	}
}

// namespaceReader is the part of a client that the strategies of claims call: they look for the
// label that allows administrative access.
type namespaceReader struct {
	typedcorev1.NamespaceInterface
	registry *Registry
}

// Get implements typedcorev1.NamespaceInterface.
func (n namespaceReader) Get(ctx context.Context, name string, _ metav1.GetOptions) (*corev1.Namespace, error) {
	entry, err := n.registry.Resource(corev1.SchemeGroupVersion.WithResource("namespaces")).Get(ctx, "", name, "")
	if err != nil {
		return nil, err
	}
	ns, ok := entry.Object.(*corev1.Namespace)
	if !ok {
		return nil, fmt.Errorf("namespace %s is a %T", name, entry.Object)
	}
	return ns, nil
}
