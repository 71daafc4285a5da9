package auth

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	rbac "k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
)

// role is a Role's or ClusterRole's rules compiled for lookup: rules that name their groups and resources are found
// by one map access, whatever the number of rules; rules with a wildcard there are walked.
type role struct {
	rules []rbacv1.PolicyRule // as written
	exact map[resourceKey][]*rbacv1.PolicyRule
	wild  []*rbacv1.PolicyRule // a "*" or "*/subresource" among groups or resources
	urls  []*rbacv1.PolicyRule
}

// resourceKey is a resource as a rule names it, subresource apart.
type resourceKey struct{ group, resource, subresource string }

// accessRequest is what a decision needs of the attributes, read once through the interface.
type accessRequest struct {
	attrs           authorizer.Attributes
	key             resourceKey
	verb, namespace string
	name, path      string
	isResource      bool
}

func newRequest(attrs authorizer.Attributes) accessRequest {
	if record, ok := attrs.(*authorizer.AttributesRecord); ok { // its methods copy the whole struct at each call
		request := accessRequest{attrs: attrs, verb: record.Verb, namespace: record.Namespace, isResource: record.ResourceRequest, path: record.Path}
		if request.isResource {
			request.key = resourceKey{record.APIGroup, record.Resource, record.Subresource}
			request.name = record.Name
		}
		return request
	}
	request := accessRequest{attrs: attrs, verb: attrs.GetVerb(), namespace: attrs.GetNamespace(), isResource: attrs.IsResourceRequest()}
	if request.isResource {
		request.key = resourceKey{attrs.GetAPIGroup(), attrs.GetResource(), attrs.GetSubresource()}
		request.name = attrs.GetName()
	} else {
		request.path = attrs.GetPath()
	}
	return request
}

// userOf is attrs.GetUser() without a copy of the usual implementation.
func userOf(attrs authorizer.Attributes) user.Info {
	if record, ok := attrs.(*authorizer.AttributesRecord); ok {
		return record.User
	}
	return attrs.GetUser()
}

// compileRole indexes rules; it keeps pointers into them.
func compileRole(rules []rbacv1.PolicyRule) *role {
	out := &role{rules: rules, exact: map[resourceKey][]*rbacv1.PolicyRule{}}
	for i := range rules {
		rule := &rules[i]
		if len(rule.NonResourceURLs) > 0 {
			out.urls = append(out.urls, rule)
		}
		if isWild(rule) {
			out.wild = append(out.wild, rule)
			continue
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				name, subresource, found := strings.Cut(resource, "/")
				if found && subresource == "" {
					continue // "pods/" can only match a resource with a slash in it, and those are walked
				}
				key := resourceKey{group, name, subresource}
				if list := out.exact[key]; !slices.Contains(list, rule) {
					out.exact[key] = append(list, rule)
				}
			}
		}
	}
	return out
}

func isWild(rule *rbacv1.PolicyRule) bool {
	return slices.Contains(rule.APIGroups, rbacv1.APIGroupAll) || slices.ContainsFunc(rule.Resources, func(resource string) bool {
		return resource == rbacv1.ResourceAll || strings.HasPrefix(resource, "*/")
	})
}

// allows reports whether one of the role's rules allows request. A nil role allows nothing.
func (r *role) allows(request *accessRequest) bool {
	if r == nil {
		return false
	}
	if !request.isResource {
		for _, rule := range r.urls {
			if verbMatches(rule, request.verb) && urlMatches(rule, request.path) {
				return true
			}
		}
		return false
	}
	if strings.IndexByte(request.key.resource, '/') >= 0 { // only a review can ask this; upstream's walk is the reference
		return rbac.RulesAllow(request.attrs, r.rules...)
	}
	for _, rule := range r.exact[request.key] {
		if verbMatches(rule, request.verb) && nameMatches(rule, request.name) {
			return true
		}
	}
	for _, rule := range r.wild {
		if verbMatches(rule, request.verb) && groupMatches(rule, request.key.group) &&
			resourceMatches(rule, &request.key) && nameMatches(rule, request.name) {
			return true
		}
	}
	return false
}

func verbMatches(rule *rbacv1.PolicyRule, verb string) bool {
	for _, allowed := range rule.Verbs {
		if allowed == rbacv1.VerbAll || allowed == verb {
			return true
		}
	}
	return false
}

func groupMatches(rule *rbacv1.PolicyRule, group string) bool {
	for _, allowed := range rule.APIGroups {
		if allowed == rbacv1.APIGroupAll || allowed == group {
			return true
		}
	}
	return false
}

// nameMatches: a rule without names is about all of them.
func nameMatches(rule *rbacv1.PolicyRule, name string) bool {
	return len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, name)
}

// resourceMatches compares without joining resource and subresource, so that nothing is allocated.
func resourceMatches(rule *rbacv1.PolicyRule, key *resourceKey) bool {
	for _, allowed := range rule.Resources {
		if allowed == rbacv1.ResourceAll {
			return true
		}
		if key.subresource == "" {
			if allowed == key.resource {
				return true
			}
			continue
		}
		name, subresource, found := strings.Cut(allowed, "/")
		if found && subresource == key.subresource && (name == key.resource || name == "*") {
			return true
		}
	}
	return false
}

// urlMatches: "*" is everything, a trailing "*" a prefix.
func urlMatches(rule *rbacv1.PolicyRule, path string) bool {
	for _, allowed := range rule.NonResourceURLs {
		if allowed == rbacv1.NonResourceAll || allowed == path {
			return true
		}
		if strings.HasSuffix(allowed, "*") && strings.HasPrefix(path, strings.TrimRight(allowed, "*")) {
			return true
		}
	}
	return false
}
