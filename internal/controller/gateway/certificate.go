package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/network/routes/compile"
)

// annotationUnused is since when nobody needs a certificate.
const annotationUnused = "gateway.gantry.dev/unused-since"

// certificateName is the Secret of a host's certificate.
func certificateName(host string) string {
	return "certificate-" + strings.ReplaceAll(strings.ReplaceAll(host, "*", "wildcard"), ":", "-")
}

// wantCertificates makes a Secret for each host that needs a certificate, and removes those that
// nobody has needed for long.
func (c *Controller) wantCertificates(ctx context.Context, hosts []string) error {
	c.mu.Lock()
	there := map[string]*corev1.Secret{}
	for key, secret := range c.objects.Secrets {
		if key.Namespace == compile.Namespace && secret.Labels[compile.LabelCertificate] != "" {
			there[secret.Annotations[compile.AnnotationHost]] = secret
		}
	}
	c.mu.Unlock()
	var errs []error
	for _, host := range hosts {
		secret := there[host]
		delete(there, host)
		switch {
		case secret == nil:
			errs = append(errs, client.IgnoreAlreadyExists(c.client.Create(ctx, certificateSecret(host))))
		case secret.Annotations[annotationUnused] != "":
			next := secret.DeepCopy()
			delete(next.Annotations, annotationUnused)
			errs = append(errs, c.client.Update(ctx, next))
		}
	}
	now := time.Now()
	for host, secret := range there {
		since, err := time.Parse(time.RFC3339, secret.Annotations[annotationUnused])
		switch {
		case err != nil:
			next := secret.DeepCopy()
			next.Annotations[annotationUnused] = now.UTC().Format(time.RFC3339)
			errs = append(errs, client.IgnoreNotFound(c.client.Update(ctx, next)))
		case now.Sub(since) > c.opts.Keep:
			if err := client.IgnoreNotFound(c.client.Delete(ctx, secret.DeepCopy())); err != nil {
				errs = append(errs, fmt.Errorf("removing the certificate of %s, which nobody needs: %w", host, err))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("asking for certificates: %w", err)
	}
	return nil
}

// certificateSecret is one that still has to be filled.
func certificateSecret(host string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: compile.Namespace, Name: certificateName(host),
			Labels: map[string]string{compile.LabelCertificate: "host"}, Annotations: map[string]string{compile.AnnotationHost: host}},
		Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: {}, corev1.TLSPrivateKeyKey: {}},
	}
}
