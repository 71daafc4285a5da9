package fairness

import (
	"cmp"
	"slices"
	"strings"
	"sync"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
)

// Request is what decides about a request's place.
type Request struct {
	User                                    user.Info
	Verb, Path                              string
	IsResource                              bool
	Group, Resource, Subresource, Namespace string
	Width                                   int // seats it takes; 0 is 1
}

// schema is a FlowSchema compiled.
type schema struct {
	name     string
	level    *level
	by       flowcontrolv1.FlowDistinguisherMethodType // "" is one flow for all
	rules    []flowcontrolv1.PolicyRulesWithSubjects
	uid      []string // of the FlowSchema, as a header's value
	levelUID []string // of its level, likewise: a level's own changes under the lock
}

// flow names the flow of a request within the schema.
func (s *schema) flow(r *Request) string {
	switch s.by {
	case flowcontrolv1.FlowDistinguisherMethodByUserType:
		return s.name + "\x00" + r.User.GetName()
	case flowcontrolv1.FlowDistinguisherMethodByNamespaceType:
		return s.name + "\x00" + r.Namespace
	}
	return s.name
}

// candidate is a schema with those of its rules that are about a certain user.
type candidate struct {
	schema *schema
	rules  []*flowcontrolv1.PolicyRulesWithSubjects
}

// maxUsers bounds the users whose candidates are remembered.
const maxUsers = 4096

// schemas is all FlowSchemas, first those that are asked first.
type schemas struct {
	ordered []*schema
	last    *schema // for what no schema matches

	mu    sync.RWMutex // guards users
	users map[*user.DefaultInfo][]candidate
}

// compileSchemas orders the FlowSchemas whose level exists; a schema without one is passed over, as upstream does.
func compileSchemas(objects []*flowcontrolv1.FlowSchema, levels map[string]*level) *schemas {
	out := &schemas{users: map[*user.DefaultInfo][]candidate{}}
	objects = slices.Clone(objects)
	slices.SortFunc(objects, func(a, b *flowcontrolv1.FlowSchema) int {
		return cmp.Or(cmp.Compare(a.Spec.MatchingPrecedence, b.Spec.MatchingPrecedence), cmp.Compare(a.Name, b.Name))
	})
	for _, object := range objects {
		to := levels[object.Spec.PriorityLevelConfiguration.Name]
		if to == nil {
			continue
		}
		s := &schema{name: object.Name, level: to, rules: object.Spec.Rules, uid: headerValue(string(object.UID)), levelUID: to.uid}
		if object.Spec.DistinguisherMethod != nil {
			s.by = object.Spec.DistinguisherMethod.Type
		}
		out.ordered = append(out.ordered, s)
		if object.Name == flowcontrolv1.FlowSchemaNameCatchAll {
			out.last = s
		}
	}
	return out
}

func headerValue(text string) []string {
	if text == "" {
		return nil
	}
	return []string{text}
}

// find returns the schema of a request.
func (s *schemas) find(r *Request) *schema {
	for _, c := range s.candidates(r.User) {
		for _, rule := range c.rules {
			if ruleMatches(rule, r) {
				return c.schema
			}
		}
	}
	return s.last
}

// candidates lists the schemas with rules about a user. Authentication gives out one object for all requests with the
// same credentials, so the answer is remembered by that.
func (s *schemas) candidates(who user.Info) []candidate {
	info, ok := who.(*user.DefaultInfo)
	if !ok {
		return s.about(who)
	}
	s.mu.RLock()
	known, found := s.users[info]
	s.mu.RUnlock()
	if found {
		return known
	}
	known = s.about(who)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.users) >= maxUsers {
		clear(s.users)
	}
	s.users[info] = known
	return known
}

func (s *schemas) about(who user.Info) []candidate {
	var out []candidate
	for _, one := range s.ordered {
		c := candidate{schema: one}
		for i := range one.rules {
			if slices.ContainsFunc(one.rules[i].Subjects, func(subject flowcontrolv1.Subject) bool { return subjectMatches(&subject, who) }) {
				c.rules = append(c.rules, &one.rules[i])
			}
		}
		if len(c.rules) > 0 {
			out = append(out, c)
		}
	}
	return out
}

func subjectMatches(subject *flowcontrolv1.Subject, who user.Info) bool {
	switch {
	case subject.Kind == flowcontrolv1.SubjectKindUser && subject.User != nil:
		return subject.User.Name == flowcontrolv1.NameAll || subject.User.Name == who.GetName()
	case subject.Kind == flowcontrolv1.SubjectKindGroup && subject.Group != nil:
		return subject.Group.Name == flowcontrolv1.NameAll || slices.Contains(who.GetGroups(), subject.Group.Name)
	case subject.Kind == flowcontrolv1.SubjectKindServiceAccount && subject.ServiceAccount != nil:
		account := subject.ServiceAccount
		if account.Name == flowcontrolv1.NameAll {
			return strings.HasPrefix(who.GetName(), serviceaccount.ServiceAccountUsernamePrefix+account.Namespace+":")
		}
		return serviceaccount.MatchesUsername(account.Namespace, account.Name, who.GetName())
	}
	return false
}

// ruleMatches looks at everything but the subjects.
func ruleMatches(rule *flowcontrolv1.PolicyRulesWithSubjects, r *Request) bool {
	if !r.IsResource {
		for i := range rule.NonResourceRules {
			one := &rule.NonResourceRules[i]
			if contains(one.Verbs, r.Verb) && pathMatches(one.NonResourceURLs, r.Path) {
				return true
			}
		}
		return false
	}
	for i := range rule.ResourceRules {
		one := &rule.ResourceRules[i]
		if !contains(one.Verbs, r.Verb) || !contains(one.APIGroups, r.Group) || !resourceMatches(one.Resources, r) {
			continue
		}
		if r.Namespace == "" && one.ClusterScope || r.Namespace != "" && contains(one.Namespaces, r.Namespace) {
			return true
		}
	}
	return false
}

// contains reports whether a rule's list has the value; "*" alone has all.
func contains(list []string, value string) bool {
	return len(list) == 1 && list[0] == "*" || slices.Contains(list, value)
}

func resourceMatches(list []string, r *Request) bool {
	if r.Subresource == "" || len(list) == 1 && list[0] == "*" {
		return contains(list, r.Resource)
	}
	for _, one := range list {
		if len(one) == len(r.Resource)+1+len(r.Subresource) && strings.HasPrefix(one, r.Resource) && one[len(r.Resource)] == '/' &&
			strings.HasSuffix(one, r.Subresource) {
			return true
		}
	}
	return false
}

func pathMatches(list []string, path string) bool {
	for _, one := range list {
		if one == "*" || one == path {
			return true
		}
		prefix := strings.TrimSuffix(strings.TrimSuffix(one, "*"), "/")
		if len(path) > len(prefix) && path[len(prefix)] == '/' && strings.HasPrefix(path, prefix) {
			return true
		}
	}
	return false
}
