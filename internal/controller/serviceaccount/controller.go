package serviceaccount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// What each namespace gets.
const (
	accountName   = "default"
	configMapName = "kube-root-ca.crt"

	annotationDescription = "kubernetes.io/description"
	description           = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. " +
		"No other usage is guaranteed across distributions of Kubernetes clusters."
)

// Options tunes a Controller.
type Options struct {
	RootCA  []byte       // PEM bundle that verifies the API server; required
	Workers int          // namespaces at once; default 4
	Log     *slog.Logger // default: discard
}

// Controller keeps the two objects in every namespace.
type Controller struct {
	client    client.Client
	informers controller.Informers
	rootCA    string
	loop      *controller.Loop
}

// New checks opts and returns a controller that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, opts Options) (*Controller, error) {
	if len(opts.RootCA) == 0 {
		return nil, errors.New("serviceaccount: Options.RootCA is missing")
	}
	sc := &Controller{client: c, informers: informers, rootCA: string(opts.RootCA)}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "serviceaccount", Workers: opts.Workers, Log: opts.Log, Reconcile: sc.reconcile})
	if err != nil {
		return nil, err
	}
	loop.Watch(&corev1.Namespace{}, func(old, current client.Object) {
		if current != nil && current.GetDeletionTimestamp() == nil && (old == nil || old.GetUID() != current.GetUID()) {
			loop.Add(controller.Key{Name: current.GetName()})
		}
	})
	again := func(name string) func(old, current client.Object) {
		return func(old, current client.Object) {
			if old != nil && old.GetName() == name {
				loop.Add(controller.Key{Name: old.GetNamespace()})
			}
		}
	}
	loop.Watch(&corev1.ServiceAccount{}, again(accountName))
	loop.Watch(&corev1.ConfigMap{}, again(configMapName))
	sc.loop = loop
	return sc, nil
}

// Run reconciles until ctx ends.
func (sc *Controller) Run(ctx context.Context) error { return sc.loop.Run(ctx, sc.informers) }

// Stats returns the counts of the controller's loop.
func (sc *Controller) Stats() controller.LoopStats { return sc.loop.Stats() }

func (sc *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var ns corev1.Namespace
	if err := sc.client.Get(ctx, key, &ns); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return 0, nil
	}
	return 0, errors.Join(sc.ensureAccount(ctx, ns.Name), sc.ensureRootCA(ctx, ns.Name))
}

func (sc *Controller) ensureAccount(ctx context.Context, namespace string) error {
	key := types.NamespacedName{Namespace: namespace, Name: accountName}
	err := sc.client.Get(ctx, key, &corev1.ServiceAccount{})
	if !apierrors.IsNotFound(err) {
		return err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: accountName}}
	return ignoreRaces("creating the service account", sc.client.Create(ctx, account))
}

func (sc *Controller) ensureRootCA(ctx context.Context, namespace string) error {
	key := types.NamespacedName{Namespace: namespace, Name: configMapName}
	data := map[string]string{"ca.crt": sc.rootCA}
	var have corev1.ConfigMap
	err := sc.client.Get(ctx, key, &have)
	if apierrors.IsNotFound(err) {
		made := &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: configMapName, Annotations: map[string]string{annotationDescription: description}},
			Data:       data,
		}
		return ignoreRaces("creating the root CA's config map", sc.client.Create(ctx, made))
	}
	if err != nil || (maps.Equal(have.Data, data) && have.Annotations[annotationDescription] != "") {
		return err
	}
	next := have.DeepCopy()
	next.Data = data
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	next.Annotations[annotationDescription] = description
	return ignoreRaces("updating the root CA's config map", sc.client.Update(ctx, next))
}

// ignoreRaces drops errors that another writer or the end of the namespace explains.
func ignoreRaces(doing string, err error) error {
	if err == nil || apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}
