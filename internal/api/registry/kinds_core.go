package registry

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/endpoint"
	"k8s.io/kubernetes/pkg/registry/core/event"
	"k8s.io/kubernetes/pkg/registry/core/limitrange"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/node"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolume"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	"k8s.io/kubernetes/pkg/registry/core/podtemplate"
	"k8s.io/kubernetes/pkg/registry/core/replicationcontroller"
	"k8s.io/kubernetes/pkg/registry/core/resourcequota"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"

	"gantry.dev/gantry/internal/store"
)

// coreKinds are the kinds of the group without a name.
func (r *Registry) coreKinds() []*definition {
	v1 := corev1.SchemeGroupVersion
	return []*definition{
		define[corev1.ComponentStatus](v1, "componentstatuses", unstored{}).short("cs").computedBy(r.componentStatuses),
		define[corev1.ConfigMap](v1, "configmaps", configmap.Strategy).short("cm"),
		define[corev1.Endpoints](v1, "endpoints", endpoint.Strategy).short("ep").at("/registry/services/endpoints/"),
		define[corev1.Event](v1, "events", event.Strategy).short("ev").
			selects(eventFields).expiring(func(obj store.Object) time.Time { return lastSeen(obj).Add(eventTTL) }).
			alsoServedAs(define[eventsv1.Event](eventsv1.SchemeGroupVersion, "events", event.Strategy)),
		define[corev1.LimitRange](v1, "limitranges", limitrange.Strategy).short("limits"),
		define[corev1.Namespace](v1, "namespaces", namespace.Strategy).short("ns").verbs(withoutDeleteCollection()).
			withStatus(namespace.StatusStrategy).selects(namespaceFields).returnsDeleted().
			view("finalize", namespace.FinalizeStrategy, "update"),
		define[corev1.Node](v1, "nodes", node.Strategy).normalized().short("no").at("/registry/minions/").
			withStatus(node.StatusStrategy).selects(nodeFields).connects("proxy"),
		define[corev1.PersistentVolume](v1, "persistentvolumes", persistentvolume.Strategy).short("pv").
			withStatus(persistentvolume.StatusStrategy).selects(nameField).returnsDeleted(),
		define[corev1.PersistentVolumeClaim](v1, "persistentvolumeclaims", persistentvolumeclaim.Strategy).short("pvc").
			withStatus(persistentvolumeclaim.StatusStrategy).selects(nameField).returnsDeleted(),
		define[corev1.Pod](v1, "pods", pod.Strategy).short("po").category("all").returnsDeleted().
			withStatus(pod.StatusStrategy).selects(podFields).index("spec.nodeName", podNodeName).
			view("ephemeralcontainers", pod.EphemeralContainersStrategy, "get", "patch", "update").
			view("resize", pod.ResizeStrategy, "get", "patch", "update").
			action(bindingSubresource()).action(evictionSubresource()).
			connects("attach", "exec", "portforward", "proxy").reads("log"),
		define[corev1.PodTemplate](v1, "podtemplates", podtemplate.Strategy).returnsDeleted(),
		define[corev1.ReplicationController](v1, "replicationcontrollers", replicationcontroller.Strategy).
			short("rc").category("all").at("/registry/controllers/").
			withStatus(replicationcontroller.StatusStrategy).selects(replicationControllerFields).scaled(replicationControllerScale()),
		define[corev1.ResourceQuota](v1, "resourcequotas", resourcequota.Strategy).short("quota").
			withStatus(resourcequota.StatusStrategy).returnsDeleted(),
		define[corev1.Secret](v1, "secrets", secret.Strategy).normalized().selects(secretFields),
		define[corev1.Service](v1, "services", service.Strategy).short("svc").category("all").returnsDeleted().
			at("/registry/services/specs/").withStatus(service.StatusStrategy).selects(serviceFields).
			connects("proxy").hooked(r.serviceHooks()),
		define[corev1.ServiceAccount](v1, "serviceaccounts", serviceaccount.Strategy).short("sa").returnsDeleted().
			action(tokenSubresource(r)),
	}
}
