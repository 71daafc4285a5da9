package registry

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/kubernetes/pkg/registry/apps/controllerrevision"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/apps/replicaset"
	"k8s.io/kubernetes/pkg/registry/coordination/lease"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/endpoint"
	"k8s.io/kubernetes/pkg/registry/core/event"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/node"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"
	"k8s.io/kubernetes/pkg/registry/discovery/endpointslice"
	"k8s.io/kubernetes/pkg/registry/networking/ipaddress"
	"k8s.io/kubernetes/pkg/registry/networking/servicecidr"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrole"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding"
	"k8s.io/kubernetes/pkg/registry/rbac/role"
	"k8s.io/kubernetes/pkg/registry/rbac/rolebinding"

	"gantry.dev/gantry/internal/store"
)

// eventTTL is how long events are kept (kube-apiserver --event-ttl).
const eventTTL = time.Hour

// builtins is every kind that is served, in the order of discovery. To add one: its Go type,
// its plural name, upstream's strategy, and what it has beside them.
func (r *Registry) builtins() []*definition {
	core, apps := corev1.SchemeGroupVersion, appsv1.SchemeGroupVersion
	rbac, networking := rbacv1.SchemeGroupVersion, networkingv1.SchemeGroupVersion
	return []*definition{
		define[corev1.ConfigMap](core, "configmaps", configmap.Strategy).short("cm"),
		define[corev1.Endpoints](core, "endpoints", endpoint.Strategy).short("ep").at("/registry/services/endpoints/"),
		define[corev1.Event](core, "events", event.Strategy).short("ev").
			selects(eventFields).expiring(func(obj store.Object) time.Time { return lastSeen(obj).Add(eventTTL) }),
		define[corev1.Namespace](core, "namespaces", namespace.Strategy).short("ns").
			withStatus(namespace.StatusStrategy).selects(namespaceFields).
			view("finalize", namespace.FinalizeStrategy, "update"),
		define[corev1.Node](core, "nodes", node.Strategy).short("no").at("/registry/minions/").
			withStatus(node.StatusStrategy).selects(nodeFields).connects("proxy"),
		define[corev1.Pod](core, "pods", pod.Strategy).short("po").category("all").
			withStatus(pod.StatusStrategy).selects(podFields).index("spec.nodeName", podNodeName).
			view("ephemeralcontainers", pod.EphemeralContainersStrategy, "get", "patch", "update").
			view("resize", pod.ResizeStrategy, "get", "patch", "update").
			action(bindingSubresource()).action(evictionSubresource()).
			connects("attach", "exec", "portforward", "proxy").reads("log"),
		define[corev1.Secret](core, "secrets", secret.Strategy).selects(secretFields).sealed(r.opts.Sealer),
		define[corev1.Service](core, "services", service.Strategy).short("svc").category("all").
			at("/registry/services/specs/").withStatus(service.StatusStrategy).selects(serviceFields).
			connects("proxy").hooked(r.serviceHooks()),
		define[corev1.ServiceAccount](core, "serviceaccounts", serviceaccount.Strategy).short("sa").
			action(tokenSubresource(r)),

		define[appsv1.ControllerRevision](apps, "controllerrevisions", controllerrevision.Strategy),
		define[appsv1.Deployment](apps, "deployments", deployment.Strategy).short("deploy").category("all").
			withStatus(deployment.StatusStrategy).scaled(deploymentScale()),
		define[appsv1.ReplicaSet](apps, "replicasets", replicaset.Strategy).short("rs").category("all").
			withStatus(replicaset.StatusStrategy).selects(replicaSetFields).scaled(replicaSetScale()),

		define[coordinationv1.Lease](coordinationv1.SchemeGroupVersion, "leases", lease.Strategy),
		define[discoveryv1.EndpointSlice](discoveryv1.SchemeGroupVersion, "endpointslices", endpointslice.Strategy),
		define[networkingv1.IPAddress](networking, "ipaddresses", ipaddress.Strategy).short("ip"),
		define[networkingv1.ServiceCIDR](networking, "servicecidrs", servicecidr.Strategy).
			withStatus(servicecidr.StatusStrategy),

		define[rbacv1.ClusterRole](rbac, "clusterroles", clusterrole.Strategy).guarded(r.guardRole),
		define[rbacv1.ClusterRoleBinding](rbac, "clusterrolebindings", clusterrolebinding.Strategy).guarded(r.guardBinding),
		define[rbacv1.Role](rbac, "roles", role.Strategy).guarded(r.guardRole),
		define[rbacv1.RoleBinding](rbac, "rolebindings", rolebinding.Strategy).guarded(r.guardBinding),
	}
}
