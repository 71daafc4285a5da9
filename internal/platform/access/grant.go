package access

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
)

const (
	labelRole = "gantry.dev/role" // on bindings: which of the roles
	labelApp  = v1alpha1.LabelApp // on bindings to a role of one application
	// policyName is of the admission policy that keeps users of one application to it.
	policyName = "gantry-users"
	// clusterAdmin is upstream's role that may everything.
	clusterAdmin = "cluster-admin"
)

// grant binds a user to a role. Twice is once.
func (a *Access) grant(ctx context.Context, name string, g Grant) error {
	subject := rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: UsersNamespace, Name: name}
	about := metav1.ObjectMeta{Name: bindingName(name, g), Namespace: g.Project, Labels: map[string]string{labelUser: name, labelRole: string(g.Role)}}
	role := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: g.Role.clusterRole()}
	var bindings []client.Object
	switch {
	case g.Project == "":
		if g.Role == Admin {
			role.Name = clusterAdmin
		}
		bindings = []client.Object{&rbacv1.ClusterRoleBinding{ObjectMeta: about, RoleRef: role, Subjects: []rbacv1.Subject{subject}}}
	case g.App == "":
		bindings = []client.Object{&rbacv1.RoleBinding{ObjectMeta: about, RoleRef: role, Subjects: []rbacv1.Subject{subject}}}
	default:
		about.Labels[labelApp] = g.App
		role.Name = Viewer.clusterRole()
		bindings = []client.Object{&rbacv1.RoleBinding{ObjectMeta: about, RoleRef: role, Subjects: []rbacv1.Subject{subject}}}
		if g.Role != Viewer {
			if err := a.prepareApp(ctx, g); err != nil {
				return err
			}
			narrow := *about.DeepCopy()
			narrow.Name += "-writes"
			narrow.Labels = map[string]string{labelUser: name, labelRole: string(g.Role), labelApp: g.App, labelPart: "writes"}
			role.Kind, role.Name = "Role", appRoleName(g)
			bindings = append(bindings, &rbacv1.RoleBinding{ObjectMeta: narrow, RoleRef: role, Subjects: []rbacv1.Subject{subject}})
		}
	}
	for _, binding := range bindings {
		if err := a.ensure(ctx, binding); err != nil {
			return fmt.Errorf("give %s the role %s: %w", name, g, err)
		}
	}
	return nil
}

// labelPart is on the second binding of a grant for one application, which lists pass over.
const labelPart = "gantry.dev/part"

func bindingName(user string, g Grant) string {
	out := "gantry-user-" + user + "-" + string(g.Role)
	if g.App != "" {
		out += "-" + g.App
	}
	return out
}

// grantOf is the grant of a binding.
func grantOf(binding client.Object) Grant {
	labels := binding.GetLabels()
	return Grant{Role: Role(labels[labelRole]), Project: binding.GetNamespace(), App: labels[labelApp]}
}

func appRoleName(g Grant) string { return "gantry-" + string(g.Role) + "-" + g.App }

// prepareApp makes what a role of one application needs: the policy, the application's Secret, because a right to create cannot
// name what, and the role.
func (a *Access) prepareApp(ctx context.Context, g Grant) error {
	if err := a.ensurePolicy(ctx); err != nil {
		return fmt.Errorf("make the policy that keeps users to their application: %w", err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		Namespace: g.Project, Name: v1alpha1.SecretName(g.App), Labels: map[string]string{v1alpha1.LabelApp: g.App},
	}}
	if err := a.ensure(ctx, secret); err != nil {
		return fmt.Errorf("make the secrets of %s: %w", g.App, err)
	}
	role := appRole(g)
	there := &rbacv1.Role{}
	err := a.client.Get(ctx, client.ObjectKeyFromObject(role), there)
	switch {
	case apierrors.IsNotFound(err):
		err = a.ensure(ctx, role)
	case err == nil && !equality.Semantic.DeepEqual(there.Rules, role.Rules):
		there.Rules = role.Rules
		err = a.client.Update(ctx, there, client.FieldOwner(manager))
	}
	if err != nil {
		return fmt.Errorf("make the role %s of %s: %w", g.Role, g.App, err)
	}
	return nil
}

// appRole is what a user of one application may beside reading the project. Rights that cannot name an object (to create one; a
// release by its number) are given for all and narrowed by the policy.
func appRole(g Grant) *rbacv1.Role {
	rule := func(group string, verbs []string, resource string, names ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs, ResourceNames: names}
	}
	change := []string{"update", "patch"}
	rules := []rbacv1.PolicyRule{
		rule(v1alpha1.Group, change, "apps", g.App),
		rule(v1alpha1.Group, []string{"create"}, "apps"),
		rule(v1alpha1.Group, change, "releases"),
		rule(v1alpha1.Group, []string{"create", "update", "patch"}, "builds"),
		rule("", []string{"get", "update", "patch"}, "secrets", v1alpha1.SecretName(g.App)),
		rule("registry.gantry.dev", []string{"get", "create"}, "images", g.App),
	}
	if g.Role == Admin {
		rules = append(rules, rule(v1alpha1.Group, []string{"delete"}, "apps", g.App), rule("registry.gantry.dev", []string{"delete"}, "images", g.App))
	}
	return &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Namespace: g.Project, Name: appRoleName(g), Labels: map[string]string{v1alpha1.LabelApp: g.App}}, Rules: rules,
	}
}

// mayPatch is a condition on the application that an object belongs to.
const mayPatch = `authorizer.group('gantry.dev').resource('apps').namespace(request.namespace).name(%s).check('patch').allowed()`

// ensurePolicy makes the admission policy. It asks nothing of anybody but our users, and costs nothing before the first user of one
// application.
func (a *Access) ensurePolicy(ctx context.Context) error {
	fail := admissionv1.Fail
	matches := func(resource string, operations ...admissionv1.OperationType) admissionv1.NamedRuleWithOperations {
		return admissionv1.NamedRuleWithOperations{RuleWithOperations: admissionv1.RuleWithOperations{
			Operations: operations,
			Rule:       admissionv1.Rule{APIGroups: []string{v1alpha1.Group}, APIVersions: []string{"*"}, Resources: []string{resource}},
		}}
	}
	forbidden := metav1.StatusReasonForbidden
	const refused = "this user's rights end at another application"
	policy := &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: policyName},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: &fail,
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{
				matches("apps", admissionv1.Create),
				matches("builds", admissionv1.Create, admissionv1.Update),
				matches("releases", admissionv1.Update),
			}},
			MatchConditions: []admissionv1.MatchCondition{{
				Name: "users", Expression: fmt.Sprintf("request.userInfo.username.startsWith('system:serviceaccount:%s:')", UsersNamespace),
			}},
			Validations: []admissionv1.Validation{
				{Expression: fmt.Sprintf(mayPatch, "request.resource.resource == 'apps' ? object.metadata.name : object.spec.app"), Message: refused, Reason: &forbidden},
				{Expression: "request.operation == 'CREATE' || " + fmt.Sprintf(mayPatch, "oldObject.spec.app"), Message: refused, Reason: &forbidden},
			},
		},
	}
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: policyName},
		Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: policyName, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		},
	}
	if err := a.ensure(ctx, policy); err != nil {
		return err
	}
	return a.ensure(ctx, binding)
}
