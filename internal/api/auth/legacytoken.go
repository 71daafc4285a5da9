package auth

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Patcher writes down when a token of a Secret was used last. client.Client satisfies it.
type Patcher interface {
	Patch(ctx context.Context, obj client.Object, patch client.Patch, opts ...client.PatchOption) error
}

// newLegacyTokens accepts the tokens in Secrets of type kubernetes.io/service-account-token. They never expire; they
// hold as long as the Secret does. Upstream decides.
func newLegacyTokens(opts Options, keys serviceaccount.PublicKeysGetter, reader tokenGetter) (authenticator.Token, error) {
	validator, err := serviceaccount.NewLegacyValidator(true, reader, secretPatcher{patcher: opts.Patcher})
	if err != nil {
		return nil, fmt.Errorf("auth: accepting tokens of Secrets: %w", err)
	}
	return serviceaccount.JWTTokenAuthenticator([]string{serviceaccount.LegacyIssuer}, keys, opts.Audiences, validator), nil
}

// LegacyToken makes the token that belongs into secret, which is account's. It has no end.
func (a *Authenticator) LegacyToken(ctx context.Context, account *corev1.ServiceAccount, secret *corev1.Secret) (string, error) {
	generator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, a.opts.SigningKey)
	if err != nil {
		return "", fmt.Errorf("making the token signer: %w", err)
	}
	public, private := serviceaccount.LegacyClaims(*account, *secret)
	return generator.GenerateToken(ctx, public, private)
}

// secretPatcher lets upstream label Secrets through a Patcher; without one the label is left out.
type secretPatcher struct {
	typedcorev1.SecretInterface // only Patch is ever called
	namespace                   string
	patcher                     Patcher
}

// Secrets implements upstream's SecretsGetter.
func (s secretPatcher) Secrets(namespace string) typedcorev1.SecretInterface {
	s.namespace = namespace
	return s
}

// Patch implements upstream's SecretInterface.
func (s secretPatcher) Patch(ctx context.Context, name string, kind types.PatchType, data []byte, _ metav1.PatchOptions, _ ...string) (*corev1.Secret, error) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name}}
	if s.patcher == nil {
		return secret, nil
	}
	return secret, s.patcher.Patch(ctx, secret, client.RawPatch(kind, data))
}
