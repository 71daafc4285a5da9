package api

import (
	"encoding/json"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// grant lets user do verbs on resources of group cluster-wide, under names if there are any.
func (c *cluster) grant(user, group string, verbs, resources []string, names ...string) {
	name := user + "-" + strings.ReplaceAll(strings.Join(append(verbs, resources...), "-"), "/", "-")
	c.opts.Authorizer.RBAC().SetRole("", name, []rbacv1.PolicyRule{{Verbs: verbs, APIGroups: []string{group}, Resources: resources, ResourceNames: names}})
	c.opts.Authorizer.RBAC().SetBinding("", name, rbacv1.RoleRef{Kind: "ClusterRole", Name: name}, []rbacv1.Subject{{Kind: "User", Name: user}})
}

// whoami asks the API who the request comes from.
func (c *cluster) whoami(t *testing.T, as string, header ...string) (authenticationv1.UserInfo, *httptest.ResponseRecorder) {
	t.Helper()
	w := c.do(t, as, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", strings.NewReader("{}"), header...)
	var review authenticationv1.SelfSubjectReview
	if w.Code == 201 {
		if err := json.Unmarshal(w.Body.Bytes(), &review); err != nil {
			t.Fatal(err)
		}
	}
	return review.Status.UserInfo, w
}

// The message of a refusal speaks of the kind of impersonation that ann was last allowed, as 1.36's does.
func TestImpersonation(t *testing.T) {
	c := start(t, Options{})
	c.grant("ann", "", []string{"impersonate"}, []string{"users", "groups"}, "bob", "devs")
	c.grant("ann", "", []string{"impersonate"}, []string{"serviceaccounts"}, "builder")
	c.grant("ann", "authentication.k8s.io", []string{"impersonate"}, []string{"userextras/scopes", "uids"}, "view", "7")
	if _, w := c.whoami(t, "ann", "Impersonate-User", "bob"); w.Code != 201 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	for name, tc := range map[string]struct {
		header []string
		code   int
		user   string
		groups []string
		uid    string
		scopes []string
		say    string
	}{
		"a user":              {[]string{"Impersonate-User", "bob"}, 201, "bob", []string{"system:authenticated"}, "", nil, ""},
		"with a group":        {[]string{"Impersonate-User", "bob", "Impersonate-Group", "devs"}, 201, "bob", []string{"devs", "system:authenticated"}, "", nil, ""},
		"with uid and extras": {[]string{"Impersonate-User", "bob", "Impersonate-Uid", "7", "Impersonate-Extra-Scopes", "view"}, 201, "bob", []string{"system:authenticated"}, "7", []string{"view"}, ""},
		"an account": {[]string{"Impersonate-User", "system:serviceaccount:default:builder"}, 201, "system:serviceaccount:default:builder",
			[]string{"system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"}, "", nil, ""},
		"another user":    {[]string{"Impersonate-User", "root"}, 403, "", nil, "", nil, `users "root" is forbidden: User "ann" cannot impersonate resource "users" in API group "" at the cluster scope`},
		"another group":   {[]string{"Impersonate-User", "bob", "Impersonate-Group", "system:masters"}, 403, "", nil, "", nil, `groups "system:masters" is forbidden: User "ann" cannot impersonate resource "groups"`},
		"another uid":     {[]string{"Impersonate-User", "bob", "Impersonate-Uid", "8"}, 403, "", nil, "", nil, `uids.authentication.k8s.io "8" is forbidden`},
		"another extra":   {[]string{"Impersonate-User", "bob", "Impersonate-Extra-Scopes", "edit"}, 403, "", nil, "", nil, `userextras.authentication.k8s.io "edit" is forbidden`},
		"another account": {[]string{"Impersonate-User", "system:serviceaccount:kube-system:other"}, 403, "", nil, "", nil, `serviceaccounts "other" is forbidden: User "ann" cannot impersonate`},
		"only a group":    {[]string{"Impersonate-Group", "devs"}, 400, "", nil, "", nil, "without impersonating a user"},
		"only an extra":   {[]string{"Impersonate-Extra-Scopes", "view"}, 400, "", nil, "", nil, "without impersonating a user"},
		"nobody":          {[]string{"Impersonate-Foo", "x"}, 201, "ann", []string{"system:authenticated"}, "", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, w := c.whoami(t, "ann", tc.header...)
			if w.Code != tc.code || got.Username != tc.user || !slices.Equal(got.Groups, tc.groups) || got.UID != tc.uid || !slices.Equal([]string(got.Extra["scopes"]), tc.scopes) {
				t.Errorf("%d %+v %s", w.Code, got, w.Body)
			}
			var status metav1.Status
			if tc.code >= 400 {
				if err := json.Unmarshal(w.Body.Bytes(), &status); err != nil || status.Kind != "Status" || !strings.Contains(status.Message, tc.say) {
					t.Errorf("%s, %v; want %s", w.Body, err, tc.say)
				}
			}
		})
	}
}

// Constrained impersonation (on in 1.36) takes a right to the user and one to each thing done as that user.
func TestConstrainedImpersonation(t *testing.T) {
	c := start(t, Options{})
	c.grant("ann", "authentication.k8s.io", []string{"impersonate:user-info"}, []string{"users"}, "bob")
	c.grant("ann", "", []string{"impersonate-on:user-info:list"}, []string{"configmaps"})
	c.grant("bob", "", []string{"list", "get"}, []string{"configmaps", "secrets"})
	for path, code := range map[string]int{
		"/api/v1/namespaces/default/configmaps":   200, // ann may do this as bob, and bob may
		"/api/v1/namespaces/default/configmaps/a": 403, // bob may, but ann may not as bob
		"/api/v1/namespaces/default/secrets":      403,
	} {
		if w := c.do(t, "ann", "GET", path, nil, "Impersonate-User", "bob"); w.Code != code {
			t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, code)
		}
	}
}
