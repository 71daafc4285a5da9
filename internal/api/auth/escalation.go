package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/kubernetes/pkg/apis/rbac"
	rbacconv "k8s.io/kubernetes/pkg/apis/rbac/v1"
	rbacregistry "k8s.io/kubernetes/pkg/registry/rbac"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// CheckEscalation says whether info may write object, a role or binding of rbac.authorization.k8s.io/v1, in place of
// old (nil on create): nobody may grant what they do not have, unless they may "escalate" the role or "bind" it. Any
// other kind passes. The error is what the API answers. The namespace is the object's own.
func (a *Authorizer) CheckEscalation(ctx context.Context, info user.Info, object, old client.Object) error {
	if slices.Contains(info.GetGroups(), user.SystemPrivilegedGroup) {
		return nil
	}
	check := escalation{authorizer: a, info: info, namespace: object.GetNamespace(), name: object.GetName()}
	var err error
	switch o := object.(type) {
	case *rbacv1.ClusterRole:
		check.resource = "clusterroles"
		before, _ := old.(*rbacv1.ClusterRole)
		if before != nil && rbacregistry.IsOnlyMutatingGCFields(o, before, equality.Semantic) {
			return nil
		}
		err = check.clusterRole(ctx, o, before)
	case *rbacv1.Role:
		check.resource = "roles"
		if before, _ := old.(*rbacv1.Role); before != nil && rbacregistry.IsOnlyMutatingGCFields(o, before, equality.Semantic) {
			return nil
		}
		err = check.role(ctx, o.Rules)
	case *rbacv1.ClusterRoleBinding:
		check.resource = "clusterrolebindings"
		if before, _ := old.(*rbacv1.ClusterRoleBinding); before != nil && rbacregistry.IsOnlyMutatingGCFields(o, before, equality.Semantic) {
			return nil
		}
		err = check.binding(ctx, o.RoleRef)
	case *rbacv1.RoleBinding:
		check.resource = "rolebindings"
		if before, _ := old.(*rbacv1.RoleBinding); before != nil && rbacregistry.IsOnlyMutatingGCFields(o, before, equality.Semantic) {
			return nil
		}
		err = check.binding(ctx, o.RoleRef)
	}
	return err
}

// CheckRole is CheckEscalation for the user that ctx carries, with objects of upstream's internal types or of v1; old
// is nil on create. What is neither a role nor a binding is refused: the caller means to have it checked.
func (a *Authorizer) CheckRole(ctx context.Context, object, old runtime.Object) error {
	info, ok := request.UserFrom(ctx)
	if !ok {
		return apierrors.NewInternalError(errors.New("no user on context"))
	}
	written, err := versioned(object)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	var before client.Object
	if old != nil {
		if before, err = versioned(old); err != nil {
			return apierrors.NewInternalError(err)
		}
	}
	return a.CheckEscalation(ctx, info, written, before)
}

// versioned gives a role or binding as v1. The two may share memory.
func versioned(object runtime.Object) (client.Object, error) {
	var err error
	switch o := object.(type) {
	case *rbacv1.Role, *rbacv1.ClusterRole, *rbacv1.RoleBinding, *rbacv1.ClusterRoleBinding:
		out, _ := o.(client.Object)
		return out, nil
	case *rbac.Role:
		out := &rbacv1.Role{}
		err = rbacconv.Convert_rbac_Role_To_v1_Role(o, out, nil)
		return out, err
	case *rbac.ClusterRole:
		out := &rbacv1.ClusterRole{}
		err = rbacconv.Convert_rbac_ClusterRole_To_v1_ClusterRole(o, out, nil)
		return out, err
	case *rbac.RoleBinding:
		out := &rbacv1.RoleBinding{}
		err = rbacconv.Convert_rbac_RoleBinding_To_v1_RoleBinding(o, out, nil)
		return out, err
	case *rbac.ClusterRoleBinding:
		out := &rbacv1.ClusterRoleBinding{}
		err = rbacconv.Convert_rbac_ClusterRoleBinding_To_v1_ClusterRoleBinding(o, out, nil)
		return out, err
	}
	return nil, fmt.Errorf("%T is neither a role nor a binding", object)
}

// CheckBinding is CheckRole for bindings.
func (a *Authorizer) CheckBinding(ctx context.Context, object, old runtime.Object) error {
	return a.CheckRole(ctx, object, old)
}

// escalation is one check.
type escalation struct {
	authorizer                *Authorizer
	info                      user.Info
	resource, namespace, name string
}

// fullAuthority is what changing an aggregation rule takes: it can gather anything.
func fullAuthority() []rbacv1.PolicyRule {
	all := []string{"*"}
	return []rbacv1.PolicyRule{{Verbs: all, APIGroups: all, Resources: all}, {Verbs: all, NonResourceURLs: all}}
}

