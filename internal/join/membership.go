package join

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"gantry.dev/gantry/internal/durable"
)

// MembershipFile is the name, in the data dir, of what says which cluster a machine is in.
const MembershipFile = "cluster.json"

// Membership says what a machine is in which cluster. A machine without one is the first server of its own.
type Membership struct {
	Role     Role     `json:"role"`
	Servers  []string `json:"servers"` // ADDRESS:PORT of each server's API
	Settings Settings `json:"settings"`
}

// ReadMembership reads the file; false is: there is none.
func ReadMembership(path string) (Membership, bool, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Membership{}, false, nil
	}
	if err != nil {
		return Membership{}, false, fmt.Errorf("reading what cluster this machine is in: %w", err)
	}
	var m Membership
	if err := json.Unmarshal(text, &m); err != nil {
		return Membership{}, false, fmt.Errorf("%s does not say what cluster this machine is in: %w", path, err)
	}
	if m.Role != Worker && m.Role != Server || m.Role == Worker && len(m.Servers) == 0 {
		return Membership{}, false, fmt.Errorf("%s does not say what cluster this machine is in; restore it from a backup, or begin with an empty data dir", path)
	}
	return m, true, nil
}

// Write replaces the file in one step.
func (m Membership) Write(path string) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding what cluster this machine is in: %w", err)
	}
	return durable.WriteFile(path, append(text, '\n'), 0o600)
}

// Where a cluster says what its nodes must agree on.
const (
	SettingsNamespace = "kube-system"
	SettingsName      = "gantry-cluster"
)

// Settings are what all nodes of a cluster must agree on.
type Settings struct {
	PodCIDR           netip.Prefix `json:"podCIDR"`
	ServiceCIDR       netip.Prefix `json:"serviceCIDR"`
	ClusterDomain     string       `json:"clusterDomain"`
	NetworkEncryption string       `json:"networkEncryption,omitempty"`
	Version           string       `json:"version,omitempty"` // of the servers' Gantry
}

// Data is the ConfigMap's.
func (s Settings) Data() map[string]string {
	data := map[string]string{
		"podCIDR": s.PodCIDR.String(), "serviceCIDR": s.ServiceCIDR.String(), "clusterDomain": s.ClusterDomain, "version": s.Version,
	}
	if s.NetworkEncryption != "" {
		data["networkEncryption"] = s.NetworkEncryption
	}
	return data
}

// ParseSettings reads the ConfigMap's data.
func ParseSettings(data map[string]string) (Settings, error) {
	s := Settings{ClusterDomain: data["clusterDomain"], Version: data["version"], NetworkEncryption: data["networkEncryption"]}
	var err error
	if s.PodCIDR, err = netip.ParsePrefix(data["podCIDR"]); err != nil {
		return s, fmt.Errorf("reading the cluster's pod range: %w", err)
	}
	if s.ServiceCIDR, err = netip.ParsePrefix(data["serviceCIDR"]); err != nil {
		return s, fmt.Errorf("reading the cluster's service range: %w", err)
	}
	if s.ClusterDomain == "" {
		return s, errors.New("the cluster does not say its domain")
	}
	return s, nil
}

// RemovedName is the ConfigMap, beside the settings, that says when nodes were removed: NAME to a time in RFC 3339.
// Certificates that a node got before are no good any more.
const RemovedName = "gantry-removed-nodes"
