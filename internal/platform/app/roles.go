package app

import (
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
)

// Names of the roles that people and CI have in a project.
const (
	RoleViewer   = "gantry-viewer"
	RoleDeployer = "gantry-deployer"
	RoleAdmin    = "gantry-admin"
)

const (
	groupGateway  = "gateway.networking.k8s.io"
	groupMetrics  = "custom.metrics.k8s.io"
	groupBuild    = "build.gantry.dev"
	groupRegistry = "registry.gantry.dev"
)

func rule(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: verbs}
}

// ProjectRoles are the roles to bind in a project's namespace. Upstream's view and edit get the first two as well.
func ProjectRoles() []*rbacv1.ClusterRole {
	read := []string{"get", "list", "watch"}
	write := []string{"create", "update", "patch", "delete"}
	viewer := []rbacv1.PolicyRule{
		rule(read, v1alpha1.Group, "apps", "releases", "builds", "apps/status", "releases/status", "builds/status"),
		rule([]string{"get"}, groupBuild, "builds/log"),
		rule([]string{"get"}, v1alpha1.Group, "apps/log"), // what its gateways and the platform say of it, too
		rule(read, "", "pods", "pods/log", "pods/status", "services", "events", "persistentvolumeclaims", "serviceaccounts"),
		rule(read, "apps", "deployments", "replicasets", "statefulsets"),
		rule(read, "batch", "jobs", "cronjobs"),
		rule(read, "autoscaling", "horizontalpodautoscalers"),
		rule(read, "networking.k8s.io", "ingresses"),
		rule(read, groupGateway, "httproutes"),
		rule(read, "metrics.k8s.io", "pods"),
		rule(read, groupMetrics, "*"),
	}
	deployer := append(slices.Clone(viewer),
		rule([]string{"create", "update", "patch"}, v1alpha1.Group, "apps"),
		rule([]string{"update", "patch"}, v1alpha1.Group, "releases"), // their intent; the rest does not change
		rule(write, v1alpha1.Group, "builds"),
		rule([]string{"get", "list", "watch", "create", "update", "patch"}, "", "secrets"),
		rule([]string{"get", "create"}, "", "pods/exec", "pods/attach", "pods/portforward"),
		rule(write, "", "pods"),
		rule([]string{"create"}, "batch", "jobs"), // a backup at once
		rule([]string{"get", "create"}, groupRegistry, "images"),
	)
	admin := append(slices.Clone(deployer),
		rule([]string{"delete", "deletecollection"}, v1alpha1.Group, "apps", "releases"),
		rule([]string{"delete"}, "", "secrets"),
		rule(write, "", "persistentvolumeclaims", "serviceaccounts", "configmaps", "services"),
		rule(read, "", "configmaps"),
		rule([]string{"create"}, "", "serviceaccounts/token"),
		rule([]string{"delete"}, groupRegistry, "images"),
		rule(append(slices.Clone(read), write...), rbacv1.GroupName, "roles", "rolebindings"),
	)
	role := func(name, joins string, rules []rbacv1.PolicyRule) *rbacv1.ClusterRole {
		out := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
		if joins != "" {
			out.Labels = map[string]string{"rbac.authorization.k8s.io/aggregate-to-" + joins: "true"}
		}
		return out
	}
	return []*rbacv1.ClusterRole{role(RoleViewer, "view", viewer), role(RoleDeployer, "edit", deployer), role(RoleAdmin, "", admin)}
}

// ControllerRole is what a Controller's account needs, and no more.
func ControllerRole() *rbacv1.ClusterRole {
	read := []string{"get", "list", "watch"}
	all := []string{"get", "list", "watch", "create", "update", "patch", "delete"}
	return &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "gantry:app"},
		Rules: []rbacv1.PolicyRule{
			rule([]string{"get", "list", "watch", "patch", "delete"}, v1alpha1.Group, "apps"),
			rule([]string{"patch"}, v1alpha1.Group, "apps/status", "releases/status"),
			rule([]string{"update"}, v1alpha1.Group, "apps/finalizers"),
			rule([]string{"get", "list", "watch", "create", "patch", "delete"}, v1alpha1.Group, "releases"),
			rule(all, "", "services", "serviceaccounts", "persistentvolumeclaims"),
			rule([]string{"get", "list", "watch", "create", "delete"}, "", "secrets"),
			rule(read, "", "pods", "configmaps"),
			rule([]string{"get"}, "", "pods/log"),
			rule(all, "apps", "deployments"),
			rule(all, "batch", "jobs", "cronjobs"),
			rule(all, "policy", "poddisruptionbudgets"),
			rule(all, "autoscaling", "horizontalpodautoscalers"),
			rule(all, "networking.k8s.io", "ingresses"),
			rule(read, "networking.k8s.io", "ingressclasses"),
			rule(all, groupGateway, "httproutes"),
			rule([]string{"get", "list", "watch", "update"}, groupGateway, "gateways"),
			rule([]string{"get", "list"}, groupMetrics, "*"),
		},
	}
}
