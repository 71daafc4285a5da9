package access

import (
	"context"
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
)

// UsersNamespace holds the accounts of users. No pod runs in it.
const UsersNamespace = "gantry-users"

const (
	labelUser    = "gantry.dev/user"    // on everything that belongs to a user: its name
	labelProject = "gantry.dev/project" // on namespaces that were made as projects
	// annotationExpires is on a user's account: when its token ends, in RFC 3339.
	annotationExpires = "gantry.dev/expires"
	manager           = "gantry-access"
)

// Role is what a user may do.
type Role string

// Roles. Each may what those before it may.
const (
	Viewer   Role = "viewer"   // read everything but secrets
	Deployer Role = "deployer" // deploy, set secrets and environment, read logs
	Admin    Role = "admin"    // remove, and bind roles in the project
)

// ParseRole reads a role.
func ParseRole(text string) (Role, error) {
	switch role := Role(text); role {
	case Viewer, Deployer, Admin:
		return role, nil
	}
	return "", &InputError{fmt.Sprintf("%q is no role: viewer, deployer or admin", text)}
}

// clusterRole is the platform's role of that name.
func (r Role) clusterRole() string { return "gantry-" + string(r) }

// InputError says what of a request cannot be.
type InputError struct{ Message string }

func (e *InputError) Error() string { return e.Message }

func wrong(format string, args ...any) error { return &InputError{fmt.Sprintf(format, args...)} }

// Access works on the users and projects of one cluster.
type Access struct{ client client.Client }

// Connect makes an Access of a cluster. It asks nothing.
func Connect(config *rest.Config) (*Access, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("prepare to ask %s: %w", config.Host, err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, rbacv1.AddToScheme, authenticationv1.AddToScheme, admissionv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("prepare the types of the API: %w", err)
		}
	}
	c, err := client.New(config, client.Options{HTTPClient: web, Scheme: scheme, Mapper: mapper()})
	if err != nil {
		return nil, fmt.Errorf("prepare to ask %s: %w", config.Host, err)
	}
	return &Access{client: c}, nil
}

// mapper knows the kinds that are used here, so that no question to the server is needed.
func mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	add := func(gv schema.GroupVersion, scope meta.RESTScope, kinds ...string) {
		for _, kind := range kinds {
			m.Add(gv.WithKind(kind), scope)
		}
	}
	add(corev1.SchemeGroupVersion, meta.RESTScopeNamespace, "ServiceAccount", "Secret", "PersistentVolumeClaim", "Pod")
	add(corev1.SchemeGroupVersion, meta.RESTScopeRoot, "Namespace")
	add(rbacv1.SchemeGroupVersion, meta.RESTScopeNamespace, "Role", "RoleBinding")
	add(rbacv1.SchemeGroupVersion, meta.RESTScopeRoot, "ClusterRole", "ClusterRoleBinding")
	add(admissionv1.SchemeGroupVersion, meta.RESTScopeRoot, "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
	add(authenticationv1.SchemeGroupVersion, meta.RESTScopeRoot, "SelfSubjectReview")
	add(v1alpha1.GroupVersion(), meta.RESTScopeNamespace, "App")
	return m
}

// isSystem tells namespaces that are nobody's project.
func isSystem(name string) bool {
	return strings.HasPrefix(name, "kube-") || name == v1alpha1.PlatformNamespace || name == UsersNamespace
}

// platformMissing tells the error of a cluster that does not know applications.
func platformMissing(err error) bool {
	return meta.IsNoMatchError(err) || apierrors.IsNotFound(err)
}

// WhoAmI is the name that the server knows the caller by: of a user, the one that it was added by.
func (a *Access) WhoAmI(ctx context.Context) (string, error) {
	review := &authenticationv1.SelfSubjectReview{}
	if err := a.client.Create(ctx, review); err != nil {
		return "", fmt.Errorf("ask who this is: %w", err)
	}
	return strings.TrimPrefix(review.Status.UserInfo.Username, "system:serviceaccount:"+UsersNamespace+":"), nil
}
