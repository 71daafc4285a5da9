package gantrytest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// imageRequest makes a request to the registry and returns status, body and the header that says how to log in.
func imageRequest(t *testing.T, config *rest.Config, method, path, body string, headers ...string) (int, string, string) {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, config.Host+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text), answer.Header.Get("WWW-Authenticate")
}

// TestImageRights is who may do what with images, over the API's own authentication and roles.
func TestImageRights(t *testing.T) {
	c := Start(t, Options{NoScheduler: true})
	root, err := kubernetes.NewForConfig(c.Config("root", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	for _, project := range []string{"shop", "other"} {
		if _, err := root.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: project}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	bind := func(name, project, role string, subject rbacv1.Subject) {
		binding := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: []rbacv1.Subject{subject},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		}
		if _, err := root.RbacV1().RoleBindings(project).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		mayPull(t, c, root, project, subject)
	}
	person := func(name string) rbacv1.Subject {
		return rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: name}
	}
	for user, role := range map[string]string{"viewer": "view", "editor": "edit", "boss": "admin", "puller": "gantry:image-puller"} {
		bind(user, "shop", role, person(user))
	}
	deployer := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "deployer"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"registry.gantry.dev"}, Resources: []string{"images"}, ResourceNames: []string{"web"}, Verbs: []string{"get", "create"}}},
	}
	if _, err := root.RbacV1().Roles("shop").Create(t.Context(), deployer, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "ci"}, Subjects: []rbacv1.Subject{person("ci")}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "deployer"}}
	if _, err := root.RbacV1().RoleBindings("shop").Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	mayPull(t, c, root, "shop", person("ci"))
	content := "layer"
	d := digest.FromString(content)
	rootConfig := c.Config("root", "system:masters")
	for _, repo := range []string{"shop/web", "other/web"} {
		if code, text, _ := imageRequest(t, rootConfig, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), content); code != 201 {
			t.Fatalf("push as root = %d %s", code, text)
		}
	}
	requests := []struct{ name, method, path, body string }{
		{"pull", "GET", "/v2/%s/blobs/" + d.String(), ""},
		{"push", "POST", "/v2/%s/blobs/uploads/?digest=" + d.String(), content},
		{"delete", "DELETE", "/v2/%s/manifests/none", ""},
		{"list", "GET", "/v2/%s/tags/list", ""},
	}
	users := map[string]map[string]string{ // project and application to what is allowed
		"root":               {"shop/web": "pull push delete list", "other/web": "pull push delete list"},
		"viewer":             {"shop/web": "pull list"},
		"editor":             {"shop/web": "pull push delete list"},
		"boss":               {"shop/web": "pull push delete list"},
		"puller":             {"shop/web": "pull"},
		"ci":                 {"shop/web": "pull push"},
		"nobody":             {},
		"system:node:node-0": {"shop/web": "pull", "other/web": "pull"},
	}
	for user, rights := range users {
		groups := []string{}
		switch user {
		case "root":
			groups = []string{"system:masters"}
		case "system:node:node-0":
			groups = []string{"system:nodes"}
		}
		config := c.Config(user, groups...)
		if code, _, _ := imageRequest(t, config, "GET", "/v2/", ""); code != 200 {
			t.Errorf("%s: GET /v2/ = %d", user, code)
		}
		for _, repo := range []string{"shop/web", "shop/api", "other/web"} {
			rights := rights[repo]
			if repo == "shop/api" && user != "ci" {
				continue
			}
			for _, request := range requests {
				code, text, _ := imageRequest(t, config, request.method, fmt.Sprintf(request.path, repo), request.body)
				allowed := strings.Contains(rights, request.name)
				if (code != http.StatusForbidden) != allowed {
					t.Errorf("%s may %s %s: got %d %s; allowed is %v", user, request.name, repo, code, text, allowed)
				}
				if code == http.StatusForbidden && !strings.HasPrefix(text, `{"errors":[{"code":"DENIED","message":"images.registry.gantry.dev`) {
					t.Errorf("%s: the answer is not the specification's: %s", user, text)
				}
			}
		}
	}
	t.Run("credentials", func(t *testing.T) { imageCredentials(t, c, root, bind, d) })
	t.Run("mount needs the right to pull", func(t *testing.T) {
		path := "/v2/shop/new/blobs/uploads/?from=other/web&mount=" + d.String()
		if code, _, _ := imageRequest(t, c.Config("editor"), "POST", path, ""); code != 202 {
			t.Errorf("mount = %d; want an upload to begin", code)
		}
		if code, _, _ := imageRequest(t, rootConfig, "POST", path, ""); code != 201 {
			t.Errorf("mount as root = %d", code)
		}
	})
	t.Run("no such project", func(t *testing.T) {
		code, text, _ := imageRequest(t, rootConfig, "POST", "/v2/nowhere/web/blobs/uploads/", "")
		if code != 404 || !strings.Contains(text, "NAME_UNKNOWN") {
			t.Errorf("push = %d %s", code, text)
		}
	})
	t.Run("catalog", func(t *testing.T) {
		if _, text, _ := imageRequest(t, c.Config("viewer"), "GET", "/v2/_catalog", ""); !strings.Contains(text, `["shop/new","shop/web"]`) {
			t.Errorf("viewer sees %s", text)
		}
		if _, text, _ := imageRequest(t, c.Config("nobody"), "GET", "/v2/_catalog", ""); text != `{"repositories":[]}` {
			t.Errorf("nobody sees %s", text)
		}
	})
	t.Run("impersonated", func(t *testing.T) {
		if code, _, _ := imageRequest(t, rootConfig, "GET", "/v2/other/web/blobs/"+d.String(), "", "Impersonate-User", "viewer"); code != 403 {
			t.Errorf("root as viewer = %d", code)
		}
	})
}

