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
	"path/filepath"
)

const (
	fileMode = 0o600
	dirMode  = 0o700

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

// WriteFile replaces the file at path by data so that a reader, or a crash, sees the old or the new
// content and nothing between. The file can be read by its owner alone.
func WriteFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return fmt.Errorf("make folder of %s: %w", path, err)
	}
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // CreateTemp's mode is 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = temp.Write(data)
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	// The rename is on disk once the folder is.
	folder, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open folder of %s: %w", path, err)
	}
	err = errors.Join(folder.Sync(), folder.Close())
	if err != nil {
		return fmt.Errorf("sync folder of %s: %w", path, err)
	}
	return nil
}

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
	return text, WriteFile(path, text)
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
