package bootstrap

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	"k8s.io/cluster-bootstrap/util/secrets"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Options tunes a Cleaner or Signer.
type Options struct {
	Log *slog.Logger // default: discard
}

// isToken reports whether object is a bootstrap token.
func isToken(object client.Object) bool {
	secret, ok := object.(*corev1.Secret)
	return ok && secret.Namespace == metav1.NamespaceSystem && secret.Type == bootstrapapi.SecretTypeBootstrapToken
}

// Cleaner removes tokens that have expired.
type Cleaner struct {
	client    client.Client
	informers controller.Informers
	loop      *controller.Loop
}

// NewCleaner returns a Cleaner that has started nothing; call Run.
func NewCleaner(c client.Client, informers controller.Informers, opts Options) (*Cleaner, error) {
	tc := &Cleaner{client: c, informers: informers}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "bootstrap-token-cleaner", Workers: 1, Log: opts.Log, Reconcile: tc.reconcile})
	if err != nil {
		return nil, err
	}
	loop.Watch(&corev1.Secret{}, func(_, current client.Object) {
		if isToken(current) {
			loop.Add(controller.KeyOf(current))
		}
	})
	tc.loop = loop
	return tc, nil
}

// Run reconciles until ctx ends.
func (tc *Cleaner) Run(ctx context.Context) error { return tc.loop.Run(ctx, tc.informers) }

func (tc *Cleaner) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var secret corev1.Secret
	if err := tc.client.Get(ctx, key, &secret); err != nil || !isToken(&secret) {
		return 0, client.IgnoreNotFound(err)
	}
	left, expired := secrets.GetExpiration(&secret, time.Now())
	if !expired {
		return left, nil
	}
	err := client.IgnoreNotFound(tc.client.Delete(ctx, &secret, client.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion}))
	if err != nil && !apierrors.IsConflict(err) {
		return 0, fmt.Errorf("removing an expired bootstrap token: %w", err)
	}
	return 0, nil // after a conflict it comes again
}
