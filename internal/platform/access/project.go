package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
)

// Project is a namespace for applications.
type Project struct {
	Name    string    `json:"name"`
	Apps    int       `json:"apps"`
	Created time.Time `json:"created"`
	Ending  bool      `json:"ending,omitempty"`
}

// Contents is what goes with a project.
type Contents struct {
	Apps    []string `json:"apps,omitempty"`
	Volumes []string `json:"volumes,omitempty"`
	Secrets []string `json:"secrets,omitempty"`
	Pods    int      `json:"pods,omitempty"`
}

// Empty says that nothing would be lost.
func (c *Contents) Empty() bool {
	return len(c.Apps) == 0 && len(c.Volumes) == 0 && len(c.Secrets) == 0 && c.Pods == 0
}

// CreateProject makes a project. One that is there is an error.
func (a *Access) CreateProject(ctx context.Context, name string) error {
	if len(validation.IsDNS1123Label(name)) > 0 {
		return wrong("%q cannot be the name of a project: lower-case letters, digits and dashes, at most 63", name)
	}
	if isSystem(name) {
		return wrong("names that begin with kube-, and %s and %s, are the cluster's own", v1alpha1.PlatformNamespace, UsersNamespace)
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelProject: "true"}}}
	err := a.client.Create(ctx, namespace, client.FieldOwner(manager))
	if apierrors.IsAlreadyExists(err) {
		return wrong("there is a project %s already", name)
	}
	if err != nil {
		return fmt.Errorf("make the project %s: %w", name, err)
	}
	return nil
}

// Projects lists the projects by name: all namespaces but the cluster's own.
func (a *Access) Projects(ctx context.Context) ([]Project, error) {
	var namespaces corev1.NamespaceList
	if err := a.client.List(ctx, &namespaces); err != nil {
		return nil, fmt.Errorf("list projects: %w", err)
	}
	var apps v1alpha1.AppList
	if err := a.client.List(ctx, &apps); err != nil && !platformMissing(err) {
		return nil, fmt.Errorf("list applications: %w", err)
	}
	count := map[string]int{}
	for _, app := range apps.Items {
		count[app.Namespace]++
	}
	out := make([]Project, 0, len(namespaces.Items))
	for _, one := range namespaces.Items {
		if !isSystem(one.Name) {
			out = append(out, Project{one.Name, count[one.Name], one.CreationTimestamp.Time, one.DeletionTimestamp != nil})
		}
	}
	slices.SortFunc(out, func(a, b Project) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// ContentsOf lists what would go with a project.
func (a *Access) ContentsOf(ctx context.Context, name string) (*Contents, error) {
	if isSystem(name) || name == metav1.NamespaceDefault {
		return nil, wrong("%s is the cluster's own and stays", name)
	}
	err := a.client.Get(ctx, client.ObjectKey{Name: name}, &corev1.Namespace{})
	if apierrors.IsNotFound(err) {
		return nil, wrong("there is no project %s; see \"gantry project ls\"", name)
	}
	if err != nil {
		return nil, fmt.Errorf("look for the project %s: %w", name, err)
	}
	var apps v1alpha1.AppList
	var claims corev1.PersistentVolumeClaimList
	var secrets corev1.SecretList
	var pods corev1.PodList
	inside := client.InNamespace(name)
	if err := a.client.List(ctx, &apps, inside); err != nil && !platformMissing(err) {
		return nil, fmt.Errorf("list applications: %w", err)
	}
	if err := errors.Join(a.client.List(ctx, &claims, inside), a.client.List(ctx, &secrets, inside), a.client.List(ctx, &pods, inside)); err != nil {
		return nil, fmt.Errorf("look into the project %s: %w", name, err)
	}
	out := &Contents{Pods: len(pods.Items)}
	for _, app := range apps.Items {
		out.Apps = append(out.Apps, app.Name)
	}
	for _, claim := range claims.Items {
		out.Volumes = append(out.Volumes, claim.Name)
	}
	for _, secret := range secrets.Items {
		if len(secret.Data) > 0 {
			out.Secrets = append(out.Secrets, secret.Name)
		}
	}
	return out, nil
}

// RemoveProject removes a project with all that is in it. The cluster takes its time to end what runs.
func (a *Access) RemoveProject(ctx context.Context, name string) error {
	if isSystem(name) || name == metav1.NamespaceDefault {
		return wrong("%s is the cluster's own and stays", name)
	}
	if err := a.client.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		return fmt.Errorf("remove the project %s: %w", name, err)
	}
	return nil
}
