package bootstrap

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	"k8s.io/cluster-bootstrap/token/jws"
	"k8s.io/cluster-bootstrap/util/secrets"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Signer keeps the signatures in kube-public/cluster-info.
type Signer struct {
	client    client.Client
	informers controller.Informers
	loop      *controller.Loop
}

// NewSigner returns a Signer that has started nothing; call Run.
func NewSigner(c client.Client, informers controller.Informers, opts Options) (*Signer, error) {
	s := &Signer{client: c, informers: informers}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "bootstrap-signer", Workers: 1, Log: opts.Log, Reconcile: s.reconcile})
	if err != nil {
		return nil, err
	}
	info := controller.Key{Namespace: metav1.NamespacePublic, Name: bootstrapapi.ConfigMapClusterInfo}
	loop.Watch(&corev1.ConfigMap{}, func(_, current client.Object) {
		if current != nil && controller.KeyOf(current) == info {
			loop.Add(info)
		}
	})
	loop.Watch(&corev1.Secret{}, func(old, current client.Object) {
		if isToken(current) || isToken(old) {
			loop.Add(info)
		}
	})
	s.loop = loop
	return s, nil
}

// Run reconciles until ctx ends.
func (s *Signer) Run(ctx context.Context) error { return s.loop.Run(ctx, s.informers) }

func (s *Signer) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var info corev1.ConfigMap
	if err := s.client.Get(ctx, key, &info); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	content, found := info.Data[bootstrapapi.KubeConfigKey]
	if !found {
		return 0, nil
	}
	var list corev1.SecretList
	if err := s.client.List(ctx, &list, client.InNamespace(metav1.NamespaceSystem)); err != nil {
		return 0, fmt.Errorf("reading the bootstrap tokens: %w", err)
	}
	data, err := planSignatures(info.Data, content, list.Items, time.Now())
	if err != nil || maps.Equal(data, info.Data) {
		return 0, err
	}
	next := info.DeepCopy()
	next.Data = data
	if err := client.IgnoreNotFound(s.client.Update(ctx, next)); err != nil {
		return 0, fmt.Errorf("signing %s: %w", key, err)
	}
	return 0, nil
}

// planSignatures is data with the signatures of all tokens that may sign content, and no others.
func planSignatures(data map[string]string, content string, tokens []corev1.Secret, now time.Time) (map[string]string, error) {
	out := maps.Clone(data)
	maps.DeleteFunc(out, func(name, _ string) bool { return strings.HasPrefix(name, bootstrapapi.JWSSignatureKeyPrefix) })
	for i := range tokens {
		id, secret, ok := signing(&tokens[i], now)
		if !ok {
			continue
		}
		signature, err := jws.ComputeDetachedSignature(content, id, secret)
		if err != nil {
			return nil, fmt.Errorf("signing with bootstrap token %s: %w", id, err)
		}
		out[bootstrapapi.JWSSignatureKeyPrefix+id] = signature
	}
	return out, nil
}

// signing returns the token in secret if it is whole, has not expired and may sign.
func signing(secret *corev1.Secret, now time.Time) (id, key string, ok bool) {
	named, ok := secrets.ParseName(secret.Name)
	id, key = secrets.GetData(secret, bootstrapapi.BootstrapTokenIDKey), secrets.GetData(secret, bootstrapapi.BootstrapTokenSecretKey)
	return id, key, ok && isToken(secret) && secret.DeletionTimestamp == nil && id == named && key != "" && !secrets.HasExpired(secret, now) &&
		secrets.GetData(secret, bootstrapapi.BootstrapTokenUsageSigningKey) == "true"
}
