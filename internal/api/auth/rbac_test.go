package auth

import (
	"fmt"
	"math/rand/v2"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"
	upstream "k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// policy is a random set of roles and bindings over a small vocabulary, so that requests often match.
type policy struct {
	roles           []*rbacv1.Role
	clusterRoles    []*rbacv1.ClusterRole
	bindings        []*rbacv1.RoleBinding
	clusterBindings []*rbacv1.ClusterRoleBinding
}

var (
	verbs      = []string{"get", "list", "create", "*", ""}
	apiGroups  = []string{"", "apps", "*"}
	resources  = []string{"pods", "pods/log", "*/log", "*", "secrets", "pods/", "/log", "a/b/c", "*/"}
	names      = []string{"", "x", "y"}
	namespaces = []string{"", "n1", "n2"}
	paths      = []string{"/healthz", "/healthz/*", "*", "/api", "/api*", "/healthz/a"}
	people     = []string{"ann", "bob", "system:serviceaccount:n1:sa", "system:serviceaccount:n2:sa"}
	teams      = []string{"red", "blue", "system:authenticated"}
)

func pick(r *rand.Rand, from []string) string { return from[r.IntN(len(from))] }

func some(r *rand.Rand, from []string) []string {
	var out []string
	for range r.IntN(3) {
		out = append(out, pick(r, from))
	}
	return out
}

func randomRules(r *rand.Rand) []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	for range r.IntN(4) {
		rules = append(rules, rbacv1.PolicyRule{Verbs: some(r, verbs), APIGroups: some(r, apiGroups), Resources: some(r, resources),
			ResourceNames: some(r, names), NonResourceURLs: some(r, paths)})
	}
	return rules
}

func randomSubjects(r *rand.Rand) []rbacv1.Subject {
	var out []rbacv1.Subject
	for range r.IntN(4) {
		switch r.IntN(4) {
		case 0:
			out = append(out, rbacv1.Subject{Kind: "User", Name: pick(r, people)})
		case 1:
			out = append(out, rbacv1.Subject{Kind: "Group", Name: pick(r, teams)})
		case 2:
			out = append(out, rbacv1.Subject{Kind: "ServiceAccount", Name: "sa", Namespace: pick(r, namespaces)})
		default:
			out = append(out, rbacv1.Subject{Kind: "Robot", Name: "ann"})
		}
	}
	return out
}

func randomPolicy(r *rand.Rand) *policy {
	p := &policy{}
	for i := range 3 {
		p.clusterRoles = append(p.clusterRoles, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("r", i)}, Rules: randomRules(r)})
		p.roles = append(p.roles, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: namespaces[1+r.IntN(2)], Name: fmt.Sprint("r", i)}, Rules: randomRules(r)})
	}
	ref := func(kinds ...string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: pick(r, kinds), Name: fmt.Sprint("r", r.IntN(4))}
	}
	for i := range 4 {
		p.clusterBindings = append(p.clusterBindings, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("b", i)},
			RoleRef: ref("ClusterRole"), Subjects: randomSubjects(r)})
		p.bindings = append(p.bindings, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespaces[1+r.IntN(2)], Name: fmt.Sprint("b", i)},
			RoleRef: ref("ClusterRole", "Role", "Other"), Subjects: randomSubjects(r)})
	}
	return p
}

// load feeds p into ours, after noise that must leave no trace.
func (p *policy) load(r *rand.Rand) *RBAC {
	ours := &RBAC{}
	for range 2 {
		noise := randomPolicy(r)
		noise.set(ours)
		for _, b := range noise.bindings {
			ours.DeleteBinding(b.Namespace, b.Name)
		}
		for _, role := range noise.roles {
			ours.DeleteRole(role.Namespace, role.Name)
		}
	}
	p.set(ours)
	return ours
}

func (p *policy) set(ours *RBAC) {
	for _, role := range p.clusterRoles {
		ours.SetRole("", role.Name, role.Rules)
	}
	for _, role := range p.roles {
		ours.SetRole(role.Namespace, role.Name, role.Rules)
	}
	for _, b := range p.clusterBindings {
		ours.SetBinding("", b.Name, b.RoleRef, b.Subjects)
	}
	for _, b := range p.bindings {
		ours.SetBinding(b.Namespace, b.Name, b.RoleRef, b.Subjects)
	}
}

func randomAttributes(r *rand.Rand) *authorizer.AttributesRecord {
	attrs := &authorizer.AttributesRecord{User: &user.DefaultInfo{Name: pick(r, people), Groups: some(r, teams)}, Verb: pick(r, verbs)}
	if r.IntN(4) == 0 {
		attrs.Path = pick(r, paths)
		return attrs
	}
	attrs.ResourceRequest = true
	attrs.APIGroup, attrs.Namespace, attrs.Name = pick(r, apiGroups), pick(r, namespaces), pick(r, names)
	attrs.Resource, attrs.Subresource = pick(r, []string{"pods", "secrets", "*", "a/b", "a", "", "pods/"}), pick(r, []string{"", "log", "c", "b/c", "*"})
	return attrs
}

