package server

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"

	"gantry.dev/gantry/internal/durable"
)

// encryptionTemplate is upstream's provider file (apiserver.config.k8s.io/v1) with one key.
// Reading identity lets values written before encryption be read.
const encryptionTemplate = `# How Secrets are encrypted in etcd. To rotate: put a new key first, restart, rewrite all
# Secrets, then remove the old key. Without these keys the Secrets are lost.
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - secretbox:
      keys:
      - {name: key1, secret: %s}
  - identity: {}
`

// sealer encrypts what is stored as upstream's provider file says.
type sealer struct{ transformer value.Transformer }

// loadSealer reads the provider file at path, making one with a new key if there is none.
func loadSealer(ctx context.Context, path string) (*sealer, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("making an encryption key: %w", err)
		}
		content := fmt.Sprintf(encryptionTemplate, base64.StdEncoding.EncodeToString(key))
		if err := durable.WriteFile(path, []byte(content), 0o600); err != nil {
			return nil, fmt.Errorf("writing the encryption key: %w", err)
		}
	}
	config, err := encryptionconfig.LoadEncryptionConfig(ctx, path, false, "gantry")
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	transformer := config.Transformers[schema.GroupResource{Resource: "secrets"}]
	if transformer == nil {
		return nil, fmt.Errorf("%s does not say how secrets are encrypted: add secrets to its resources", path)
	}
	return &sealer{transformer}, nil
}

// Seal implements store.Sealer.
func (s *sealer) Seal(key string, plain []byte) ([]byte, error) {
	return s.transformer.TransformToStorage(context.Background(), plain, value.DefaultContext(key))
}

// Open implements store.Sealer.
func (s *sealer) Open(key string, sealed []byte) ([]byte, error) {
	plain, _, err := s.transformer.TransformFromStorage(context.Background(), sealed, value.DefaultContext(key))
	return plain, err
}
