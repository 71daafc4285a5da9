package gantrytest

import (
	"errors"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/access"
	"gantry.dev/gantry/internal/platform/deploy"
)

// userCluster is a cluster with two projects and two applications in one of them.
func userCluster(t *testing.T) (*Cluster, *access.Access) {
	t.Helper()
	c := Start(t, Options{NoScheduler: true, WithoutControllers: []string{"gantry-app", "gantry-build"}})
	select {
	case <-c.ControlPlane.Platform():
	case <-t.Context().Done():
		t.Fatal("the platform's kinds are not served")
	}
	root, err := access.Connect(c.Config("root", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	if err := root.CreateProject(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	admin := deployer(t, c, "")
	for _, name := range []string{"a", "b"} {
		create(t, admin, &v1alpha1.App{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: v1alpha1.AppSpec{Image: "x:1"}})
		create(t, admin, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: v1alpha1.SecretName(name)}, StringData: map[string]string{"KEY": name}})
		create(t, admin, &v1alpha1.Release{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name + "-v1"}, Spec: v1alpha1.ReleaseSpec{App: name, Number: 1}})
	}
	return c, root
}

func create(t *testing.T, c client.Client, object client.Object) {
	t.Helper()
	if err := c.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
}

// deployer is a client with a token, or an administrator's.
func deployer(t *testing.T, c *Cluster, token string) client.Client {
	t.Helper()
	config := c.Config("root", "system:masters")
	if token != "" {
		config = c.TokenConfig(token)
	}
	cluster, err := deploy.Connect(config)
	if err != nil {
		t.Fatal(err)
	}
	return cluster.Client
}

func addUser(t *testing.T, a *access.Access, name string, grant access.Grant) string {
	t.Helper()
	token, err := a.AddUser(t.Context(), access.AddRequest{Name: name, Grant: grant})
	if err != nil || token == "" {
		t.Fatalf("adding %s gave the token %q and %v", name, token, err)
	}
	return token
}