// FuzzRBACAgainstUpstream holds the compiled index against upstream's authorizer.
func FuzzRBACAgainstUpstream(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := randomPolicy(r)
		ours := p.load(r)
		_, static := validation.NewTestRuleResolver(p.roles, p.bindings, p.clusterRoles, p.clusterBindings)
		theirs := upstream.New(static, static, static, static)
		for range 200 {
			attrs := randomAttributes(r)
			want, _, _ := theirs.Authorize(t.Context(), attrs)
			got, reason, err := ours.Authorize(t.Context(), attrs)
			if got != want || err != nil {
				t.Fatalf("seed %d: Authorize(%+v) = %v, %q, %v; upstream says %v", seed, attrs, got, reason, err, want)
			}
			mine, _ := ours.PolicyRulesFor(attrs.User, attrs.Namespace)
			if wantRules, _, _, _ := theirs.RulesFor(t.Context(), attrs.User, attrs.Namespace); countResourceRules(mine) != len(wantRules) {
				t.Fatalf("seed %d: %d resource rules for %v, upstream has %d", seed, countResourceRules(mine), attrs.User, len(wantRules))
			}
		}
	})
}

func countResourceRules(rules []rbacv1.PolicyRule) int {
	count := 0
	for i := range rules {
		if len(rules[i].Resources) > 0 {
			count++
		}
	}
	return count
}

// bootstrapped returns an authorizer with upstream's default policy and ann as an editor of n1.
func bootstrapped() *Authorizer {
	a := NewAuthorizer()
	roles := append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...)
	for range 3 { // admin gathers edit, which gathers view
		for i := range roles {
			if rules, changed, _ := PlanAggregation(&roles[i], roles); changed {
				roles[i].Rules = rules
			}
		}
	}
	for i := range roles {
		a.setRole(&roles[i])
	}
	for _, b := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		a.setBinding(&b)
	}
	a.rbac.SetBinding("n1", "ann", rbacv1.RoleRef{Kind: "ClusterRole", Name: "edit"}, []rbacv1.Subject{{Kind: "User", Name: "ann"}})
	return a
}

func TestBootstrapDecisions(t *testing.T) {
	a := bootstrapped()
	anonymous := &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}
	ann := &user.DefaultInfo{Name: "ann", Groups: []string{"system:authenticated"}}
	for name, tc := range map[string]struct {
		attrs authorizer.AttributesRecord
		want  authorizer.Decision
	}{
		"anyone reads the version":     {authorizer.AttributesRecord{User: anonymous, Verb: "get", Path: "/version"}, authorizer.DecisionAllow},
		"anonymous reads no discovery": {authorizer.AttributesRecord{User: anonymous, Verb: "get", Path: "/apis"}, authorizer.DecisionNoOpinion},
		"users read discovery":         {authorizer.AttributesRecord{User: ann, Verb: "get", Path: "/apis/apps/v1"}, authorizer.DecisionAllow},
		"an editor writes in the namespace": {authorizer.AttributesRecord{User: ann, Verb: "create", Namespace: "n1", Resource: "pods",
			Subresource: "exec", ResourceRequest: true}, authorizer.DecisionAllow},
		"and nowhere else": {authorizer.AttributesRecord{User: ann, Verb: "create", Namespace: "n2", Resource: "pods", ResourceRequest: true}, authorizer.DecisionNoOpinion},
		"masters do all": {authorizer.AttributesRecord{User: &user.DefaultInfo{Groups: []string{"system:masters"}}, Verb: "delete",
			Resource: "nodes", ResourceRequest: true}, authorizer.DecisionAllow},
	} {
		t.Run(name, func(t *testing.T) {
			if got, reason, err := a.Authorize(t.Context(), &tc.attrs); got != tc.want || err != nil {
				t.Errorf("Authorize = %v, %q, %v; want %v", got, reason, err, tc.want)
			}
		})
	}
}

func TestReasonNamesTheBinding(t *testing.T) {
	attrs := &authorizer.AttributesRecord{User: &user.DefaultInfo{Name: "ann"}, Verb: "get", Namespace: "n1", Resource: "pods", ResourceRequest: true}
	_, reason, _ := bootstrapped().Authorize(t.Context(), attrs)
	if want := `RBAC: allowed by RoleBinding "ann/n1" of ClusterRole "edit" to User "ann"`; reason != want {
		t.Errorf("reason %q, want %q", reason, want)
	}
}

func BenchmarkAuthorize(b *testing.B) {
	a := bootstrapped()
	ann := &user.DefaultInfo{Name: "ann", Groups: []string{"devs", "system:authenticated"}}
	for name, attrs := range map[string]*authorizer.AttributesRecord{
		"allowed": {User: ann, Verb: "get", Namespace: "n1", Resource: "configmaps", Name: "c", ResourceRequest: true},
		"refused": {User: ann, Verb: "get", Namespace: "n2", Resource: "configmaps", Name: "c", ResourceRequest: true},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _, _ = a.Authorize(b.Context(), attrs)
			}
		})
	}
}
