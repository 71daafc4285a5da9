package access

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Bounds of how long a token holds. A shorter one the API refuses; "never" is a hundred years.
const (
	minToken = 10 * time.Minute
	maxToken = 100 * 365 * 24 * time.Hour
)

// Grant is what a user may do, and where.
type Grant struct {
	Role    Role   `json:"role"`
	Project string `json:"project,omitempty"` // empty is the whole cluster
	App     string `json:"app,omitempty"`     // empty is the whole project
}

// String says it as a list of users shows it: "deployer of default/shop".
func (g Grant) String() string {
	switch {
	case g.Project == "":
		return string(g.Role) + " of the cluster"
	case g.App == "":
		return string(g.Role) + " of " + g.Project
	}
	return string(g.Role) + " of " + g.Project + "/" + g.App
}

// User is a person or a CI job.
type User struct {
	Name    string     `json:"name"`
	Grants  []Grant    `json:"grants"`
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires,omitempty"` // of the token; nil is never
}

// AddRequest says which user gets what.
type AddRequest struct {
	Name  string
	Grant Grant
	// Lifetime is how long the token holds; 0 is for ever.
	Lifetime time.Duration
	// NewToken gives a user that is there another token. The old one is worth nothing from then on.
	NewToken bool
}

// AddUser makes a user, or gives one that is there another role. The token is empty unless it was made now: it is kept nowhere.
func (a *Access) AddUser(ctx context.Context, req AddRequest) (token string, err error) {
	if err := a.checkAdd(ctx, &req); err != nil {
		return "", err
	}
	if err := a.ensure(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: UsersNamespace}}); err != nil {
		return "", fmt.Errorf("make the namespace of users: %w", err)
	}
	account, isNew, err := a.account(ctx, &req)
	if err != nil {
		return "", err
	}
	if err := a.grant(ctx, req.Name, req.Grant); err != nil {
		return "", err
	}
	if !isNew {
		return "", nil
	}
	seconds := int64(cmp.Or(req.Lifetime, maxToken) / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	if err := a.client.SubResource("token").Create(ctx, account, request); err != nil {
		return "", fmt.Errorf("make the token of %s: %w", req.Name, err)
	}
	return request.Status.Token, nil
}

func (a *Access) checkAdd(ctx context.Context, req *AddRequest) error {
	if problems := validation.IsDNS1123Label(req.Name); len(problems) > 0 {
		return wrong("%q cannot be the name of a user: lower-case letters, digits and dashes, at most 63", req.Name)
	}
	if req.Lifetime != 0 && (req.Lifetime < minToken || req.Lifetime > maxToken) {
		return wrong("a token holds between ten minutes and a hundred years")
	}
	if req.Grant.App != "" && req.Grant.Project == "" {
		return wrong("an application is in a project: say which")
	}
	if req.Grant.App != "" && len(validation.IsDNS1123Label(req.Grant.App)) > 0 {
		return wrong("%q cannot be the name of an application", req.Grant.App)
	}
	if req.Grant.Project == "" {
		return nil
	}
	if isSystem(req.Grant.Project) {
		return wrong("%s is the cluster's own and no project", req.Grant.Project)
	}
	err := a.client.Get(ctx, client.ObjectKey{Name: req.Grant.Project}, &corev1.Namespace{})
	if apierrors.IsNotFound(err) {
		return wrong("there is no project %s; make it with \"gantry project create %s\"", req.Grant.Project, req.Grant.Project)
	}
	if err != nil {
		return fmt.Errorf("look for the project %s: %w", req.Grant.Project, err)
	}
	return nil
}

