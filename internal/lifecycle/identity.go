package lifecycle

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
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
	// Machine is MachineID of the machine whose node this is; empty where machines have no id.
	Machine string `json:"machine,omitempty"`
}

// MachineID tells machines apart: a digest of /etc/machine-id below root, which is not for others
// to know (machine-id(5)), or "" if there is none.
func MachineID(root string) string {
	for _, name := range []string{"etc/machine-id", "var/lib/dbus/machine-id"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if text = bytes.TrimSpace(text); err == nil && len(text) > 0 && string(text) != "uninitialized" {
			mac := hmac.New(sha256.New, text)
			mac.Write([]byte("gantry.dev/node"))
			return hex.EncodeToString(mac.Sum(nil)[:16])
		}
	}
	return ""
}

// EnsureIdentity reads the data dir's identity, or makes one with this name. The stored name wins
// over another default, so that a changed host name is harmless; it is an error when the user gave
// another name, because renaming would orphan what runs under the old one. It is an error too when the
// data dir is a copy of another machine's: two machines with one identity would fight over its pods.
func EnsureIdentity(dataDir, name string, given bool, machine string) (Identity, error) {
	path := filepath.Join(dataDir, identityName)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		id := Identity{Name: name, UID: string(uuid.NewUUID()), Machine: machine}
		return id, id.write(path)
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
	if id.Machine == machine || machine == "" {
		return id, nil
	}
	if id.Machine != "" {
		return Identity{}, fmt.Errorf("%s belongs to node %s of another machine, and two machines must not share one identity; "+
			"to begin with a node of its own use an empty data dir; if this machine takes the other's place for good, "+
			"remove \"machine\" from %s and start again", dataDir, id.Name, path)
	}
	id.Machine = machine
	return id, id.write(path)
}

func (id Identity) write(path string) error {
	text, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode node identity: %w", err)
	}
	return durable.WriteFile(path, append(text, '\n'), 0o600)
}
