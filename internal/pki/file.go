package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"gantry.dev/gantry/internal/durable"
)

const (
	fileMode = 0o600 // of every file, the public ones included

	pemCert      = "CERTIFICATE"
	pemECKey     = "EC PRIVATE KEY"
	pemKey       = "PRIVATE KEY"
	pemPublicKey = "PUBLIC KEY"
)

// FileError says that a file of the folder cannot be used as it is.
type FileError struct {
	Path    string
	Problem string
	Fix     string
}

func (e *FileError) Error() string { return fmt.Sprintf("%s %s; %s", e.Path, e.Problem, e.Fix) }

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return key, nil
}

// writeKey writes an ECDSA key in the form that kubeadm writes.
func writeKey(path string, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", path, err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: pemECKey, Bytes: der})
	return text, durable.WriteFile(path, text, fileMode)
}

// readKey reads a private key; the error is fs.ErrNotExist when there is no file. RSA keys, as
// kubeadm makes by default, are accepted.
func readKey(path string) (crypto.Signer, []byte, error) {
	text, block, err := readPEM(path)
	if err != nil {
		return nil, nil, err
	}
	var parsed any
	switch block.Type {
	case pemECKey:
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	case pemKey:
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		err = fmt.Errorf("it holds a %s", block.Type)
	}
	signer, ok := parsed.(crypto.Signer)
	if err != nil || !ok {
		return nil, nil, &FileError{path, "holds no private key", "restore it from a backup"}
	}
	return signer, text, nil
}

func readCert(path string) (*x509.Certificate, []byte, error) {
	text, block, err := readPEM(path)
	if err != nil {
		return nil, nil, err
	}
	if block.Type != pemCert {
		return nil, nil, &FileError{path, "holds no certificate", "restore it from a backup"}
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, &FileError{path, "holds a broken certificate", "restore it from a backup"}
	}
	return cert, text, nil
}

func readPEM(path string) ([]byte, *pem.Block, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, nil, &FileError{path, "is empty or cut short", "restore it from a backup"}
	}
	return text, block, nil
}

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der})
}

// samePublicKey reports whether key belongs to public.
func samePublicKey(key crypto.Signer, public crypto.PublicKey) bool {
	comparable, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && comparable.Equal(public)
}
