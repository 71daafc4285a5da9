package certs

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/network/routes/compile"
)

// AuthoritySecret holds the cluster's own authority for the gateway: ca.crt is what to trust.
const AuthoritySecret = "gateway-ca"

// Lives of what is issued here.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 90 * 24 * time.Hour
	skew          = time.Hour // clocks that are behind
)

// keyPair makes a key and its PEM.
func keyPair() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func serial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// authority reads the cluster's own authority, which it makes at its first use and when it ends.
func (c *Controller) authority(ctx context.Context) (*x509.Certificate, crypto.Signer, error) {
	c.authorityMu.Lock()
	defer c.authorityMu.Unlock()
	secret := &corev1.Secret{}
	err := c.client.Get(ctx, client.ObjectKey{Namespace: compile.Namespace, Name: AuthoritySecret}, secret)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, nil, fmt.Errorf("reading the gateway's authority: %w", err)
	}
	if err == nil {
		pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
		if err != nil {
			return nil, nil, fmt.Errorf("secret %s/%s holds no authority: %w", compile.Namespace, AuthoritySecret, err)
		}
		signer, ok := pair.PrivateKey.(crypto.Signer)
		if ok && time.Now().Add(leafLife).Before(pair.Leaf.NotAfter) {
			return pair.Leaf, signer, nil
		}
	}
	return c.makeAuthority(ctx, secret.DeepCopy(), err == nil)
}

func (c *Controller) makeAuthority(ctx context.Context, secret *corev1.Secret, there bool) (*x509.Certificate, crypto.Signer, error) {
	key, keyPEM, err := keyPair()
	if err != nil {
		return nil, nil, err
	}
	number, err := serial()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: "Gantry local authority " + number.Text(36)[:6]}, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		NotBefore: now.Add(-skew), NotAfter: now.Add(authorityLife), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("signing the gateway's authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the gateway's authority: %w", err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	secret.ObjectMeta.Namespace, secret.ObjectMeta.Name, secret.Type = compile.Namespace, AuthoritySecret, corev1.SecretTypeTLS
	secret.Data = map[string][]byte{corev1.TLSCertKey: certPEM, corev1.TLSPrivateKeyKey: keyPEM, "ca.crt": certPEM}
	if there {
		err = c.client.Update(ctx, secret)
	} else {
		secret.ObjectMeta = metav1.ObjectMeta{Namespace: compile.Namespace, Name: AuthoritySecret}
		err = c.client.Create(ctx, secret)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("keeping the gateway's authority: %w", err)
	}
	return cert, key, nil
}

// issueLocal makes a certificate of the cluster's own for a host.
func (c *Controller) issueLocal(ctx context.Context, host string) (chain, keyPEM []byte, err error) {
	ca, signer, err := c.authority(ctx)
	if err != nil {
		return nil, nil, err
	}
	key, keyPEM, err := keyPair()
	if err != nil {
		return nil, nil, err
	}
	number, err := serial()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: commonName(host)}, NotBefore: now.Add(-skew), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	switch ip := net.ParseIP(host); {
	case ip != nil:
		template.IPAddresses = []net.IP{ip}
	case host == "localhost":
		template.DNSNames = []string{"localhost", "*.localhost"}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	default:
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), signer)
	if err != nil {
		return nil, nil, fmt.Errorf("signing a certificate for %s: %w", host, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, nil
}

// commonName is the host if it fits (RFC 5280: 64 characters).
func commonName(host string) string {
	if len(host) > 64 {
		return ""
	}
	return host
}
