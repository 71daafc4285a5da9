package auth

import (
	"context"
	"fmt"
	"strings"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// RBAC holds all roles and bindings, compiled, and decides by them. Its zero value is empty and ready. Set and
// Delete keep it current; everything is safe for concurrent use.
type RBAC struct {
	mu       sync.RWMutex // guards the fields below
	roles    map[roleKey]*role
	bindings map[roleKey]*binding
	users    map[string]*grants // by user name; service accounts by their full user name
	groups   map[string]*grants
}

// roleKey names a role or binding; namespace is "" for the cluster-wide kinds.
type roleKey struct{ namespace, name string }

// grants are the bindings of one subject.
type grants struct {
	cluster    []grant
	namespaced map[string][]grant
}

// grant is one subject's share of a binding.
type grant struct {
	binding *binding
	reason  string // why this allows, as upstream words it; made once so that a decision allocates nothing
}

// binding is a compiled RoleBinding or ClusterRoleBinding.
type binding struct {
	key      roleKey
	ref      rbacv1.RoleRef
	refKey   roleKey // what ref means in this binding's namespace
	valid    bool    // ref.Kind is a kind of role
	subjects []rbacv1.Subject
}

// SetRole takes in a Role, or a ClusterRole's rules with namespace "".
func (r *RBAC) SetRole(namespace, name string, rules []rbacv1.PolicyRule) {
	compiled := compileRole(rules)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.roles == nil {
		r.roles = map[roleKey]*role{}
	}
	r.roles[roleKey{namespace, name}] = compiled
}

// DeleteRole forgets a Role, or a ClusterRole with namespace "".
func (r *RBAC) DeleteRole(namespace, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.roles, roleKey{namespace, name})
}

