package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"time"

	"gantry.dev/gantry/internal/durable"
)

// ensureCALocked loads or makes an authority. A key without a certificate is a first start that was
// cut short: the certificate is signed again with the same key. Anything else that is not whole is
// an error, because a new authority would shut every client out. a.mu is held.
func (a *Authority) ensureCALocked(spec caSpec) error {
	if a.cas[spec.name] != nil {
		return a.checkCA(spec.name, a.cas[spec.name].cert)
	}
	keyPath, certPath := a.path(string(spec.name), ".key"), a.path(string(spec.name), ".crt")
	key, _, keyErr := readKey(keyPath)
	cert, text, certErr := readCert(certPath)
	switch {
	case missing(keyErr) && missing(certErr):
		fresh, err := newKey()
		if err != nil {
			return err
		}
		if _, err := writeKey(keyPath, fresh); err != nil {
			return err
		}
		key = fresh
	case missing(keyErr) && certErr == nil:
		return &FileError{keyPath, "is missing although its certificate is there", "restore it from a backup"}
	case keyErr != nil:
		return keyErr
	case certErr != nil && !missing(certErr):
		return certErr
	}
	if cert == nil {
		var err error
		if cert, text, err = signCA(spec, key); err != nil {
			return err
		}
		if err := durable.WriteFile(certPath, text, fileMode); err != nil {
			return err
		}
	}
	if !samePublicKey(key, cert.PublicKey) {
		return &FileError{certPath, "does not belong to " + keyPath, "restore both from the same backup"}
	}
	if !cert.IsCA {
		return &FileError{certPath, "is not the certificate of an authority", "restore it from a backup"}
	}
	if err := a.checkCA(spec.name, cert); err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	a.cas[spec.name] = &pair{cert: cert, pem: text, key: key, pool: pool}
	return nil
}

// checkCA compares the authority's dates with the clock.
func (a *Authority) checkCA(name CA, cert *x509.Certificate) error {
	now, path := time.Now(), a.path(string(name), ".crt")
	if now.Before(cert.NotBefore) {
		return &FileError{path, fmt.Sprintf("is valid from %s on, but this machine's clock says %s",
			cert.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339)), "set the clock"}
	}
	if !now.Before(cert.NotAfter) {
		return &FileError{path, fmt.Sprintf("ended at %s", cert.NotAfter.Format(time.RFC3339)), "check the clock, or replace the authority"}
	}
	return nil
}

func signCA(spec caSpec, key crypto.Signer) (*x509.Certificate, []byte, error) {
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: spec.commonName},
		DNSNames:              []string{spec.commonName},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	return sign(template, template, key.Public(), key)
}

// sign makes one certificate with a serial number of 127 random bits.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, []byte, error) {
	limit := new(big.Int).Lsh(big.NewInt(1), 127)
	serial, err := rand.Int(rand.Reader, limit)
	if err != nil {
		return nil, nil, fmt.Errorf("draw serial number: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate of %s: %w", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("read back certificate of %s: %w", template.Subject.CommonName, err)
	}
	return cert, encodeCert(der), nil
}

// ensureServiceAccountKeyLocked loads or makes the key that signs service account tokens. A missing
// sa.pub is written again from sa.key. a.mu is held.
func (a *Authority) ensureServiceAccountKeyLocked() error {
	if a.saKey != nil {
		return nil
	}
	keyPath, publicPath := a.path(serviceAccountKey, ".key"), a.path(serviceAccountKey, ".pub")
	key, _, err := readKey(keyPath)
	_, publicErr := os.Stat(publicPath)
	switch {
	case missing(err) && publicErr == nil:
		return &FileError{keyPath, "is missing although sa.pub is there", "restore it from a backup, or remove sa.pub too: every token then becomes void"}
	case missing(err):
		fresh, err := newKey()
		if err != nil {
			return err
		}
		if _, err := writeKey(keyPath, fresh); err != nil {
			return err
		}
		key = fresh
	case err != nil:
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode %s: %w", publicPath, err)
	}
	want := pem.EncodeToMemory(&pem.Block{Type: pemPublicKey, Bytes: der})
	got, err := os.ReadFile(publicPath)
	switch {
	case missing(err):
		if err := durable.WriteFile(publicPath, want, fileMode); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("read service account key: %w", err)
	default:
		if block, _ := pem.Decode(got); block == nil || string(block.Bytes) != string(der) {
			return &FileError{publicPath, "does not belong to " + keyPath, "restore both from the same backup, or remove sa.pub"}
		}
	}
	a.saKey = key
	return nil
}

// ensureLeafLocked loads a certificate and replaces it when it is missing, broken or stale. Losing a
// leaf costs nothing, so a half-written one is only worth a warning. a.mu is held.
func (a *Authority) ensureLeafLocked(spec leafSpec) error {
	issuer, now := a.cas[spec.issuer], time.Now()
	current, reason := a.leaves[spec.name], ""
	if current == nil {
		loaded, err := a.loadLeaf(spec)
		switch {
		case missing(err):
			reason = "missing"
		case err != nil:
			if _, broken := errors.AsType[*FileError](err); !broken {
				return err // the disk or its permissions: a new file would not help
			}
			a.logger.Warn("certificate cannot be used and is made anew", "err", err)
			reason = "broken"
		default:
			current = loaded
		}
	}
	if current != nil {
		reason = spec.stale(current.Leaf, issuer.cert, now)
	}
	if reason == "" {
		a.leaves[spec.name] = current
		return nil
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	cert, text, err := sign(spec.template(now, issuer.cert), issuer.cert, key.Public(), issuer.key)
	if err != nil {
		return err
	}
	if _, err := writeKey(a.path(string(spec.name), ".key"), key); err != nil {
		return err
	}
	if err := durable.WriteFile(a.path(string(spec.name), ".crt"), text, fileMode); err != nil {
		return err
	}
	a.leaves[spec.name] = &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
	a.logger.Debug("certificate issued", "name", string(spec.name), "reason", reason, "notAfter", cert.NotAfter)
	return nil
}

func (a *Authority) loadLeaf(spec leafSpec) (*tls.Certificate, error) {
	cert, _, err := readCert(a.path(string(spec.name), ".crt"))
	if err != nil {
		return nil, err
	}
	keyPath := a.path(string(spec.name), ".key")
	key, _, err := readKey(keyPath)
	if err != nil {
		return nil, err
	}
	if !samePublicKey(key, cert.PublicKey) {
		return nil, &FileError{keyPath, "does not belong to its certificate", "a new pair replaces it"}
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}