// TestUserRights is what each role may, over the API's own authentication, roles and admission.
func TestUserRights(t *testing.T) {
	c, root := userCluster(t)
	tokens := map[string]string{
		"viewer":    addUser(t, root, "vera", access.Grant{Role: access.Viewer, Project: "shop"}),
		"deployer":  addUser(t, root, "dora", access.Grant{Role: access.Deployer, Project: "shop"}),
		"admin":     addUser(t, root, "ada", access.Grant{Role: access.Admin, Project: "shop"}),
		"deployerA": addUser(t, root, "ci", access.Grant{Role: access.Deployer, Project: "shop", App: "a"}),
		"elsewhere": addUser(t, root, "eve", access.Grant{Role: access.Admin, Project: "default"}),
		"cluster":   addUser(t, root, "chief", access.Grant{Role: access.Admin}),
	}
	for who, token := range tokens { // roles are in force a moment after they are bound
		if k := deployer(t, c, token); who != "elsewhere" {
			c.Eventually(who+" sees the application", func() error {
				return k.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "a"}, &v1alpha1.App{})
			})
		}
	}
	patch := func(name string) func(client.Client) error {
		return func(k client.Client) error {
			app := &v1alpha1.App{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
			return k.Patch(t.Context(), app, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"image":"x:2"}}`)), client.DryRunAll)
		}
	}
	get := func(kind func() client.Object, name string) func(client.Client) error {
		return func(k client.Client) error {
			return k.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: name}, kind())
		}
	}
	app := func() client.Object { return &v1alpha1.App{} }
	secret := func() client.Object { return &corev1.Secret{} }
	createOf := func(object func() client.Object) func(client.Client) error {
		return func(k client.Client) error { return k.Create(t.Context(), object(), client.DryRunAll) }
	}
	build := func(of string) func(client.Client) error {
		return createOf(func() client.Object {
			return &v1alpha1.Build{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a-1"}, Spec: v1alpha1.BuildSpec{App: of, Source: "sha256:0", Secrets: []string{"KEY"}}}
		})
	}
	release := func(name string) func(client.Client) error {
		return func(k client.Client) error {
			r := &v1alpha1.Release{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
			return k.Patch(t.Context(), r, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"intent":"abort"}}`)), client.DryRunAll)
		}
	}
	everybody := []string{"viewer", "deployer", "admin", "deployerA", "cluster"}
	of := []string{"deployer", "admin", "cluster"}
	ofA := append([]string{"deployerA"}, of...)
	cases := []struct {
		what    string
		do      func(client.Client) error
		allowed []string
	}{
		{"see a", get(app, "a"), everybody},
		{"see b", get(app, "b"), everybody},
		{"change a", patch("a"), ofA},
		{"change b", patch("b"), of},
		{"read the secrets of a", get(secret, "a-secrets"), ofA},
		{"read the secrets of b", get(secret, "b-secrets"), of},
		{"list secrets", func(k client.Client) error {
			return k.List(t.Context(), &corev1.SecretList{}, client.InNamespace("shop"))
		}, of},
		{"build a", build("a"), ofA},
		{"build b, with its secrets", build("b"), of},
		{"decide about a release of a", release("a-v1"), ofA},
		{"decide about a release of b", release("b-v1"), of},
		{"make an application", createOf(func() client.Object {
			return &v1alpha1.App{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "c"}, Spec: v1alpha1.AppSpec{Image: "x:1"}}
		}), of},
		{"make a pod", createOf(func() client.Object {
			return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "x", Image: "x"}}}}
		}), of},
		{"remove a", func(k client.Client) error {
			return k.Delete(t.Context(), &v1alpha1.App{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}}, client.DryRunAll)
		}, []string{"admin", "cluster"}},
	}
	for _, tc := range cases {
		t.Run(tc.what, func(t *testing.T) {
			for who, token := range tokens {
				want := false
				for _, name := range tc.allowed {
					want = want || name == who
				}
				err := tc.do(deployer(t, c, token))
				if want && err != nil || !want && !apierrors.IsForbidden(err) {
					t.Errorf("%s: allowed %t, got %v", who, want, err)
				}
			}
		})
	}
	t.Run("push images", func(t *testing.T) {
		for who, want := range map[string]int{"deployerA": http.StatusAccepted, "viewer": http.StatusForbidden, "deployer": http.StatusAccepted, "elsewhere": http.StatusForbidden} {
			if code, text, _ := imageRequest(t, c.TokenConfig(tokens[who]), http.MethodPost, "/v2/shop/a/blobs/uploads/", ""); code != want {
				t.Errorf("%s gets %d for a, want %d: %s", who, code, want, text)
			}
		}
		if code, _, _ := imageRequest(t, c.TokenConfig(tokens["deployerA"]), http.MethodPost, "/v2/shop/b/blobs/uploads/", ""); code != http.StatusForbidden {
			t.Errorf("a deployer of a gets %d for the images of b", code)
		}
	})
	t.Run("become more", func(t *testing.T) { testNoEscalation(t, c, tokens) })
}

// testNoEscalation tries the ways from a role to more than it.
func testNoEscalation(t *testing.T, c *Cluster, tokens map[string]string) {
	for _, who := range []string{"viewer", "deployer", "deployerA", "admin"} {
		set, err := kubernetes.NewForConfig(c.TokenConfig(tokens[who]))
		if err != nil {
			t.Fatal(err)
		}
		dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
		bind := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "mine"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: access.UsersNamespace, Name: "ci"}},
		}
		global := &rbacv1.ClusterRoleBinding{ObjectMeta: bind.ObjectMeta, RoleRef: bind.RoleRef, Subjects: bind.Subjects}
		inUsers := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{ServiceAccountName: "chief", Containers: []corev1.Container{{Name: "x", Image: "x"}}}}
		_, local := set.RbacV1().RoleBindings("shop").Create(t.Context(), bind, dry)
		_, wide := set.RbacV1().ClusterRoleBindings().Create(t.Context(), global, dry)
		_, pod := set.CoreV1().Pods(access.UsersNamespace).Create(t.Context(), inUsers, dry)
		_, secrets := set.CoreV1().Secrets("kube-system").List(t.Context(), metav1.ListOptions{})
		for what, err := range map[string]error{"bind cluster-admin": local, "bind it everywhere": wide, "run as another user": pod, "read kube-system": secrets} {
			if !apierrors.IsForbidden(err) {
				t.Errorf("%s may %s: %v", who, what, err)
			}
		}
		mine, err := access.Connect(c.TokenConfig(tokens[who]))
		if err != nil {
			t.Fatal(err)
		}
		if token, err := mine.AddUser(t.Context(), access.AddRequest{Name: "friend", Grant: access.Grant{Role: access.Admin}}); err == nil || token != "" {
			t.Errorf("%s may add an administrator", who)
		}
	}
}

