package server

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apiserver/pkg/authentication/user"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/api/auth"
	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/controller/serviceaccount"
	"gantry.dev/gantry/internal/network/podnet"
	"gantry.dev/gantry/internal/pki"
)

// systemNamespaces are in every cluster.
func systemNamespaces() []string {
	return []string{metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease, metav1.NamespaceDefault, v1alpha1.PlatformNamespace}
}

// bootstrap makes what every cluster has. It is repeated at each start and changes nothing
// that is as it should be.
func (cp *ControlPlane) bootstrap(ctx context.Context) error {
	var namespaces []ctrlclient.Object
	for _, name := range systemNamespaces() {
		namespaces = append(namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	if err := cp.ensureAll(ctx, namespaces); err != nil {
		return err
	}
	objects := []ctrlclient.Object{edgeRole(), policyRole(), metricsRole(), customMetricsRole(), localVolumesRole(), tokenTracking()}
	objects = append(objects, serverJoiningObjects()...)
	for _, role := range imageRoles() {
		objects = append(objects, role)
	}
	for _, binding := range extraBindings() {
		objects = append(objects, binding)
	}
	if cp.opts.Gateway != nil {
		objects = append(objects, gatewayObjects()...)
	}
	objects = append(objects, joiningObjects()...)
	if err := cp.ensureAll(ctx, objects); err != nil {
		return err
	}
	if err := auth.EnsurePolicy(ctx, cp.admin); err != nil {
		return err
	}
	if err := cp.publishAuthentication(ctx); err != nil {
		return err
	}
	if err := cp.publishServiceCIDR(ctx); err != nil {
		return err
	}
	if err := cp.ensureSystemObjects(ctx); err != nil {
		return err
	}
	services := cp.opts.ServiceCIDR.Masked()
	for _, obj := range []ctrlclient.Object{
		apiService(services.Addr().Next()),
		dnsService(podnet.DNSAddr(services)),
	} {
		if err := cp.ensure(ctx, obj); err != nil {
			return err
		}
	}
	if err := cp.ensureStorageClass(ctx); err != nil {
		return err
	}
	if err := cp.publishJoining(ctx); err != nil {
		return err
	}
	if cp.opts.Endpoint == nil || cp.store.HasCompany() { // the leader lists the servers
		return nil
	}
	own := cp.opts.Endpoint()
	return cp.publishEndpoints(ctx, []netip.Addr{own.Addr()}, own.Port())
}

// ensure creates obj unless there is one of its name.
func (cp *ControlPlane) ensure(ctx context.Context, obj ctrlclient.Object) error {
	there := obj.DeepCopyObject().(ctrlclient.Object)
	err := cp.admin.Get(ctx, ctrlclient.ObjectKeyFromObject(obj), there)
	if apierrors.IsNotFound(err) {
		return ctrlclient.IgnoreAlreadyExists(cp.admin.Create(ctx, obj))
	}
	return err
}

// ensureAll is ensure for objects that do not depend on each other: they share the waits for the disk.
func (cp *ControlPlane) ensureAll(ctx context.Context, objects []ctrlclient.Object) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, obj := range objects {
		group.Go(func() error { return cp.ensure(ctx, obj) })
	}
	return group.Wait()
}

// ensureSystemObjects makes upstream's priority classes, flow schemas and priority levels. They do
// not depend on each other, so they share the waits for the disk.
func (cp *ControlPlane) ensureSystemObjects(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, want := range registry.SystemObjects() {
		group.Go(func() error {
			there := want.DeepCopyObject().(ctrlclient.Object)
			err := cp.admin.Get(ctx, ctrlclient.ObjectKeyFromObject(want), there)
			if apierrors.IsNotFound(err) {
				return ctrlclient.IgnoreAlreadyExists(cp.admin.Create(ctx, want))
			}
			if err != nil {
				return err
			}
			next, err := registry.ReviseSystemObject(there, want)
			if err != nil || next == nil {
				return err
			}
			if err := cp.admin.Update(ctx, next); !apierrors.IsConflict(err) { // who was faster may be right
				return err
			}
			return nil
		})
	}
	return group.Wait()
}

// extraBindings are those that upstream's policy does not have.
func extraBindings() []*rbacv1.ClusterRoleBinding {
	bind := func(name, role string, subject rbacv1.Subject) *rbacv1.ClusterRoleBinding {
		return &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{subject},
		}
	}
	return []*rbacv1.ClusterRoleBinding{
		// The holder of the admin kubeconfig may do everything, as with kubeadm.
		bind(pki.GroupAdmins, "cluster-admin", rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: pki.GroupAdmins}),
		// One controller keeps EndpointSlices and Endpoints, and mirrors Endpoints that users keep.
		bind("gantry:endpoints", "system:controller:endpoint-controller",
			rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: "endpointslice-controller"}),
		bind("gantry:endpoint-mirroring", "system:controller:endpointslicemirroring-controller",
			rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: "endpointslice-controller"}),
		bind(edgeRoleName, edgeRoleName, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: "kube-dns"}),
		bind(policyRoleName, policyRoleName, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: policyUserName}),
		// A worker makes its own rules, of which other nodes' pods are a part, as network plugins do.
		bind(policyRoleName+":nodes", policyRoleName, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: user.NodesGroup}),
		// The built-in provisioner tells nodes which volumes they must remove.
		bind(localVolumesRoleName, localVolumesRoleName,
			rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: "persistent-volume-binder"}),
		// Nodes pull for their pods, whose right they have looked at.
		bind(imageCollectorName, imageCollectorName, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: imageCollectorName}),
		bind(imageNodesRoleName, imagePullerRoleName, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: user.NodesGroup}),
		// One controller keeps the default ServiceAccount and kube-root-ca.crt.
		bind("gantry:root-ca", "system:controller:root-ca-cert-publisher",
			rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: "service-account-controller"}),
	}
}