// account makes the user's account if there is none, or if its token is to be replaced.
func (a *Access) account(ctx context.Context, req *AddRequest) (*corev1.ServiceAccount, bool, error) {
	key := client.ObjectKey{Namespace: UsersNamespace, Name: req.Name}
	there := &corev1.ServiceAccount{}
	err := a.client.Get(ctx, key, there)
	switch {
	case err == nil && there.Labels[labelUser] != req.Name:
		return nil, false, wrong("the account %s is not a user's", req.Name)
	case err == nil && !req.NewToken:
		if req.Lifetime != 0 {
			return nil, false, wrong("%s is there already, and its token stays as it is; --new-token makes another one", req.Name)
		}
		return there, false, nil
	case err == nil:
		if err := a.client.Delete(ctx, there, client.Preconditions{UID: &there.UID}); client.IgnoreNotFound(err) != nil {
			return nil, false, fmt.Errorf("end the old token of %s: %w", req.Name, err)
		}
	case !apierrors.IsNotFound(err):
		return nil, false, fmt.Errorf("look for the user %s: %w", req.Name, err)
	}
	no := false
	account := &corev1.ServiceAccount{
		ObjectMeta:                   metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: map[string]string{labelUser: req.Name}},
		AutomountServiceAccountToken: &no,
	}
	if req.Lifetime != 0 {
		account.Annotations = map[string]string{annotationExpires: time.Now().Add(req.Lifetime).UTC().Format(time.RFC3339)}
	}
	if err := a.client.Create(ctx, account, client.FieldOwner(manager)); err != nil {
		return nil, false, fmt.Errorf("make the user %s: %w", req.Name, err)
	}
	return account, true, nil
}

// ensure creates an object unless it is there.
func (a *Access) ensure(ctx context.Context, object client.Object) error {
	err := a.client.Create(ctx, object, client.FieldOwner(manager))
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// Users lists users by name.
func (a *Access) Users(ctx context.Context) ([]User, error) {
	var accounts corev1.ServiceAccountList
	if err := a.client.List(ctx, &accounts, client.InNamespace(UsersNamespace), client.HasLabels{labelUser}); err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	bindings, err := a.bindings(ctx, client.HasLabels{labelUser})
	if err != nil {
		return nil, err
	}
	grants := map[string][]Grant{}
	for _, binding := range bindings {
		if binding.GetLabels()[labelPart] != "" {
			continue
		}
		grants[binding.GetLabels()[labelUser]] = append(grants[binding.GetLabels()[labelUser]], grantOf(binding))
	}
	users := make([]User, 0, len(accounts.Items))
	for _, account := range accounts.Items {
		user := User{Name: account.Name, Grants: grants[account.Name], Created: account.CreationTimestamp.Time}
		if at, err := time.Parse(time.RFC3339, account.Annotations[annotationExpires]); err == nil {
			user.Expires = &at
		}
		slices.SortFunc(user.Grants, func(a, b Grant) int { return strings.Compare(a.Project+"/"+a.App, b.Project+"/"+b.App) })
		users = append(users, user)
	}
	slices.SortFunc(users, func(a, b User) int { return strings.Compare(a.Name, b.Name) })
	return users, nil
}

// RemoveUser removes a user. Its token is worth nothing from the first step on; what it was granted goes afterwards.
func (a *Access) RemoveUser(ctx context.Context, name string) error {
	account := &corev1.ServiceAccount{}
	err := a.client.Get(ctx, client.ObjectKey{Namespace: UsersNamespace, Name: name}, account)
	gone := apierrors.IsNotFound(err)
	if err != nil && !gone {
		return fmt.Errorf("look for the user %s: %w", name, err)
	}
	if !gone && account.Labels[labelUser] != name {
		return wrong("the account %s is not a user's", name)
	}
	if !gone {
		if err := a.client.Delete(ctx, account); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("remove the user %s: %w", name, err)
		}
	}
	bindings, err := a.bindings(ctx, client.MatchingLabels{labelUser: name})
	if err != nil {
		return err
	}
	if gone && len(bindings) == 0 {
		return wrong("there is no user %s; see \"gantry user ls\"", name)
	}
	var all []error
	for _, binding := range bindings {
		all = append(all, client.IgnoreNotFound(a.client.Delete(ctx, binding)))
	}
	if err := errors.Join(all...); err != nil {
		return fmt.Errorf("the token of %s is worth nothing now, but not all of its roles are gone: %w", name, err)
	}
	return nil
}

// bindings are those of users, in all namespaces.
func (a *Access) bindings(ctx context.Context, which client.ListOption) ([]client.Object, error) {
	var local rbacv1.RoleBindingList
	var global rbacv1.ClusterRoleBindingList
	if err := errors.Join(a.client.List(ctx, &local, which), a.client.List(ctx, &global, which)); err != nil {
		return nil, fmt.Errorf("list what users may: %w", err)
	}
	var out []client.Object
	for i := range local.Items {
		out = append(out, &local.Items[i])
	}
	for i := range global.Items {
		out = append(out, &global.Items[i])
	}
	return out, nil
}