func (e *escalation) clusterRole(ctx context.Context, role, before *rbacv1.ClusterRole) error {
	if e.may(ctx, "escalate", e.resource, e.name) {
		return nil
	}
	if err := e.covered(ctx, role.Rules); err != nil {
		return err
	}
	aggregates := func(r *rbacv1.ClusterRole) bool {
		return r != nil && r.AggregationRule != nil && len(r.AggregationRule.ClusterRoleSelectors) > 0
	}
	if (aggregates(role) || aggregates(before)) && e.covered(ctx, fullAuthority()) != nil {
		return e.forbidden(errors.New("must have cluster-admin privileges to use the aggregationRule"))
	}
	return nil
}

func (e *escalation) role(ctx context.Context, rules []rbacv1.PolicyRule) error {
	if e.may(ctx, "escalate", e.resource, e.name) {
		return nil
	}
	return e.covered(ctx, rules)
}

func (e *escalation) binding(ctx context.Context, ref rbacv1.RoleRef) error {
	resource := ""
	switch ref.Kind {
	case "ClusterRole":
		resource = "clusterroles"
	case "Role":
		resource = "roles"
	}
	if resource != "" && e.may(ctx, "bind", resource, ref.Name) {
		return nil
	}
	rules, err := (resolver{&e.authorizer.rbac}).GetRoleReferenceRules(ctx, ref, e.namespace)
	if err != nil {
		return err
	}
	return e.covered(ctx, rules)
}

// may asks the authorizer for one of RBAC's special verbs.
func (e *escalation) may(ctx context.Context, verb, resource, name string) bool {
	decision, _, err := e.authorizer.Authorize(ctx, &authorizer.AttributesRecord{
		User: e.info, Verb: verb, Namespace: e.namespace, APIGroup: rbacv1.GroupName, APIVersion: "*",
		Resource: resource, Name: name, ResourceRequest: true,
	})
	return err == nil && decision == authorizer.DecisionAllow
}

// covered returns 403 unless the user holds all of rules.
func (e *escalation) covered(ctx context.Context, rules []rbacv1.PolicyRule) error {
	ctx = request.WithNamespace(request.WithUser(ctx, e.info), e.namespace)
	if err := validation.ConfirmNoEscalation(ctx, resolver{&e.authorizer.rbac}, rules); err != nil {
		return e.forbidden(err)
	}
	return nil
}

func (e *escalation) forbidden(err error) error {
	return apierrors.NewForbidden(schema.GroupResource{Group: rbacv1.GroupName, Resource: e.resource}, e.name, err)
}

// resolver lets upstream's checks read our index.
type resolver struct{ rbac *RBAC }

var _ validation.AuthorizationRuleResolver = resolver{}

// GetRoleReferenceRules implements validation.AuthorizationRuleResolver.
func (r resolver) GetRoleReferenceRules(_ context.Context, ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	key := roleKey{"", ref.Name}
	switch ref.Kind {
	case "ClusterRole":
	case "Role":
		key.namespace = namespace
	default:
		return nil, fmt.Errorf("unsupported role reference kind: %q", ref.Kind)
	}
	r.rbac.mu.RLock()
	defer r.rbac.mu.RUnlock()
	if found := r.rbac.roles[key]; found != nil && (ref.Kind == "ClusterRole" || namespace != "") {
		return found.rules, nil
	}
	resource := map[string]string{"ClusterRole": "clusterroles", "Role": "roles"}[ref.Kind]
	return nil, apierrors.NewNotFound(rbacv1.Resource(resource), ref.Name)
}

// RulesFor implements validation.AuthorizationRuleResolver.
func (r resolver) RulesFor(_ context.Context, info user.Info, namespace string) ([]rbacv1.PolicyRule, error) {
	return r.rbac.PolicyRulesFor(info, namespace)
}

// VisitRulesFor implements validation.AuthorizationRuleResolver.
func (r resolver) VisitRulesFor(_ context.Context, info user.Info, namespace string, visit func(fmt.Stringer, *rbacv1.PolicyRule, error) bool) {
	r.rbac.mu.RLock()
	defer r.rbac.mu.RUnlock()
	r.rbac.visitLocked(info, namespace, func(g *grant, found *role, err error) bool {
		if err != nil {
			return visit(nil, nil, err)
		}
		for i := range found.rules {
			if !visit(grantSource(g.reason), &found.rules[i], nil) {
				return false
			}
		}
		return true
	})
}

// grantSource names a grant.
type grantSource string

func (s grantSource) String() string { return string(s) }
