package aggregate

import "k8s.io/apimachinery/pkg/runtime/schema"

// Priorities of what is not built in: custom resources have upstream's.
const (
	CustomGroupPriority   = 1000
	CustomVersionPriority = 100
)

// Priority is where a built-in group version stands in discovery (kube-apiserver's table of APIService priorities);
// ok is false for one that upstream registers no APIService for.
func Priority(gv schema.GroupVersion) (group, version int32, ok bool) {
	group, ok = map[string]int32{
		"": 18000, "apps": 17800, "events.k8s.io": 17750, "authentication.k8s.io": 17700, "authorization.k8s.io": 17600, "autoscaling": 17500,
		"batch": 17400, "certificates.k8s.io": 17300, "networking.k8s.io": 17200, "policy": 17100, "rbac.authorization.k8s.io": 17000,
		"storage.k8s.io": 16800, "apiextensions.k8s.io": 16700, "admissionregistration.k8s.io": 16700, "scheduling.k8s.io": 16600,
		"coordination.k8s.io": 16500, "node.k8s.io": 16300, "discovery.k8s.io": 16200, "resource.k8s.io": 16200,
		"flowcontrol.apiserver.k8s.io": 16100, "internal.apiserver.k8s.io": 16000, "storagemigration.k8s.io": 15800,
	}[gv.Group]
	if !ok {
		return 0, 0, false
	}
	version, found := map[string]int32{
		"/v1": 1, "autoscaling/v2": 30, "flowcontrol.apiserver.k8s.io/v1": 21, "resource.k8s.io/v1": 21, "resource.k8s.io/v1beta2": 15,
		"admissionregistration.k8s.io/v1beta1": 12, "admissionregistration.k8s.io/v1alpha1": 9, "coordination.k8s.io/v1beta1": 13,
		"coordination.k8s.io/v1alpha2": 12, "scheduling.k8s.io/v1alpha2": 2, "internal.apiserver.k8s.io/v1alpha1": 9,
		"events.k8s.io/v1beta1": 5, "discovery.k8s.io/v1beta1": 12, "flowcontrol.apiserver.k8s.io/v1beta3": 18,
	}[gv.Group+"/"+gv.Version]
	switch {
	case found:
	case gv.Version == "v1":
		version = 15
	case len(gv.Version) > 6 && gv.Version[2:6] == "beta":
		version = 9
	default:
		version = 1
	}
	return group, version, true
}
