package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/app"
)

const (
	defaultTimeout = 3 * time.Minute
	pollEvery      = 300 * time.Millisecond
)

// InstallOptions says what Install makes.
type InstallOptions struct {
	Image      string // whose entry point is gantry; "" keeps that of an installation that is there
	PullSecret string // in the platform's namespace; "" is none
	Replicas   int32  // of the controllers, of which one works; default 1, at most 10
	Version    string // of Gantry, noted on the Deployment

	// Settings of the platform; "" leaves what is there.
	Domain, PublicAddress, IngressClass, ClusterIssuer string

	NoWait  bool                 // return before the controllers run
	Timeout time.Duration        // of the whole; default 3m
	Step    func(message string) // told of each thing done; default nobody
}

func (o *InstallOptions) check() error {
	o.Replicas, o.Timeout = cmp.Or(o.Replicas, 1), cmp.Or(o.Timeout, defaultTimeout)
	if o.Step == nil {
		o.Step = func(string) {}
	}
	switch {
	case o.Image == "":
		return ErrNoImage
	case o.Replicas < 1 || o.Replicas > 10:
		return fmt.Errorf("remote: Replicas is %d, want 1 to 10", o.Replicas)
	}
	return nil
}

func (o *InstallOptions) settings() map[string]string {
	out := map[string]string{}
	for key, value := range map[string]string{
		v1alpha1.PlatformKeyDomain: o.Domain, v1alpha1.PlatformKeyAddress: o.PublicAddress, v1alpha1.PlatformKeyIngressClass: o.IngressClass,
		v1alpha1.PlatformKeyIssuer: o.ClusterIssuer,
	} {
		if value != "" {
			out[key] = value
		}
	}
	return out
}

// ErrNoImage says that nobody said which image the controllers run.
var ErrNoImage = errors.New("the controllers need an image")

// installer is one call of Install.
type installer struct {
	client.Client
	opts    InstallOptions
	changed int
}

// Install makes the platform in a cluster, or brings one that is there up to this version. What is as it should be stays untouched.
// It looks whether it can be done before it changes anything: errors are *VersionError and *DeniedError, ErrNoImage, and *NotReadyError
// where the controllers do not come up.
func Install(ctx context.Context, config *rest.Config, opts InstallOptions) error {
	c, err := newClient(config)
	if err != nil {
		return err
	}
	if opts.Image == "" {
		if opts.Image, err = installedImage(ctx, c); err != nil {
			return err
		}
	}
	if err := opts.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()
	in := &installer{Client: c, opts: opts}
	version, err := checkVersion(config)
	if err != nil {
		return err
	}
	opts.Step("Kubernetes " + version + " at " + config.Host)
	if err := in.checkRights(ctx); err != nil {
		return err
	}
	if err := app.InstallDefinitions(ctx, c, func(name string) { in.wrote("definition", name, "applied") }, kinds()...); err != nil {
		return err
	}
	for _, object := range objects(opts) {
		if err := in.apply(ctx, object); err != nil {
			return err
		}
	}
	if err := in.configure(ctx); err != nil {
		return err
	}
	if in.changed == 0 {
		opts.Step("nothing had to be changed")
	}
	if opts.NoWait {
		return nil
	}
	return in.await(ctx)
}

// installedImage is the image of an installation that is there; "" is none.
func installedImage(ctx context.Context, c client.Client) (string, error) {
	there := &appsv1.Deployment{}
	err := c.Get(ctx, client.ObjectKey{Namespace: v1alpha1.PlatformNamespace, Name: Name}, there)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking for an installation: %w", err)
	}
	if len(there.Spec.Template.Spec.Containers) == 0 {
		return "", nil
	}
	return there.Spec.Template.Spec.Containers[0].Image, nil
}

func (in *installer) wrote(kind, name, how string) {
	in.changed++
	in.opts.Step(fmt.Sprintf("%s %s %s", kind, name, how))
}

// apply makes an object what it should be, and leaves alone what others have set of it.
func (in *installer) apply(ctx context.Context, object client.Object) error {
	plain, err := toPlain(object)
	if err != nil {
		return err
	}
	doing := fmt.Sprintf("making the %s %s", plain.GetKind(), plain.GetName())
	before := &metav1.PartialObjectMetadata{}
	before.SetGroupVersionKind(plain.GroupVersionKind())
	err = in.Get(ctx, client.ObjectKeyFromObject(plain), before)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if err := in.Client.Apply(ctx, applied(plain), client.FieldOwner(Name), client.ForceOwnership); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	switch {
	case err != nil:
		in.wrote(plain.GetKind(), plain.GetName(), "created")
	case before.ResourceVersion != plain.GetResourceVersion():
		in.wrote(plain.GetKind(), plain.GetName(), "changed")
	}
	return nil
}

func applied(u *unstructured.Unstructured) runtime.ApplyConfiguration {
	return client.ApplyConfigurationFromUnstructured(u)
}