// SetBinding takes in a RoleBinding, or a ClusterRoleBinding with namespace "".
func (r *RBAC) SetBinding(namespace, name string, ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
	b := &binding{key: roleKey{namespace, name}, ref: ref, subjects: subjects}
	switch ref.Kind {
	case "ClusterRole":
		b.refKey, b.valid = roleKey{"", ref.Name}, true
	case "Role":
		b.refKey, b.valid = roleKey{namespace, ref.Name}, namespace != ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bindings == nil {
		r.bindings, r.users, r.groups = map[roleKey]*binding{}, map[string]*grants{}, map[string]*grants{}
	}
	r.dropLocked(b.key)
	r.bindings[b.key] = b
	for i := range subjects {
		table, name := r.subjectLocked(&subjects[i], namespace)
		if table == nil {
			continue
		}
		g := table[name]
		if g == nil {
			g = &grants{}
			table[name] = g
		}
		g.add(grant{binding: b, reason: "RBAC: allowed by " + b.describe(&subjects[i])})
	}
}

// DeleteBinding forgets a RoleBinding, or a ClusterRoleBinding with namespace "".
func (r *RBAC) DeleteBinding(namespace, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropLocked(roleKey{namespace, name})
}

// dropLocked takes a binding out of every subject's list. r.mu is held.
func (r *RBAC) dropLocked(key roleKey) {
	old := r.bindings[key]
	if old == nil {
		return
	}
	delete(r.bindings, key)
	for i := range old.subjects {
		table, name := r.subjectLocked(&old.subjects[i], key.namespace)
		if table == nil || table[name] == nil {
			continue
		}
		if table[name].remove(old) {
			delete(table, name)
		}
	}
}

// subjectLocked says in which table and under which name a subject is kept; nil if it can match nobody. r.mu is held.
func (r *RBAC) subjectLocked(subject *rbacv1.Subject, namespace string) (map[string]*grants, string) {
	switch subject.Kind {
	case rbacv1.UserKind:
		return r.users, subject.Name
	case rbacv1.GroupKind:
		return r.groups, subject.Name
	case rbacv1.ServiceAccountKind:
		if subject.Namespace != "" {
			namespace = subject.Namespace
		}
		if namespace != "" {
			return r.users, serviceaccount.MakeUsername(namespace, subject.Name)
		}
	}
	return nil, ""
}

func (g *grants) add(added grant) {
	namespace := added.binding.key.namespace
	if namespace == "" {
		g.cluster = appendNew(g.cluster, added)
		return
	}
	if g.namespaced == nil {
		g.namespaced = map[string][]grant{}
	}
	g.namespaced[namespace] = appendNew(g.namespaced[namespace], added)
}

// appendNew appends added unless its binding is there: a subject may be listed twice.
func appendNew(list []grant, added grant) []grant {
	for i := range list {
		if list[i].binding == added.binding {
			return list
		}
	}
	return append(list, added)
}

// remove takes b out and reports whether nothing is left.
func (g *grants) remove(b *binding) bool {
	if namespace := b.key.namespace; namespace == "" {
		g.cluster = without(g.cluster, b)
	} else if left := without(g.namespaced[namespace], b); len(left) == 0 {
		delete(g.namespaced, namespace)
	} else {
		g.namespaced[namespace] = left
	}
	return len(g.cluster) == 0 && len(g.namespaced) == 0
}

func without(list []grant, b *binding) []grant {
	for i := range list {
		if list[i].binding == b {
			return append(list[:i:i], list[i+1:]...)
		}
	}
	return list
}

// describe words a binding as upstream's reasons do.
func (b *binding) describe(subject *rbacv1.Subject) string {
	who := fmt.Sprintf("%s %q", subject.Kind, subject.Name)
	if subject.Kind == rbacv1.ServiceAccountKind {
		namespace := subject.Namespace
		if namespace == "" {
			namespace = b.key.namespace
		}
		who = fmt.Sprintf("%s %q", subject.Kind, subject.Name+"/"+namespace)
	}
	if b.key.namespace == "" {
		return fmt.Sprintf("ClusterRoleBinding %q of %s %q to %s", b.key.name, b.ref.Kind, b.ref.Name, who)
	}
	return fmt.Sprintf("RoleBinding %q of %s %q to %s", b.key.name+"/"+b.key.namespace, b.ref.Kind, b.ref.Name, who)
}

// Authorize implements authorizer.Authorizer. It never denies: what no rule allows is for others to decide.
func (r *RBAC) Authorize(_ context.Context, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	request := newRequest(attrs)
	info := userOf(attrs)
	r.mu.RLock()
	defer r.mu.RUnlock()
	if reason, ok := r.allowsLocked(r.users[info.GetName()], &request); ok {
		return authorizer.DecisionAllow, reason, nil
	}
	for _, group := range info.GetGroups() {
		if reason, ok := r.allowsLocked(r.groups[group], &request); ok {
			return authorizer.DecisionAllow, reason, nil
		}
	}
	var errs []error
	r.visitLocked(info, request.namespace, func(_ *grant, _ *role, err error) bool {
		if err != nil {
			errs = append(errs, err)
		}
		return true
	})
	if len(errs) > 0 {
		return authorizer.DecisionNoOpinion, fmt.Sprintf("RBAC: %v", utilerrors.NewAggregate(errs)), nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

// allowsLocked looks through one subject's grants. r.mu is held.
func (r *RBAC) allowsLocked(g *grants, request *accessRequest) (string, bool) {
	if g == nil {
		return "", false
	}
	for i := range g.cluster {
		if r.roles[g.cluster[i].binding.refKey].allows(request) && g.cluster[i].binding.valid {
			return g.cluster[i].reason, true
		}
	}
	if request.namespace == "" {
		return "", false
	}
	list := g.namespaced[request.namespace]
	for i := range list {
		if r.roles[list[i].binding.refKey].allows(request) && list[i].binding.valid {
			return list[i].reason, true
		}
	}
	return "", false
}

// visitLocked calls visit for each binding of info that counts in namespace, once, with its role or the error of
// finding it, until visit returns false. r.mu is held.
func (r *RBAC) visitLocked(info user.Info, namespace string, visit func(*grant, *role, error) bool) {
	seen := map[*binding]bool{}
	each := func(list []grant) bool {
		for i := range list {
			b := list[i].binding
			if seen[b] {
				continue
			}
			seen[b] = true
			found, err := r.roleLocked(b)
			if !visit(&list[i], found, err) {
				return false
			}
		}
		return true
	}
	tables := []*grants{r.users[info.GetName()]}
	for _, group := range info.GetGroups() {
		tables = append(tables, r.groups[group])
	}
	for _, g := range tables {
		if g == nil {
			continue
		}
		if !each(g.cluster) || (namespace != "" && !each(g.namespaced[namespace])) {
			return
		}
	}
}

// roleLocked returns the role that b refers to, or the error upstream gives. r.mu is held.
func (r *RBAC) roleLocked(b *binding) (*role, error) {
	if !b.valid {
		return nil, fmt.Errorf("unsupported role reference kind: %q", b.ref.Kind)
	}
	if found := r.roles[b.refKey]; found != nil {
		return found, nil
	}
	return nil, apierrors.NewNotFound(rbacv1.Resource(strings.ToLower(b.ref.Kind)), b.ref.Name)
}

// PolicyRulesFor returns all rules that hold for info in namespace ("" for cluster-wide ones only). The error joins
// what could not be resolved; the rules are good nevertheless. They are shared: read-only.
func (r *RBAC) PolicyRulesFor(info user.Info, namespace string) ([]rbacv1.PolicyRule, error) {
	var rules []rbacv1.PolicyRule
	var errs []error
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.visitLocked(info, namespace, func(_ *grant, found *role, err error) bool {
		if err != nil {
			errs = append(errs, err)
			return true
		}
		rules = append(rules, found.rules...)
		return true
	})
	return rules, utilerrors.NewAggregate(errs)
}

// RulesFor implements authorizer.RuleResolver, for SelfSubjectRulesReview.
func (r *RBAC) RulesFor(_ context.Context, info user.Info, namespace string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	rules, err := r.PolicyRulesFor(info, namespace)
	var resource []authorizer.ResourceRuleInfo
	var nonResource []authorizer.NonResourceRuleInfo
	for i := range rules {
		if rule := &rules[i]; len(rule.Resources) > 0 {
			resource = append(resource, &authorizer.DefaultResourceRuleInfo{
				Verbs: rule.Verbs, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames})
		}
		if rule := &rules[i]; len(rule.NonResourceURLs) > 0 {
			nonResource = append(nonResource, &authorizer.DefaultNonResourceRuleInfo{Verbs: rule.Verbs, NonResourceURLs: rule.NonResourceURLs})
		}
	}
	return resource, nonResource, false, err
}
