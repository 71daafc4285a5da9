package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// EnsurePolicy creates upstream's bootstrap roles and bindings and brings those that exist up to date: permissions
// and subjects that are missing are added, none removed, and an object annotated
// rbac.authorization.kubernetes.io/autoupdate=false is left alone. Then it fills the aggregated roles. Calling it
// again is cheap and harmless. c must be allowed everything and read its own writes.
func EnsurePolicy(ctx context.Context, c client.Client) error {
	group, each := errgroup.WithContext(ctx)
	group.SetLimit(policyWriters)
	p := policyWriter{ctx: each, client: c}
	for _, role := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		group.Go(func() error {
			return p.role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &role}, "clusterrole "+role.Name)
		})
	}
	for _, binding := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		group.Go(func() error {
			return p.binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &binding}, "clusterrolebinding "+binding.Name)
		})
	}
	for namespace, roles := range bootstrappolicy.NamespaceRoles() {
		for _, role := range roles {
			role.Namespace = namespace
			group.Go(func() error {
				return p.role(reconciliation.RoleRuleOwner{Role: &role}, "role "+namespace+"/"+role.Name)
			})
		}
	}
	for namespace, bindings := range bootstrappolicy.NamespaceRoleBindings() {
		for _, binding := range bindings {
			binding.Namespace = namespace
			group.Go(func() error {
				return p.binding(reconciliation.RoleBindingAdapter{RoleBinding: &binding}, "rolebinding "+namespace+"/"+binding.Name)
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return AggregateRoles(ctx, c)
}

// policyWriters is how many objects of the policy are written at once: they share the waits for the disk.
const policyWriters = 32

// policyWriter lets upstream's reconciliation work through a client.Client. It lives for one EnsurePolicy, whose
// context upstream's interfaces have no room for.
type policyWriter struct {
	ctx    context.Context //nolint:containedctx // see above
	client client.Client
}

func (p policyWriter) role(owner reconciliation.RuleOwner, what string) error {
	options := reconciliation.ReconcileRoleOptions{Role: owner, Client: roleModifier{p}, Confirm: true}
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { _, err := options.Run(); return err })
	if err != nil {
		return fmt.Errorf("reconciling %s: %w", what, err)
	}
	return nil
}

func (p policyWriter) binding(binding reconciliation.RoleBinding, what string) error {
	options := reconciliation.ReconcileRoleBindingOptions{RoleBinding: binding, Client: bindingModifier{p}, Confirm: true}
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { _, err := options.Run(); return err })
	if err != nil {
		return fmt.Errorf("reconciling %s: %w", what, err)
	}
	return nil
}

// ensureNamespace creates namespace if it is missing: the policy for kube-system may be written before it exists.
func (p policyWriter) ensureNamespace(namespace string) error {
	if namespace == "" {
		return nil
	}
	err := p.client.Get(p.ctx, client.ObjectKey{Name: namespace}, &corev1.Namespace{})
	if apierrors.IsNotFound(err) {
		err = p.client.Create(p.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
	}
	return err
}

func (p policyWriter) create(object client.Object) error {
	if err := p.ensureNamespace(object.GetNamespace()); err != nil {
		return err
	}
	return p.client.Create(p.ctx, object)
}

// roleModifier implements reconciliation.RuleOwnerModifier for both kinds of role.
type roleModifier struct{ policyWriter }

// Get implements reconciliation.RuleOwnerModifier.
func (m roleModifier) Get(namespace, name string) (reconciliation.RuleOwner, error) {
	key := client.ObjectKey{Namespace: namespace, Name: name}
	if namespace == "" {
		role := &rbacv1.ClusterRole{}
		if err := m.client.Get(m.ctx, key, role); err != nil {
			return nil, err
		}
		return reconciliation.ClusterRoleRuleOwner{ClusterRole: role.DeepCopy()}, nil
	}
	role := &rbacv1.Role{}
	if err := m.client.Get(m.ctx, key, role); err != nil {
		return nil, err
	}
	return reconciliation.RoleRuleOwner{Role: role.DeepCopy()}, nil
}

// Create implements reconciliation.RuleOwnerModifier.
func (m roleModifier) Create(owner reconciliation.RuleOwner) (reconciliation.RuleOwner, error) {
	object, _ := owner.GetObject().(client.Object)
	return owner, m.create(object)
}

// Update implements reconciliation.RuleOwnerModifier.
func (m roleModifier) Update(owner reconciliation.RuleOwner) (reconciliation.RuleOwner, error) {
	object, _ := owner.GetObject().(client.Object)
	return owner, m.client.Update(m.ctx, object)
}

// bindingModifier implements reconciliation.RoleBindingModifier for both kinds of binding.
type bindingModifier struct{ policyWriter }

// Get implements reconciliation.RoleBindingModifier.
func (m bindingModifier) Get(namespace, name string) (reconciliation.RoleBinding, error) {
	key := client.ObjectKey{Namespace: namespace, Name: name}
	if namespace == "" {
		binding := &rbacv1.ClusterRoleBinding{}
		if err := m.client.Get(m.ctx, key, binding); err != nil {
			return nil, err
		}
		return reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: binding.DeepCopy()}, nil
	}
	binding := &rbacv1.RoleBinding{}
	if err := m.client.Get(m.ctx, key, binding); err != nil {
		return nil, err
	}
	return reconciliation.RoleBindingAdapter{RoleBinding: binding.DeepCopy()}, nil
}

// Create implements reconciliation.RoleBindingModifier.
func (m bindingModifier) Create(binding reconciliation.RoleBinding) (reconciliation.RoleBinding, error) {
	object, _ := binding.GetObject().(client.Object)
	return binding, m.create(object)
}

// Update implements reconciliation.RoleBindingModifier.
func (m bindingModifier) Update(binding reconciliation.RoleBinding) (reconciliation.RoleBinding, error) {
	object, _ := binding.GetObject().(client.Object)
	return binding, m.client.Update(m.ctx, object)
}

// Delete implements reconciliation.RoleBindingModifier: a binding whose roleRef changed is made anew.
func (m bindingModifier) Delete(namespace, name string, uid types.UID) error {
	meta := metav1.ObjectMeta{Namespace: namespace, Name: name}
	var object client.Object = &rbacv1.RoleBinding{ObjectMeta: meta}
	if namespace == "" {
		object = &rbacv1.ClusterRoleBinding{ObjectMeta: meta}
	}
	return m.client.Delete(m.ctx, object, client.Preconditions{UID: &uid})
}

// aggregationPasses bounds how long AggregateRoles follows roles that aggregate aggregated roles.
const aggregationPasses = 8

// AggregateRoles fills the rules of every ClusterRole that has an aggregationRule, also of those that gather others
// with one (admin gathers edit). It belongs after each change of a ClusterRole.
func AggregateRoles(ctx context.Context, c client.Client) error {
	for range aggregationPasses {
		changed, err := aggregateOnce(ctx, c)
		if err != nil || !changed {
			return err
		}
	}
	return nil
}

// aggregateOnce brings each aggregated role up to date with the roles as they are and reports whether one changed.
func aggregateOnce(ctx context.Context, c client.Client) (bool, error) {
	var list rbacv1.ClusterRoleList
	if err := c.List(ctx, &list); err != nil {
		return false, fmt.Errorf("listing clusterroles: %w", err)
	}
	updatedAny := false
	for i := range list.Items {
		rules, changed, err := PlanAggregation(&list.Items[i], list.Items)
		if err != nil {
			return false, err
		}
		if !changed {
			continue
		}
		updatedAny = true
		updated := list.Items[i].DeepCopy()
		updated.Rules = rules
		if err := c.Update(ctx, updated); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return false, fmt.Errorf("aggregating clusterrole %s: %w", updated.Name, err)
		}
	}
	return updatedAny, nil
}

// PlanAggregation returns the rules that role should have by its aggregationRule among all cluster roles, and whether
// those differ from the rules it has. Rules come in the order of the roles' names, each once. A role without an
// aggregationRule never changes.
func PlanAggregation(role *rbacv1.ClusterRole, all []rbacv1.ClusterRole) (rules []rbacv1.PolicyRule, changed bool, err error) {
	if role.AggregationRule == nil {
		return nil, false, nil
	}
	sources := slices.Clone(all)
	slices.SortFunc(sources, func(a, b rbacv1.ClusterRole) int { return strings.Compare(a.Name, b.Name) })
	for i := range role.AggregationRule.ClusterRoleSelectors {
		selector, err := metav1.LabelSelectorAsSelector(&role.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, false, fmt.Errorf("reading a selector of clusterrole %s: %w", role.Name, err)
		}
		for j := range sources {
			if sources[j].Name == role.Name || !selector.Matches(labels.Set(sources[j].Labels)) {
				continue
			}
			for _, rule := range sources[j].Rules {
				if !slices.ContainsFunc(rules, func(have rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(have, rule) }) {
					rules = append(rules, rule)
				}
			}
		}
	}
	return rules, !equality.Semantic.DeepEqual(rules, role.Rules), nil
}
