package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"

	"gantry.dev/gantry/internal/durable"
	"gantry.dev/gantry/internal/store"
)

// encryptionTemplate is upstream's provider file (apiserver.config.k8s.io/v1) with one key.
// Reading identity lets values written before encryption be read.
const encryptionTemplate = `# How Secrets are encrypted in etcd. To rotate: put a new key first (it is used within seconds),
# rewrite all Secrets, then remove the old key. Without these keys the Secrets are lost.
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

// encryption encrypts what is stored as upstream's provider file says, and follows the file.
type encryption struct {
	path    string
	log     *slog.Logger
	poll    time.Duration
	content []byte // of the file at last
	current atomic.Pointer[transformers]
}

// transformers are those of one state of the file.
type transformers struct {
	byResource encryptionconfig.StaticTransformers
	stop       context.CancelFunc // ends what talks to key services
}

// encryptionPoll is how often the provider file is looked at.
const encryptionPoll = 5 * time.Second

// loadEncryption reads the provider file at path; it makes one with a new key if there is none and make is true.
func loadEncryption(ctx context.Context, path string, mayCreate bool, log *slog.Logger) (*encryption, error) {
	if _, err := os.Stat(path); mayCreate && errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("making an encryption key: %w", err)
		}
		content := fmt.Sprintf(encryptionTemplate, base64.StdEncoding.EncodeToString(key))
		if err := durable.WriteFile(path, []byte(content), 0o600); err != nil {
			return nil, fmt.Errorf("writing the encryption key: %w", err)
		}
	}
	e := &encryption{path: path, log: log, poll: encryptionPoll}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the encryption keys: %w", err)
	}
	made, err := e.load(ctx)
	if err != nil {
		return nil, err
	}
	e.content = content
	e.current.Store(made)
	return e, nil
}

// load reads the file. What talks to key services ends with ctx or with stop.
func (e *encryption) load(ctx context.Context) (*transformers, error) {
	ctx, cancel := context.WithCancel(ctx)
	config, err := encryptionconfig.LoadEncryptionConfig(ctx, e.path, true, "gantry")
	if err != nil {
		cancel()
		return nil, fmt.Errorf("reading %s: %w", e.path, err)
	}
	return &transformers{byResource: config.Transformers, stop: cancel}, nil
}

// sealer gives the registry the encryption of one resource.
func (e *encryption) sealer(resource schema.GroupResource) store.Sealer {
	return &sealer{encryption: e, resource: resource}
}

// Run follows the file until ctx ends. What could not read all there is, is not put into place. tables are those of
// the store by resource, as they are now.
func (e *encryption) Run(ctx context.Context, db *store.Store, tables func() map[schema.GroupResource]string) error {
	ticker := time.NewTicker(e.poll)
	defer ticker.Stop()
	complaint := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		changed, err := e.reload(ctx, db, tables)
		if err != nil && ctx.Err() == nil && err.Error() != complaint {
			complaint = err.Error()
			e.log.Error("the encryption keys stay as they were", "file", e.path, "error", err)
		}
		if changed {
			complaint = ""
			e.log.Info("encryption keys reloaded", "file", e.path)
		}
	}
}

// reload puts a changed file into place. A removed key that something is still encrypted with is an error, tried
// again until it is or nothing is any more.
func (e *encryption) reload(ctx context.Context, db *store.Store, tables func() map[schema.GroupResource]string) (bool, error) {
	content, err := os.ReadFile(e.path)
	if err != nil || bytes.Equal(content, e.content) {
		return false, err
	}
	made, err := e.load(ctx)
	if err != nil {
		return false, err
	}
	for resource, table := range tables() {
		if err := db.CheckSealed(ctx, table, &sealer{fixed: made, resource: resource}); err != nil {
			made.stop()
			return false, fmt.Errorf("with the changed file this could not be read any more: %w", err)
		}
	}
	e.content = content
	old := e.current.Swap(made)
	old.stop()
	return true, nil
}

// sealer encrypts one resource. It implements store.Sealer.
type sealer struct {
	encryption *encryption
	fixed      *transformers // instead of encryption's
	resource   schema.GroupResource
	found      atomic.Pointer[found]
}

// found is how one state of the file treats one resource.
type found struct {
	in          *transformers
	transformer value.Transformer
	clear       bool // the file does not speak of the resource
}

// sealedPrefix starts every encrypted value (apiserver, encryptionconfig).
const sealedPrefix = "k8s:enc:"

func (s *sealer) now() *found {
	in := s.fixed
	if in == nil {
		in = s.encryption.current.Load()
	}
	if f := s.found.Load(); f != nil && f.in == in {
		return f
	}
	f := &found{in: in, transformer: in.byResource.TransformerForResource(s.resource), clear: true}
	for _, name := range []schema.GroupResource{s.resource, {Group: s.resource.Group, Resource: "*"}, {Group: "*", Resource: "*"}} {
		f.clear = f.clear && in.byResource[name] == nil
	}
	s.found.Store(f)
	return f
}

// Resting reports whether the file does not speak of the resource, so that no value of it can be stale.
func (s *sealer) Resting() bool { return s.now().clear }

// Seal implements store.Sealer.
func (s *sealer) Seal(key string, plain []byte) ([]byte, error) {
	f := s.now()
	if f.clear {
		return plain, nil
	}
	return f.transformer.TransformToStorage(context.Background(), plain, value.DefaultContext(key))
}

// Open implements store.Sealer.
func (s *sealer) Open(key string, sealed []byte) (plain []byte, stale bool, err error) {
	f := s.now()
	if f.clear && !bytes.HasPrefix(sealed, []byte(sealedPrefix)) {
		return sealed, false, nil
	}
	return f.transformer.TransformFromStorage(context.Background(), sealed, value.DefaultContext(key))
}