const edgeRoleName = "gantry:edge"

// edgeRole is what compiling the edge's tables needs.
func edgeRole() *rbacv1.ClusterRole {
	read := []string{"get", "list", "watch"}
	return &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: edgeRoleName},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"services", "namespaces"}, Verbs: read},
			{APIGroups: []string{discoveryv1.GroupName}, Resources: []string{"endpointslices"}, Verbs: read},
		},
	}
}

const (
	policyRoleName = "gantry:network-policy"
	policyUserName = "system:gantry:network-policy"
)

// policyUser is who makes nodes' rules of network policies.
func policyUser() user.Info {
	return &user.DefaultInfo{Name: policyUserName, Groups: []string{user.AllAuthenticated}}
}

// policyRole is what those rules are made from.
func policyRole() *rbacv1.ClusterRole {
	read := []string{"get", "list", "watch"}
	return &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: policyRoleName},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"pods", "namespaces"}, Verbs: read},
			{APIGroups: []string{networkingv1.GroupName}, Resources: []string{"networkpolicies"}, Verbs: read},
		},
	}
}

// metricsRole lets whoever may view a namespace see what its pods use: metrics-server's own role, by its name.
func metricsRole() *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "system:aggregated-metrics-reader", Labels: map[string]string{
			"rbac.authorization.k8s.io/aggregate-to-admin": "true", "rbac.authorization.k8s.io/aggregate-to-edit": "true",
			"rbac.authorization.k8s.io/aggregate-to-view": "true",
		}},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{"metrics.k8s.io"}, Resources: []string{"pods", "nodes"}, Verbs: []string{"get", "list", "watch"}}},
	}
}

// customMetricsRole lets whoever may view a namespace see how its Services are used.
func customMetricsRole() *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "gantry:custom-metrics-reader", Labels: map[string]string{
			"rbac.authorization.k8s.io/aggregate-to-admin": "true", "rbac.authorization.k8s.io/aggregate-to-edit": "true",
			"rbac.authorization.k8s.io/aggregate-to-view": "true",
		}},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{"custom.metrics.k8s.io"}, Resources: []string{"*"}, Verbs: []string{"get", "list"}}},
	}
}

// tokenTracking says since when this server notes down the use of tokens in Secrets, for who cleans them up.
func tokenTracking() *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: serviceaccount.TrackingConfigMap},
		Data:       map[string]string{serviceaccount.TrackingSince: time.Now().UTC().Format(serviceaccount.DateFormat)},
	}
}

// apiService is default/kubernetes, through which pods reach the API.
func apiService(ip netip.Addr) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceDefault, Name: "kubernetes",
			Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP: ip.String(), Type: corev1.ServiceTypeClusterIP, SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(6443)}},
		},
	}
}

// dnsService holds the cluster's DNS address. Each node answers on it by itself, so it has no
// endpoints.
func dnsService(ip netip.Addr) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: "kube-dns",
			Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP: ip.String(), Type: corev1.ServiceTypeClusterIP,
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53},
			},
		},
	}
}
