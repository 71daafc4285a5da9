package remote

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/addon"
	"gantry.dev/gantry/internal/platform/app"
)

const (
	// Name is the name of the Deployment, of its account and Lease, and of the field manager.
	Name = "gantry-platform"
	// HealthPort is where Platform's Handler is served in the Deployment's pods.
	HealthPort = 8081

	labelName = "app.kubernetes.io/name"
	// annotationVersion is on the Deployment: a version of Gantry may be no value of a label.
	annotationVersion = "gantry.dev/version"
)

// kinds are those of gantry.dev that a foreign cluster gets. Nobody builds there, so it gets no Build: who asks for one is told
// at once instead of waiting.
func kinds() []string { return []string{"App", "Release"} }

// objects are what is installed beside the definitions, in order.
func objects(opts InstallOptions) []client.Object {
	account := metav1.ObjectMeta{Namespace: v1alpha1.PlatformNamespace, Name: Name, Labels: ownLabels()}
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: account.Namespace, Name: account.Name}}
	out := []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.PlatformNamespace, Labels: map[string]string{
			"pod-security.kubernetes.io/enforce": "restricted",
		}}},
		&corev1.ServiceAccount{ObjectMeta: account},
	}
	for _, role := range clusterRoles() {
		out = append(out, role)
	}
	for _, role := range controllerRoles() {
		out = append(out, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role.Name, Labels: ownLabels()},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
			Subjects:   subjects,
		})
	}
	return append(out,
		&rbacv1.Role{ObjectMeta: account, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{coordinationv1.GroupName}, Resources: []string{"leases"}, Verbs: []string{"get", "create", "update"},
		}}},
		&rbacv1.RoleBinding{ObjectMeta: account, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: Name}, Subjects: subjects},
		deployment(opts))
}

func ownLabels() map[string]string { return map[string]string{labelName: Name} }

// controllerRoles are what the account may do everywhere, clusterRoles these and those for people.
func controllerRoles() []*rbacv1.ClusterRole {
	events := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "gantry:events"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch", "update"}}},
	}
	return []*rbacv1.ClusterRole{app.ControllerRole(), addon.ControllerRole(), events}
}

func clusterRoles() []*rbacv1.ClusterRole {
	out := append(controllerRoles(), app.ProjectRoles()...)
	for _, role := range out {
		if role.Labels == nil {
			role.Labels = map[string]string{}
		}
		role.Labels[labelName] = Name
	}
	return out
}

// deployment runs as many copies as asked for; one of them leads, and the others wait.
func deployment(opts InstallOptions) *appsv1.Deployment {
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: ownLabels()}, Spec: podSpec(opts.Image)}
	if opts.PullSecret != "" {
		template.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: opts.PullSecret}}
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: v1alpha1.PlatformNamespace, Name: Name, Labels: ownLabels(), Annotations: map[string]string{annotationVersion: opts.Version},
		},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(opts.Replicas), Selector: &metav1.LabelSelector{MatchLabels: ownLabels()}, Template: template,
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{
				MaxSurge: new(intstr.FromInt32(1)), MaxUnavailable: new(intstr.FromInt32(0)),
			}},
		},
	}
}

func podSpec(image string) corev1.PodSpec {
	probe := func(path string, period int32) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(HealthPort), Scheme: corev1.URISchemeHTTP}},
			PeriodSeconds: period, TimeoutSeconds: 3, FailureThreshold: 3, SuccessThreshold: 1,
		}
	}
	return corev1.PodSpec{
		ServiceAccountName: Name,
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot: new(true), RunAsUser: new(int64(65532)), RunAsGroup: new(int64(65532)),
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{
			Name: "platform", Image: image, ImagePullPolicy: corev1.PullIfNotPresent, Args: []string{"platform", "run"},
			Env:   []corev1.EnvVar{{Name: "GOMEMLIMIT", Value: "200MiB"}},
			Ports: []corev1.ContainerPort{{Name: "health", ContainerPort: HealthPort, Protocol: corev1.ProtocolTCP}},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("96Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("384Mi")},
			},
			ReadinessProbe: probe("/readyz", 2), LivenessProbe: probe("/healthz", 10),
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
			TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		}},
	}
}

// Manifests are all objects that Install makes, definitions first, as they are sent.
func Manifests(opts InstallOptions) ([]*unstructured.Unstructured, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	definitions, err := app.Definitions(kinds()...)
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, d := range definitions {
		object, err := d.Object()
		if err != nil {
			return nil, err
		}
		out = append(out, object)
	}
	all := objects(opts)
	if settings := opts.settings(); len(settings) > 0 {
		all = append(all, configMap(settings))
	}
	for _, object := range all {
		plain, err := toPlain(object)
		if err != nil {
			return nil, err
		}
		out = append(out, plain)
	}
	return out, nil
}

func configMap(settings map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.PlatformNamespace, Name: v1alpha1.PlatformConfig}, Data: settings}
}

// toPlain is an object with its kind and without what a server fills in.
func toPlain(object client.Object) (*unstructured.Unstructured, error) {
	known, err := newScheme()
	if err != nil {
		return nil, err
	}
	gvks, _, err := known.ObjectKinds(object)
	if err != nil {
		return nil, fmt.Errorf("encoding the %T %s: %w", object, object.GetName(), err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return nil, fmt.Errorf("encoding the %T %s: %w", object, object.GetName(), err)
	}
	out := &unstructured.Unstructured{Object: content}
	out.SetGroupVersionKind(gvks[0])
	for _, path := range [][]string{{"status"}, {"metadata", "creationTimestamp"}, {"spec", "template", "metadata", "creationTimestamp"}} {
		unstructured.RemoveNestedField(out.Object, path...)
	}
	if out.GetKind() == "Namespace" {
		unstructured.RemoveNestedField(out.Object, "spec")
	}
	return out, nil
}