// TestUserLife is a user from its token to the token's end.
func TestUserLife(t *testing.T) {
	c, root := userCluster(t)
	ctx := t.Context()
	grant := access.Grant{Role: access.Viewer, Project: "shop"}
	token := addUser(t, root, "ann", grant)
	sees := func(token string) error {
		return deployer(t, c, token).Get(ctx, client.ObjectKey{Namespace: "shop", Name: "a"}, &v1alpha1.App{})
	}
	c.Eventually("the new user sees the application", func() error { return sees(token) })
	if again, err := root.AddUser(ctx, access.AddRequest{Name: "ann", Grant: access.Grant{Role: access.Deployer, Project: "shop", App: "a"}}); err != nil || again != "" {
		t.Fatalf("a second role gave the token %q and %v", again, err)
	}
	second, err := root.AddUser(ctx, access.AddRequest{Name: "ann", Grant: grant, NewToken: true, Lifetime: time.Hour})
	if err != nil || second == "" {
		t.Fatal(err)
	}
	if err := sees(token); !apierrors.IsUnauthorized(err) {
		t.Errorf("the old token: %v", err)
	}
	c.Eventually("the new token is good", func() error { return sees(second) })
	users, err := root.Users(ctx)
	if err != nil || len(users) != 1 || len(users[0].Grants) != 2 || users[0].Expires == nil {
		t.Fatalf("users are %+v, %v", users, err)
	}
	if err := root.RemoveUser(ctx, "ann"); err != nil {
		t.Fatal(err)
	}
	if err := sees(second); !apierrors.IsUnauthorized(err) {
		t.Errorf("the token of a user that was removed: %v", err)
	}
	if err := root.RemoveUser(ctx, "ann"); !isInput(err) {
		t.Errorf("a second removal: %v", err)
	}
	// One of the same name gets none of the old rights.
	addUser(t, root, "ann", access.Grant{Role: access.Viewer, Project: "default"})
	if users, err = root.Users(ctx); err != nil || len(users[0].Grants) != 1 {
		t.Errorf("users are %+v, %v", users, err)
	}
	for what, req := range map[string]access.AddRequest{
		"name": {Name: "Ann B", Grant: grant}, "project": {Name: "x", Grant: access.Grant{Role: access.Viewer, Project: "none"}},
		"system": {Name: "x", Grant: access.Grant{Role: access.Admin, Project: "kube-system"}}, "lifetime": {Name: "x", Grant: grant, Lifetime: time.Second},
	} {
		if _, err := root.AddUser(ctx, req); !isInput(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func isInput(err error) bool {
	_, ok := errors.AsType[*access.InputError](err)
	return ok
}

func TestProjects(t *testing.T) {
	_, root := userCluster(t)
	ctx := t.Context()
	for _, name := range []string{"shop", "kube-x", "gantry-system", "Big"} {
		if err := root.CreateProject(ctx, name); !isInput(err) {
			t.Errorf("project %s: %v", name, err)
		}
	}
	projects, err := root.Projects(ctx)
	if err != nil || len(projects) != 2 || projects[1].Name != "shop" || projects[1].Apps != 2 {
		t.Fatalf("projects are %+v, %v", projects, err)
	}
	contents, err := root.ContentsOf(ctx, "shop")
	if err != nil || len(contents.Apps) != 2 || len(contents.Secrets) != 2 || contents.Empty() {
		t.Fatalf("shop has %+v, %v", contents, err)
	}
	if _, err := root.ContentsOf(ctx, "default"); !isInput(err) {
		t.Errorf("default: %v", err)
	}
	if err := root.RemoveProject(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
}
