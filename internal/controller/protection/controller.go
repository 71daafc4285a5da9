package protection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Kind is a kind that is protected.
type Kind string

// The kinds that are protected.
const (
	Claims  Kind = "pvc" // persistent volume claims, while a pod on a node uses them
	Volumes Kind = "pv"  // persistent volumes, while a claim has them
	Classes Kind = "vac" // volume attributes classes, while a claim or a volume has them
)

// finalizer is upstream's (kubernetes, pkg/volume/util/finalizer.go).
func (k Kind) finalizer() string { return "kubernetes.io/" + string(k) + "-protection" }

// Options tunes a Controller.
type Options struct {
	Kind Kind         // required
	Log  *slog.Logger // default: discard
}

// Controller protects the objects of one kind.
type Controller struct {
	client    client.Client
	informers controller.Informers
	kind      Kind
	loop      *controller.Loop
}

// New checks opts and returns a controller that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, opts Options) (*Controller, error) {
	pc := &Controller{client: c, informers: informers, kind: opts.Kind}
	var err error
	pc.loop, err = controller.NewLoop(controller.LoopOptions{Name: string(opts.Kind) + "-protection", Log: opts.Log, Reconcile: pc.reconcile})
	if err != nil {
		return nil, err
	}
	switch opts.Kind {
	case Claims:
		pc.watchClaims()
	case Volumes:
		pc.loop.Watch(&corev1.PersistentVolume{}, pc.leaving)
	case Classes:
		pc.watchClasses()
	default:
		return nil, fmt.Errorf("protection: Options.Kind is %q", opts.Kind)
	}
	return pc, nil
}

// Run reconciles until ctx ends.
func (pc *Controller) Run(ctx context.Context) error { return pc.loop.Run(ctx, pc.informers) }

// leaving asks for a look at an object that is being deleted.
func (pc *Controller) leaving(_, current client.Object) {
	if current != nil && current.GetDeletionTimestamp() != nil {
		pc.loop.Add(controller.KeyOf(current))
	}
}

func (pc *Controller) watchClaims() {
	pc.loop.Watch(&corev1.PersistentVolumeClaim{}, pc.leaving)
	pc.loop.Watch(&corev1.Pod{}, func(old, current client.Object) {
		if pod, gone := old.(*corev1.Pod); gone && current == nil {
			for _, claim := range claimsOf(pod) {
				pc.loop.Add(controller.Key{Namespace: pod.Namespace, Name: claim})
			}
		}
	})
}

func (pc *Controller) watchClasses() {
	pc.loop.Watch(&storagev1.VolumeAttributesClass{}, pc.leaving)
	user := func(old, _ client.Object) {
		for _, class := range classesOf(old) {
			pc.loop.Add(controller.Key{Name: class})
		}
	}
	pc.loop.Watch(&corev1.PersistentVolumeClaim{}, user)
	pc.loop.Watch(&corev1.PersistentVolume{}, user)
}

func (pc *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var obj client.Object
	var used func(context.Context, client.Object) (bool, error)
	switch pc.kind {
	case Claims:
		obj, used = new(corev1.PersistentVolumeClaim), pc.claimUsed
	case Volumes:
		obj, used = new(corev1.PersistentVolume), volumeUsed
	case Classes:
		obj, used = new(storagev1.VolumeAttributesClass), pc.classUsed
	}
	if err := pc.client.Get(ctx, key, obj); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if obj.GetDeletionTimestamp() == nil || !slices.Contains(obj.GetFinalizers(), pc.kind.finalizer()) {
		return 0, nil
	}
	if yes, err := used(ctx, obj); yes || err != nil {
		return 0, err
	}
	next, ok := obj.DeepCopyObject().(client.Object)
	if !ok {
		return 0, errors.New("protection: a copy is no object")
	}
	next.SetFinalizers(slices.DeleteFunc(next.GetFinalizers(), func(f string) bool { return f == pc.kind.finalizer() }))
	if err := pc.client.Update(ctx, next); err != nil && !apierrors.IsNotFound(err) {
		return 0, fmt.Errorf("removing the finalizer: %w", err)
	}
	return 0, nil
}

// claimUsed reports whether a pod that has a node uses the claim. A pod that has none will not be
// started with a claim that is being deleted.
func (pc *Controller) claimUsed(ctx context.Context, claim client.Object) (bool, error) {
	var pods corev1.PodList
	if err := pc.client.List(ctx, &pods, client.InNamespace(claim.GetNamespace())); err != nil {
		return false, fmt.Errorf("listing pods: %w", err)
	}
	return slices.ContainsFunc(pods.Items, func(pod corev1.Pod) bool {
		return pod.Spec.NodeName != "" && slices.Contains(claimsOf(&pod), claim.GetName())
	}), nil
}

func volumeUsed(_ context.Context, obj client.Object) (bool, error) {
	volume, ok := obj.(*corev1.PersistentVolume)
	return ok && volume.Status.Phase == corev1.VolumeBound, nil
}

// classUsed reports whether a claim or a volume has the class, or is to get it.
func (pc *Controller) classUsed(ctx context.Context, class client.Object) (bool, error) {
	var claims corev1.PersistentVolumeClaimList
	if err := pc.client.List(ctx, &claims); err != nil {
		return false, fmt.Errorf("listing claims: %w", err)
	}
	for i := range claims.Items {
		if slices.Contains(classesOf(&claims.Items[i]), class.GetName()) {
			return true, nil
		}
	}
	var volumes corev1.PersistentVolumeList
	if err := pc.client.List(ctx, &volumes); err != nil {
		return false, fmt.Errorf("listing volumes: %w", err)
	}
	for i := range volumes.Items {
		if slices.Contains(classesOf(&volumes.Items[i]), class.GetName()) {
			return true, nil
		}
	}
	return false, nil
}

// claimsOf names the claims that a pod uses; those of generic ephemeral volumes too.
func claimsOf(pod *corev1.Pod) []string {
	var names []string
	for i := range pod.Spec.Volumes {
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			names = append(names, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			names = append(names, pod.Name+"-"+v.Name)
		}
	}
	return names
}

// classesOf names the volume attributes classes of a claim or a volume.
func classesOf(obj client.Object) []string {
	var names []string
	add := func(name *string) {
		if name != nil && *name != "" {
			names = append(names, *name)
		}
	}
	switch o := obj.(type) {
	case *corev1.PersistentVolumeClaim:
		if o == nil {
			return nil
		}
		add(o.Spec.VolumeAttributesClassName)
		add(o.Status.CurrentVolumeAttributesClassName)
		if modify := o.Status.ModifyVolumeStatus; modify != nil {
			add(&modify.TargetVolumeAttributesClassName)
		}
	case *corev1.PersistentVolume:
		if o == nil {
			return nil
		}
		add(o.Spec.VolumeAttributesClassName)
	}
	return names
}
