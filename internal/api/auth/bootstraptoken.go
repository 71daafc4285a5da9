package auth

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/kubernetes/plugin/pkg/auth/authenticator/token/bootstrap"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// newBootstrapTokens accepts what machines join with: "id.secret", kept in a Secret of kube-system. Upstream decides.
func newBootstrapTokens(reader client.Reader) authenticator.Token {
	return bootstrap.NewTokenAuthenticator(systemSecrets{reader: reader})
}

// systemSecrets gives upstream the Secrets of kube-system.
type systemSecrets struct {
	corelisters.SecretNamespaceListerExpansion
	reader client.Reader
}

var _ corelisters.SecretNamespaceLister = systemSecrets{}

// Get implements upstream's lister.
func (s systemSecrets) Get(name string) (*corev1.Secret, error) {
	secret := &corev1.Secret{}
	return secret, s.reader.Get(context.Background(), client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: name}, secret)
}

// List implements upstream's lister.
func (s systemSecrets) List(selector labels.Selector) ([]*corev1.Secret, error) {
	var list corev1.SecretList
	if err := s.reader.List(context.Background(), &list, client.InNamespace(metav1.NamespaceSystem), client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return nil, err
	}
	out := make([]*corev1.Secret, len(list.Items))
	for i := range list.Items {
		out[i] = &list.Items[i]
	}
	return out, nil
}
