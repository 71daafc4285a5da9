package registry

import (
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	nodev1 "k8s.io/api/node/v1"
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
		define[nodev1.RuntimeClass](nodev1.SchemeGroupVersion, "runtimeclasses", runtimeclass.Strategy),
	}
}
