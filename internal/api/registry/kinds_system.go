package registry

import (
	apiserverinternalv1alpha1 "k8s.io/api/apiserverinternal/v1alpha1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	nodev1 "k8s.io/api/node/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/registry/apiservice"
	apiserviceetcd "k8s.io/kube-aggregator/pkg/registry/apiservice/etcd"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/registry/apiserverinternal/storageversion"
	"k8s.io/kubernetes/pkg/registry/flowcontrol/flowschema"
	"k8s.io/kubernetes/pkg/registry/flowcontrol/prioritylevelconfiguration"
	"k8s.io/kubernetes/pkg/registry/node/runtimeclass"
)

// systemKinds are about nodes and about the server itself.
func systemKinds() []*definition {
	flow := flowcontrolv1.SchemeGroupVersion
	return []*definition{
		define[flowcontrolv1.FlowSchema](flow, "flowschemas", flowschema.Strategy).
			withStatus(flowschema.StatusStrategy),
		define[flowcontrolv1.PriorityLevelConfiguration](flow, "prioritylevelconfigurations", prioritylevelconfiguration.Strategy).
			withStatus(prioritylevelconfiguration.StatusStrategy),
		define[apiregistrationv1.APIService](apiregistrationv1.SchemeGroupVersion, "apiservices", apiservice.NewStrategy(legacyscheme.Scheme)).
			category("api-extensions").at("/registry/apiregistration.k8s.io/apiservices/").storedAsJSON().prints(&apiserviceetcd.REST{}).
			withStatus(apiservice.NewStatusStrategy(legacyscheme.Scheme)),
		define[apiserverinternalv1alpha1.StorageVersion](apiserverinternalv1alpha1.SchemeGroupVersion, "storageversions", storageversion.Strategy).
			withStatus(storageversion.StatusStrategy),
		define[nodev1.RuntimeClass](nodev1.SchemeGroupVersion, "runtimeclasses", runtimeclass.Strategy),
	}
}
