package volume

import (
	"context"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ClientSource reads what volumes are made of through an API client.
type ClientSource struct{ Client client.Client }

// ConfigMap implements Source.
func (s ClientSource) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	object := &corev1.ConfigMap{}
	if err := s.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object); err != nil {
		return nil, err
	}
	return object, nil
}

// Secret implements Source.
func (s ClientSource) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	object := &corev1.Secret{}
	if err := s.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object); err != nil {
		return nil, err
	}
	return object, nil
}

// Claim implements Source.
func (s ClientSource) Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	object := &corev1.PersistentVolumeClaim{}
	if err := s.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object); err != nil {
		return nil, err
	}
	return object, nil
}

// Volume implements Source.
func (s ClientSource) Volume(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	object := &corev1.PersistentVolume{}
	if err := s.Client.Get(ctx, client.ObjectKey{Name: name}, object); err != nil {
		return nil, err
	}
	return object, nil
}

// Token implements Source by a TokenRequest.
func (s ClientSource) Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, time.Time, error) {
	name := pod.Spec.ServiceAccountName
	if name == "" {
		name = "default"
	}
	request := &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: &seconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
		},
	}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: name}}
	if err := s.Client.SubResource("token").Create(ctx, account, request); err != nil {
		return "", time.Time{}, err
	}
	return request.Status.Token, request.Status.ExpirationTimestamp.Time, nil
}

// Roots implements Source.
func (s ClientSource) Roots(ctx context.Context, p *corev1.ClusterTrustBundleProjection) (string, error) {
	var list []certificatesv1beta1.ClusterTrustBundle
	switch {
	case p.Name != nil:
		var bundle certificatesv1beta1.ClusterTrustBundle
		if err := s.Client.Get(ctx, client.ObjectKey{Name: *p.Name}, &bundle); err != nil {
			if isTrue(p.Optional) && client.IgnoreNotFound(err) == nil {
				return "", nil
			}
			return "", err
		}
		list = append(list, bundle)
	case p.SignerName != nil:
		selector, err := metav1.LabelSelectorAsSelector(p.LabelSelector)
		if err != nil {
			return "", fmt.Errorf("reading the label selector of the trust bundle: %w", err)
		}
		var all certificatesv1beta1.ClusterTrustBundleList
		if err := s.Client.List(ctx, &all); err != nil {
			return "", err
		}
		for _, b := range all.Items {
			if b.Spec.SignerName == *p.SignerName && selector.Matches(labels.Set(b.Labels)) {
				list = append(list, b)
			}
		}
		if len(list) == 0 && !isTrue(p.Optional) {
			return "", fmt.Errorf("no ClusterTrustBundle of signer %q matches", *p.SignerName)
		}
	}
	text := ""
	for _, b := range list {
		text += b.Spec.TrustBundle
	}
	return text, nil
}
