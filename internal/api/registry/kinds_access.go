package registry

import (
	certificatesv1 "k8s.io/api/certificates/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/kubernetes/pkg/registry/certificates/certificates"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrole"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding"
	"k8s.io/kubernetes/pkg/registry/rbac/role"
	"k8s.io/kubernetes/pkg/registry/rbac/rolebinding"
)

// accessKinds say who somebody is and what they may.
func (r *Registry) accessKinds() []*definition {
	rbac := rbacv1.SchemeGroupVersion
	return []*definition{
		define[certificatesv1.CertificateSigningRequest](certificatesv1.SchemeGroupVersion, "certificatesigningrequests", certificates.Strategy).
			short("csr").withStatus(certificates.StatusStrategy).selects(signingRequestFields).
			view("approval", certificates.ApprovalStrategy, "get", "patch", "update"),
		define[rbacv1.ClusterRole](rbac, "clusterroles", clusterrole.Strategy).guarded(r.guardRole),
		define[rbacv1.ClusterRoleBinding](rbac, "clusterrolebindings", clusterrolebinding.Strategy).guarded(r.guardBinding),
		define[rbacv1.Role](rbac, "roles", role.Strategy).guarded(r.guardRole),
		define[rbacv1.RoleBinding](rbac, "rolebindings", rolebinding.Strategy).guarded(r.guardBinding),
	}
}