// mayPull waits until the authorizer has heard that somebody may pull images of a project.
func mayPull(t *testing.T, c *Cluster, root *kubernetes.Clientset, project string, subject rbacv1.Subject) {
	t.Helper()
	who := subject.Name
	if subject.Kind == rbacv1.ServiceAccountKind {
		who = "system:serviceaccount:" + subject.Namespace + ":" + subject.Name
	}
	c.Eventually(who+" may pull images of "+project, func() error {
		review, err := root.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{User: who, ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: project, Verb: "get", Group: "registry.gantry.dev", Resource: "images", Name: "web",
			}},
		}, metav1.CreateOptions{})
		if err == nil && !review.Status.Allowed {
			err = errors.New("not yet")
		}
		return err
	})
}

// imageCredentials tries the ways to say who one is.
func imageCredentials(t *testing.T, c *Cluster, root *kubernetes.Clientset, bind func(string, string, string, rbacv1.Subject), d digest.Digest) {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "ci"}}
	if _, err := root.CoreV1().ServiceAccounts("other").Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	bind("ci-account", "shop", "gantry:image-puller", rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: "other", Name: "ci"})
	issued, err := root.CoreV1().ServiceAccounts("other").CreateToken(t.Context(), "ci", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token := issued.Status.Token
	path := "/v2/shop/web/blobs/" + d.String()
	basic := func(user, password string) string {
		r := &http.Request{Header: http.Header{}}
		r.SetBasicAuth(user, password)
		return r.Header.Get("Authorization")
	}
	for name, tc := range map[string]struct {
		authorization string
		path          string
		want          int
	}{
		"nobody":             {"", path, 401},
		"nobody's version":   {"", "/v2/", 401},
		"nobody's catalog":   {"", "/v2/_catalog", 401},
		"bearer":             {"Bearer " + token, path, 200},
		"wrong bearer":       {"Bearer nonsense", path, 401},
		"basic":              {basic("whoever", token), path, 200},
		"basic version":      {basic("whoever", token), "/v2/", 200},
		"basic elsewhere":    {basic("whoever", token), "/v2/other/web/blobs/" + d.String(), 403},
		"wrong password":     {basic("whoever", "nonsense"), path, 401},
		"no password":        {basic("whoever", ""), path, 401},
		"basic for the API":  {basic("whoever", token), "/api/v1/namespaces", 403}, // there it is no credential
		"bad path, nobody":   {"", "/v2/shop", 401},
		"bad path, somebody": {"Bearer " + token, "/v2/shop", 404},
	} {
		t.Run(name, func(t *testing.T) {
			headers := []string{}
			if tc.authorization != "" {
				headers = []string{"Authorization", tc.authorization}
			}
			code, text, login := imageRequest(t, c.TokenConfig(""), "GET", tc.path, "", headers...)
			if code != tc.want {
				t.Errorf("answer is %d %s; want %d", code, text, tc.want)
			}
			if code == 401 && (!strings.HasPrefix(login, "Basic ") || !strings.Contains(text, `"code":"UNAUTHORIZED"`)) {
				t.Errorf("401 says %q, %s", login, text)
			}
		})
	}
}
