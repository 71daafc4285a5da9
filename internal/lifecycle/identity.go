package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/util/uuid"

	"gantry.dev/gantry/internal/durable"
)

const identityName = "node.json"

// Identity is who the node is for as long as its data dir lives.
type Identity struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// EnsureIdentity reads the data dir's identity, or makes one with this name. The stored name wins
// over another default, so that a changed host name is harmless; it is an error when the user gave
// another name, because renaming would orphan what runs under the old one.
func EnsureIdentity(dataDir, name string, given bool) (Identity, error) {
	path := filepath.Join(dataDir, identityName)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createIdentity(path, name)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("read node identity: %w", err)
	}
	var id Identity
	if err := json.Unmarshal(text, &id); err != nil || id.Name == "" || id.UID == "" {
		return Identity{}, fmt.Errorf("%s does not hold a node's name and uid; restore it from a backup", path)
	}
	if given && id.Name != name {
		return Identity{}, fmt.Errorf("the node in %s is called %q, not %q; leave --node-name out, or begin with an empty data dir", dataDir, id.Name, name)
	}
	return id, nil
}

func createIdentity(path, name string) (Identity, error) {
	id := Identity{Name: name, UID: string(uuid.NewUUID())}
	text, err := json.Marshal(id)
	if err != nil {
		return Identity{}, fmt.Errorf("encode node identity: %w", err)
	}
	if err := durable.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return Identity{}, err
	}
	return id, nil
}
