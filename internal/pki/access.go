package pki

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"

	"gantry.dev/gantry/internal/durable"
)

// CertPEM returns the authority's certificate. Ensure must have succeeded.
func (a *Authority) CertPEM(ca CA) []byte {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return bytes.Clone(a.cas[ca].pem)
}

// Pool returns a pool that holds the authority alone. Ensure must have succeeded.
func (a *Authority) Pool(ca CA) *x509.CertPool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.cas[ca].pool
}

// Signer returns the authority's certificate and the key that signs. Ensure must have succeeded.
func (a *Authority) Signer(ca CA) (*x509.Certificate, crypto.Signer) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.cas[ca].cert, a.cas[ca].key
}

// ServiceAccountKey returns the key that signs service account tokens (ES256 unless kubeadm made it).
func (a *Authority) ServiceAccountKey() crypto.Signer {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.saKey
}

// Certificate returns the certificate in use now, or an error before Ensure.
func (a *Authority) Certificate(leaf Leaf) (*tls.Certificate, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	cert := a.leaves[leaf]
	if cert == nil {
		return nil, fmt.Errorf("pki: there is no certificate %s", leaf)
	}
	return cert, nil
}

// GetCertificate returns a function for tls.Config that serves the leaf as it is at each handshake.
func (a *Authority) GetCertificate(leaf Leaf) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.Certificate(leaf) }
}

// GetClientCertificate is GetCertificate for the client's side.
func (a *Authority) GetClientCertificate(leaf Leaf) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return a.Certificate(leaf) }
}

// ServerTLS returns a configuration that serves leaf and asks clients for a certificate of clients,
// without insisting on one: who has none may bring a token.
func (a *Authority) ServerTLS(leaf Leaf, clients CA) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: a.GetCertificate(leaf),
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      a.Pool(clients),
		NextProtos:     []string{"h2", "http/1.1"},
	}
}

// ClientTLS returns a configuration that trusts servers of one authority and presents leaf.
func (a *Authority) ClientTLS(leaf Leaf, servers CA) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS12,
		GetClientCertificate: a.GetClientCertificate(leaf),
		RootCAs:              a.Pool(servers),
	}
}

// kubeconfigFormat is a kubeconfig with one cluster, one user and one context, all named gantry.
const kubeconfigFormat = `apiVersion: v1
kind: Config
current-context: %[1]s
clusters:
- name: %[1]s
  cluster:
    server: %[2]s
    certificate-authority-data: %[3]s
users:
- name: %[4]s
  user:
    client-certificate-data: %[5]s
    client-key-data: %[6]s
contexts:
- name: %[1]s
  context:
    cluster: %[1]s
    user: %[4]s
`

// ClusterName is the name of the cluster and the context in the kubeconfigs.
const ClusterName = "gantry"

// writeKubeconfigLocked writes the file unless it holds the right content already. a.mu is held.
func (a *Authority) writeKubeconfigLocked(k Kubeconfig) error {
	leaf := a.leaves[k.Client]
	keyDER, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		return fmt.Errorf("encode key of %s: %w", k.Path, err)
	}
	base := base64.StdEncoding.EncodeToString
	text := fmt.Appendf(nil, kubeconfigFormat, ClusterName, k.Server, base(a.cas[ClusterCA].pem), ClusterName+"-"+string(k.Client),
		base(encodeCert(leaf.Leaf.Raw)), base(pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: keyDER})))
	if old, err := os.ReadFile(k.Path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return durable.WriteFile(k.Path, text, fileMode)
}
