// Command operator is a small controller-runtime manager, for tests: it reconciles gauges into config
// maps that they own, elects a leader among its instances, and serves a mutating and a validating
// webhook for gauges. KUBECONFIG names the cluster.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// finalizer lets the operator see the deletion of a gauge.
const finalizer = "operator.example.com/count"

type options struct {
	name, namespace, certs string
	port                   int
}

func main() {
	var o options
	flag.StringVar(&o.name, "name", "operator", "of this instance")
	flag.StringVar(&o.namespace, "namespace", "default", "to work in")
	flag.StringVar(&o.certs, "certs", "", "folder with tls.crt and tls.key")
	flag.IntVar(&o.port, "port", 9443, "of the webhooks")
	flag.Parse()
	ctrl.SetLogger(zap.New())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, o)
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "operator:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return fmt.Errorf("make the scheme: %w", err)
	}
	addToScheme(scheme)
	where, err := config.GetConfig()
	if err != nil {
		return fmt.Errorf("find the cluster: %w", err)
	}
	lease, renew, retry := 3*time.Second, 2*time.Second, 200*time.Millisecond
	m, err := manager.New(where, manager.Options{
		Scheme: scheme, Metrics: server.Options{BindAddress: "0"}, Cache: cache.Options{DefaultNamespaces: map[string]cache.Config{o.namespace: {}}},
		LeaderElection: true, LeaderElectionID: "gauges", LeaderElectionNamespace: o.namespace,
		LeaseDuration: &lease, RenewDeadline: &renew, RetryPeriod: &retry, LeaderElectionReleaseOnCancel: false,
		WebhookServer: webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: o.port, CertDir: o.certs}),
	})
	if err != nil {
		return fmt.Errorf("make the manager: %w", err)
	}
	r := &reconciler{client: m.GetClient(), scheme: scheme, name: o.name}
	if err := ctrl.NewControllerManagedBy(m).For(&Gauge{}).Owns(&corev1.ConfigMap{}).Complete(r); err != nil {
		return fmt.Errorf("make the controller: %w", err)
	}
	if err := ctrl.NewWebhookManagedBy(m, &Gauge{}).WithDefaulter(hooks{}).WithValidator(hooks{}).Complete(); err != nil {
		return fmt.Errorf("make the webhooks: %w", err)
	}
	return m.Start(ctx)
}

type reconciler struct {
	client client.Client
	scheme *runtime.Scheme
	name   string
}

// Reconcile implements reconcile.Reconciler.
func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var gauge Gauge
	if err := r.client.Get(ctx, request.NamespacedName, &gauge); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if gauge.DeletionTimestamp != nil {
		controllerutil.RemoveFinalizer(&gauge, finalizer)
		return ctrl.Result{}, client.IgnoreNotFound(r.client.Update(ctx, &gauge))
	}
	if controllerutil.AddFinalizer(&gauge, finalizer) {
		return ctrl.Result{}, r.client.Update(ctx, &gauge)
	}
	shown := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: gauge.Namespace, Name: gauge.Name}}
	_, err := controllerutil.CreateOrUpdate(ctx, r.client, shown, func() error {
		shown.Data = map[string]string{"level": strconv.Itoa(gauge.Spec.Level) + " " + gauge.Spec.Unit}
		return controllerutil.SetControllerReference(&gauge, shown, r.scheme)
	})
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("show the level: %w", err)
	}
	status := GaugeStatus{Shown: shown.Data["level"], By: r.name}
	if gauge.Status.Shown == status.Shown {
		return ctrl.Result{}, nil
	}
	before := gauge.DeepCopyObject().(*Gauge)
	gauge.Status = status
	return ctrl.Result{}, r.client.Status().Patch(ctx, &gauge, client.MergeFrom(before))
}

// hooks are the webhooks.
type hooks struct{}

// Default fills in the unit.
func (hooks) Default(_ context.Context, gauge *Gauge) error {
	if gauge.Spec.Unit == "" {
		gauge.Spec.Unit = "bar"
	}
	return nil
}

// ValidateCreate refuses what is too high and warns of what is high.
func (hooks) ValidateCreate(_ context.Context, gauge *Gauge) (admission.Warnings, error) {
	switch {
	case gauge.Spec.Level > 100:
		return nil, fmt.Errorf("a level of %d is too high", gauge.Spec.Level)
	case gauge.Spec.Level > 50:
		return admission.Warnings{"that is high"}, nil
	}
	return nil, nil
}

// ValidateUpdate refuses what ValidateCreate refuses.
func (h hooks) ValidateUpdate(ctx context.Context, _, gauge *Gauge) (admission.Warnings, error) {
	return h.ValidateCreate(ctx, gauge)
}

// ValidateDelete allows it.
func (hooks) ValidateDelete(context.Context, *Gauge) (admission.Warnings, error) { return nil, nil }