// configure sets what was said of the platform's settings; others stay.
func (in *installer) configure(ctx context.Context) error {
	settings := in.opts.settings()
	if len(settings) == 0 {
		return nil
	}
	wanted := configMap(settings)
	there := &corev1.ConfigMap{}
	err := in.Get(ctx, client.ObjectKeyFromObject(wanted), there)
	if apierrors.IsNotFound(err) {
		if err := in.Create(ctx, wanted); err != nil {
			return fmt.Errorf("writing the platform's settings: %w", err)
		}
		in.wrote("ConfigMap", wanted.Name, "created")
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the platform's settings: %w", err)
	}
	next := there.DeepCopy()
	if next.Data == nil {
		next.Data = map[string]string{}
	}
	differs := false
	for key, value := range settings {
		differs = differs || next.Data[key] != value
		next.Data[key] = value
	}
	if !differs {
		return nil
	}
	if err := in.Patch(ctx, next, client.MergeFrom(there)); err != nil {
		return fmt.Errorf("writing the platform's settings: %w", err)
	}
	in.wrote("ConfigMap", wanted.Name, "changed")
	return nil
}

// await waits until the controllers of this version are ready.
func (in *installer) await(ctx context.Context) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	said := ""
	for {
		problem, fatal, err := in.look(ctx)
		switch {
		case err == nil && problem == "":
			in.opts.Step("the controllers are ready")
			return nil
		case err == nil && fatal:
			return &NotReadyError{Image: in.opts.Image, Problem: problem}
		case err == nil && problem != said:
			said = problem
			in.opts.Step("waiting: " + problem)
		}
		select {
		case <-ctx.Done():
			if err != nil {
				return fmt.Errorf("looking at the controllers: %w", err)
			}
			return &NotReadyError{Image: in.opts.Image, Problem: problem}
		case <-ticker.C:
		}
	}
}

// look says what the controllers lack; fatal is what waiting does not help.
func (in *installer) look(ctx context.Context) (problem string, fatal bool, err error) {
	d := &appsv1.Deployment{}
	if err := in.Get(ctx, client.ObjectKey{Namespace: v1alpha1.PlatformNamespace, Name: Name}, d); err != nil {
		return "", false, err
	}
	want := in.opts.Replicas
	if s := d.Status; s.ObservedGeneration >= d.Generation && s.UpdatedReplicas == want && s.AvailableReplicas == want && s.Replicas == want {
		return "", false, nil
	}
	problem = fmt.Sprintf("%d of %d controllers are ready", min(d.Status.UpdatedReplicas, d.Status.AvailableReplicas), want)
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			return "their pods cannot be made: " + c.Message, false, nil
		}
	}
	var pods corev1.PodList
	if err := in.List(ctx, &pods, client.InNamespace(d.Namespace), client.MatchingLabels(ownLabels())); err != nil {
		return problem, false, nil // who may not see pods waits without knowing
	}
	for i := range pods.Items {
		if text, bad := podProblem(&pods.Items[i], in.opts.Image); text != "" {
			return text, bad, nil
		}
	}
	return problem, false, nil
}

// podProblem says why a pod with an image does not become ready.
func podProblem(pod *corev1.Pod, image string) (problem string, fatal bool) {
	if pod.DeletionTimestamp != nil || len(pod.Spec.Containers) == 0 || pod.Spec.Containers[0].Image != image {
		return "", false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Message != "" {
			return "no node takes their pod: " + c.Message, false
		}
	}
	for _, status := range pod.Status.ContainerStatuses {
		if ended := status.LastTerminationState.Terminated; ended != nil && status.State.Running == nil {
			return fmt.Sprintf("their pod ended with %d: %s", ended.ExitCode, ended.Message), status.RestartCount > 2
		}
		if w := status.State.Waiting; w != nil && w.Message != "" {
			return w.Reason + ": " + w.Message, w.Reason == "ImagePullBackOff" || w.Reason == "InvalidImageName" || w.Reason == "ErrImageNeverPull"
		}
	}
	return "", false
}

// NotReadyError says why the controllers do not come up.
type NotReadyError struct{ Image, Problem string }

func (e *NotReadyError) Error() string {
	return "everything is installed, and the controllers do not come up: " + e.Problem
}

func newScheme() (*runtime.Scheme, error) {
	known, err := app.NewScheme()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(rbacv1.AddToScheme(known), authorizationv1.AddToScheme(known), coordinationv1.AddToScheme(known)); err != nil {
		return nil, fmt.Errorf("making the scheme of the platform: %w", err)
	}
	return known, nil
}

func newClient(config *rest.Config) (client.Client, error) {
	known, err := newScheme()
	if err != nil {
		return nil, err
	}
	c, err := client.New(config, client.Options{Scheme: known})
	if err != nil {
		return nil, fmt.Errorf("making a client of the cluster: %w", err)
	}
	return c, nil
}
