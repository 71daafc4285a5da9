package remote

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
)

// oldestMinor is the oldest 1.x that will do: pods wait before they end by a sleep of the kubelet's, which is on since 1.30
// (PodLifecycleSleepAction).
const oldestMinor = 30

// VersionError says that a cluster's version does not do.
type VersionError struct {
	Found string
	Own   bool // it is Gantry's, where the platform is already
}

func (e *VersionError) Error() string {
	if e.Own {
		return "this cluster is Gantry's own (" + e.Found + "): the platform is a part of it"
	}
	return fmt.Sprintf("the cluster is Kubernetes %s, and the platform needs 1.%d or newer", e.Found, oldestMinor)
}

// checkVersion asks which Kubernetes it is.
func checkVersion(config *rest.Config) (string, error) {
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return "", fmt.Errorf("making a client of the cluster: %w", err)
	}
	v, err := d.ServerVersion()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", config.Host, err)
	}
	return v.GitVersion, judgeVersion(v.Major, v.Minor, v.GitVersion)
}

// judgeVersion is nil for a version that will do. Managed clusters write minors such as "31+".
func judgeVersion(major, minor, git string) error {
	if strings.Contains(git, "+gantry") {
		return &VersionError{Found: git, Own: true}
	}
	number, err := strconv.Atoi(regexp.MustCompile(`^\d+`).FindString(minor))
	if major == "1" && (err != nil || number < oldestMinor) {
		return &VersionError{Found: git}
	}
	return nil
}

// right is what an account may do with a kind.
type right struct {
	verb, group, resource, namespace string
}

func (r right) String() string {
	out := r.verb + " " + r.resource
	if r.group != "" {
		out += "." + r.group
	}
	if r.namespace != "" {
		out += " in " + r.namespace
	}
	return out
}

// DeniedError says what an account would have to be allowed.
type DeniedError struct {
	Missing []string // such as "create clusterroles.rbac.authorization.k8s.io"
	Grant   error    // the account holds less than what it would give to the controllers
}

func (e *DeniedError) Error() string {
	if e.Grant != nil {
		return "this account may not give the controllers what they need, as it does not hold that itself: " + e.Grant.Error()
	}
	return "this account may not " + strings.Join(e.Missing, ", nor ")
}

func (e *DeniedError) Unwrap() error { return e.Grant }

// needed are the rights to install.
func needed(settings bool) (out []right) {
	add := func(group, resource, namespace string, verbs ...string) {
		for _, verb := range verbs {
			out = append(out, right{verb, group, resource, namespace})
		}
	}
	const rbac, ns = "rbac.authorization.k8s.io", v1alpha1.PlatformNamespace
	add("apiextensions.k8s.io", "customresourcedefinitions", "", "get", "create", "update")
	for _, kind := range []string{"clusterroles", "clusterrolebindings"} {
		add(rbac, kind, "", "get", "create", "patch")
	}
	add("", "namespaces", "", "get", "create", "patch")
	add("", "serviceaccounts", ns, "get", "create", "patch")
	add(rbac, "roles", ns, "get", "create", "patch")
	add(rbac, "rolebindings", ns, "get", "create", "patch")
	add("apps", "deployments", ns, "get", "create", "patch")
	if settings {
		add("", "configmaps", ns, "get", "create", "patch")
	}
	return out
}

// checkRights asks for all rights before anything is made.
func (in *installer) checkRights(ctx context.Context) error {
	var missing []string
	for _, r := range needed(len(in.opts.settings()) > 0) {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: r.verb, Group: r.group, Resource: r.resource, Namespace: r.namespace},
		}}
		if err := in.Create(ctx, review); err != nil {
			return fmt.Errorf("asking whether this account may %s: %w", r, err)
		}
		if !review.Status.Allowed {
			missing = append(missing, r.String())
		}
	}
	if len(missing) > 0 {
		return &DeniedError{Missing: missing}
	}
	for _, role := range clusterRoles() { // nobody may give rights that he does not hold
		plain, err := toPlain(role)
		if err != nil {
			return err
		}
		err = in.Client.Apply(ctx, applied(plain), client.FieldOwner(Name), client.ForceOwnership, client.DryRunAll)
		if apierrors.IsForbidden(err) {
			return &DeniedError{Grant: err}
		}
		if err != nil {
			return fmt.Errorf("trying the role %s: %w", role.Name, err)
		}
	}
	return nil
}
