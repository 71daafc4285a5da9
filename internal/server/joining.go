package server

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/join"
)

// Names of what lets machines join.
const (
	clusterInfoName  = "cluster-info" // in kube-public, as kubeadm has it
	joiningRoleName  = "gantry:joining"
	nodeRoleName     = "gantry:node"
	servingRoleName  = "gantry:approve-node-serving"
	settingsRoleName = "gantry:cluster-settings"
)

// joiningObjects are the rights of machines that join, and of nodes beside those that upstream's node authorizer gives.
func joiningObjects() []ctrlclient.Object {
	read := []string{"get", "list", "watch"}
	group := func(name string) rbacv1.Subject {
		return rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: name}
	}
	joiners := []rbacv1.Subject{group(join.Worker.Group()), group(join.Server.Group())}
	nodes := group(user.NodesGroup)
	bind := func(name, role string, subjects ...rbacv1.Subject) *rbacv1.ClusterRoleBinding {
		return &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		}
	}
	local := func(namespace, name string, rule rbacv1.PolicyRule, subjects ...rbacv1.Subject) []ctrlclient.Object {
		meta := metav1.ObjectMeta{Namespace: namespace, Name: name}
		return []ctrlclient.Object{
			&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{rule}},
			&rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name}},
		}
	}
	objects := []ctrlclient.Object{
		// Who has a token asks for the certificate of a node; the approver refuses names that are taken.
		bind(joiningRoleName+":request", "system:node-bootstrapper", joiners...),
		bind(joiningRoleName+":approve", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", joiners...),
		// The approver approves what nodes serve with, which upstream leaves to persons.
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: servingRoleName}, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{certificatesv1.GroupName}, Resources: []string{"signers"}, Verbs: []string{"approve"},
			ResourceNames: []string{certificatesv1.KubeletServingSignerName},
		}}},
		bind(servingRoleName, servingRoleName,
			rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: "certificate-controller"}),
		bind(nodeRoleName+":renew", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", nodes),
		// What a worker's services, names and networks are made of.
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: nodeRoleName}, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"nodes", "namespaces", "services", "pods"}, Verbs: read}, // pods: their addresses, for policies
			{APIGroups: []string{discoveryv1.GroupName}, Resources: []string{"endpointslices"}, Verbs: read},
			{APIGroups: []string{networkingv1.GroupName}, Resources: []string{"networkpolicies"}, Verbs: read},
		}},
		bind(nodeRoleName, nodeRoleName, nodes),
	}
	objects = append(objects, local(metav1.NamespacePublic, "gantry:cluster-info",
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{clusterInfoName}, Verbs: []string{"get"}},
		rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user.Anonymous}, group(user.AllAuthenticated))...)
	return append(objects, local(metav1.NamespaceSystem, settingsRoleName,
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{join.SettingsName}, Verbs: read},
		append(joiners, nodes)...)...)
}

// settings are what all nodes must agree on.
func (cp *ControlPlane) settings() join.Settings {
	return join.Settings{
		PodCIDR: cp.opts.PodCIDR, ServiceCIDR: cp.opts.ServiceCIDR, ClusterDomain: cp.opts.ClusterDomain, Version: cp.opts.Version.GitVersion,
	}
}

// publishJoining says in the cluster what machines that join must know.
func (cp *ControlPlane) publishJoining(ctx context.Context) error {
	if err := cp.publishData(ctx, metav1.NamespaceSystem, join.SettingsName, cp.settings().Data()); err != nil {
		return err
	}
	var info corev1.ConfigMap
	if err := cp.admin.Get(ctx, ctrlclient.ObjectKey{Namespace: metav1.NamespacePublic, Name: clusterInfoName}, &info); err == nil &&
		strings.Contains(info.Data["kubeconfig"], base64.StdEncoding.EncodeToString(cp.opts.RootCA)) {
		return nil // the leader keeps it at a server that is well
	}
	server := join.ServerName + ".default.svc." + cp.opts.ClusterDomain
	if cp.opts.Endpoint != nil {
		server = cp.opts.Endpoint().String()
	}
	return cp.publishClusterInfo(ctx, server)
}

func (cp *ControlPlane) publishClusterInfo(ctx context.Context, server string) error {
	return cp.publishData(ctx, metav1.NamespacePublic, clusterInfoName, map[string]string{"kubeconfig": fmt.Sprintf(clusterInfoFormat,
		base64.StdEncoding.EncodeToString(cp.opts.RootCA), "https://"+server)})
}

// keepClusterInfo makes what joiners and people are told name this server when the one that it names is not among those that are well.
func (cp *ControlPlane) keepClusterInfo(ctx context.Context, well []netip.Addr, own netip.AddrPort) error {
	var info corev1.ConfigMap
	if err := cp.admin.Get(ctx, ctrlclient.ObjectKey{Namespace: metav1.NamespacePublic, Name: clusterInfoName}, &info); err != nil {
		return ctrlclient.IgnoreNotFound(err) // the start makes it
	}
	text := info.Data["kubeconfig"]
	if slices.ContainsFunc(well, func(addr netip.Addr) bool {
		return strings.Contains(text, "server: https://"+netip.AddrPortFrom(addr, own.Port()).String()+"\n")
	}) {
		return nil
	}
	return cp.publishClusterInfo(ctx, own.String())
}

// clusterInfoFormat is a kubeconfig that names nobody, as kubeadm writes it.
const clusterInfoFormat = `apiVersion: v1
kind: Config
clusters:
- name: ""
  cluster:
    certificate-authority-data: %s
    server: %s
`

// publishData makes a ConfigMap hold data. What else it holds stays.
func (cp *ControlPlane) publishData(ctx context.Context, namespace, name string, data map[string]string) error {
	want := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: data}
	there := new(corev1.ConfigMap)
	err := cp.admin.Get(ctx, ctrlclient.ObjectKeyFromObject(want), there)
	if apierrors.IsNotFound(err) {
		return cp.admin.Create(ctx, want)
	}
	if err != nil {
		return err
	}
	next := there.DeepCopy()
	if next.Data == nil {
		next.Data = map[string]string{}
	}
	maps.Copy(next.Data, data)
	if maps.Equal(next.Data, there.Data) {
		return nil
	}
	return cp.admin.Update(ctx, next)
}

// removedNode says when "gantry node rm" took a node away: certificates of it from before are no good.
func (cp *ControlPlane) removedNode(ctx context.Context, name string) (time.Time, bool) {
	var removed corev1.ConfigMap
	if cp.admin.Get(ctx, ctrlclient.ObjectKey{Namespace: metav1.NamespaceSystem, Name: join.RemovedName}, &removed) != nil {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339, removed.Data[name])
	return at, err == nil
}
