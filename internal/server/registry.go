package server

import (
	"context"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/api"
	"gantry.dev/gantry/internal/images"
)

// The roles of the image registry.
const (
	imagePullerRoleName = "gantry:image-puller"
	imageNodesRoleName  = "gantry:node-images"
	imageCollectorName  = "system:gantry:images"
)

// imageRoles say who may do what with images: who may view a project may pull from it, who may edit it may push and
// delete. The puller's role is for bindings that let others in: nodes, and accounts of other projects.
func imageRoles() []*rbacv1.ClusterRole {
	role := func(name string, labels map[string]string, verbs ...string) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
			Rules:      []rbacv1.PolicyRule{{APIGroups: []string{images.Group}, Resources: []string{images.Resource}, Verbs: verbs}},
		}
	}
	const aggregate = "rbac.authorization.k8s.io/aggregate-to-"
	return []*rbacv1.ClusterRole{
		role(imagePullerRoleName, nil, images.VerbGet),
		collectorRole(),
		role("gantry:images-view", map[string]string{aggregate + "view": "true"}, images.VerbGet, images.VerbList),
		role("gantry:images-edit", map[string]string{aggregate + "edit": "true"}, images.VerbCreate, images.VerbDelete),
	}
}

// collectorRole is what the collection of images reads.
func collectorRole() *rbacv1.ClusterRole {
	read := []string{"get", "list", "watch"}
	return &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: imageCollectorName},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"namespaces", "pods"}, Verbs: read},
			{APIGroups: []string{"apps"}, Resources: []string{"deployments", "replicasets", "statefulsets", "daemonsets"}, Verbs: read},
			{APIGroups: []string{"batch"}, Resources: []string{"jobs", "cronjobs"}, Verbs: read},
			{APIGroups: []string{"gantry.dev"}, Resources: []string{"apps", "releases", "builds"}, Verbs: read},
		},
	}
}

// startImages collects images that nothing uses, if there is a registry.
func (cp *ControlPlane) startImages(run func(string, func(context.Context) error)) error {
	if cp.images == nil {
		return nil
	}
	reader, _, err := cp.As(&user.DefaultInfo{Name: imageCollectorName, Groups: []string{user.AllAuthenticated}}, "gantry-images")
	if err != nil {
		return err
	}
	collector, err := images.NewCollector(images.CollectorOptions{
		Store: cp.images, Reader: reader, Logger: cp.opts.Logger, Sync: cp.store.Sync,
		Leads: func() bool { leading, _ := cp.store.Leading(); return leading },
	})
	if err != nil {
		return err
	}
	cp.collector = collector
	run("images", collector.Run)
	run("replicas of images", cp.replica.Run)
	return nil
}

// registryPart gives the API the registry in the API's words.
type registryPart struct{ *images.Handler }

var _ api.Images = registryPart{}

// Need implements api.Images.
func (registryPart) Need(r *http.Request) (verb, namespace, name string) {
	need := images.NeedOf(r)
	return need.Verb, need.Project, need.App
}

// Resource implements api.Images.
func (registryPart) Resource() (group, resource string) { return images.Group, images.Resource }

// Refuse implements api.Images.
func (registryPart) Refuse(w http.ResponseWriter, code int, message string) {
	name := "UNKNOWN"
	switch code {
	case http.StatusUnauthorized:
		name = "UNAUTHORIZED"
	case http.StatusForbidden:
		name = "DENIED"
	}
	images.WriteError(w, code, name, message, nil)
}

// newImages makes the registry; nil without a folder for it.
func (cp *ControlPlane) newImages() (api.Images, error) {
	if cp.opts.ImagesDir == "" {
		return nil, nil
	}
	var err error
	if cp.images, err = images.NewStore(images.StoreOptions{Dir: cp.opts.ImagesDir, Logger: cp.opts.Logger}); err != nil {
		return nil, err
	}
	if err := cp.newReplica(); err != nil {
		return nil, err
	}
	handler, err := images.NewHandler(images.Options{
		Store: cp.images, Replica: cp.replica, Logger: cp.opts.Logger, Project: cp.projectExists,
		Allowed: func(r *http.Request, need images.Need) bool {
			u, ok := request.UserFrom(r.Context())
			return ok && mayUseImages(r.Context(), localCluster{cp: cp}, u, need)
		},
	})
	if err != nil {
		return nil, err
	}
	return registryPart{handler}, nil
}

// projectExists reports whether there is a namespace.
func (cp *ControlPlane) projectExists(ctx context.Context, name string) (bool, error) {
	err := cp.admin.Get(ctx, ctrlclient.ObjectKey{Name: name}, &corev1.Namespace{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading project %s: %w", name, err)
	}
	return true, nil
}
