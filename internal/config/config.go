package config

import (
	"log/slog"
	"net/netip"
	"path/filepath"
)

// Config is everything that can be set about a Gantry node. Load makes it; it is not changed later.
type Config struct {
	DataDir       string
	Listen        netip.AddrPort // the API
	NodeIP        netip.Addr     // invalid: none found, use the pod bridge's
	TLSSANs       []string       // DNS names and addresses besides those that are always there
	NodeName      string         // RFC 1123; the host name unless Given(KeyNodeName)
	PodCIDR       netip.Prefix
	ServiceCIDR   netip.Prefix
	ClusterDomain string
	Kubeconfig    string // where the admin kubeconfig is written
	Detach        bool
	AgentPort     uint16
	// KubeletDir has the sockets of device plugins, as DataDir has; "" is none but DataDir.
	KubeletDir string
	Manifests  string // folder, or file, of static pods
	// BuildBases are the images that a language's images begin with, by "node" and "python"; others have their default.
	BuildBases map[string]string
	// UnsafeSysctls are names, or prefixes that end in *, that pods may set besides the safe ones.
	UnsafeSysctls []string
	LogLevel      slog.Level
	LogFormat     string // "text" or "json"
	// RuntimeConfig switches built-in API versions on and off: "api/beta", "batch/v1" or
	// "apps/v1/deployments" to "true" or "false". Whether a version exists is for the API to say.
	RuntimeConfig map[string]string
	// SchedulerFile is a KubeSchedulerConfiguration; empty for kube-scheduler's defaults.
	SchedulerFile string
	LoadBalancer  string // LoadBalancerNodes or LoadBalancerNone
	NetworkMode   string // NetworkAuto or NetworkVXLAN

	Access  Access
	Node    Node
	Gateway Gateway
	// Tolerations are what pods get that say nothing of nodes in trouble.
	Tolerations Tolerations

	given map[string]string
}

// Given reports whether the user set the key, by flag, environment or file.
func (c *Config) Given(key string) bool { return c.given[key] != "" }

// Where says how the key was set ("--listen", "GANTRY_LISTEN", "FILE:3"), or "default".
func (c *Config) Where(key string) string {
	if where := c.given[key]; where != "" {
		return where
	}
	return "default"
}

// Path joins elements to the data dir.
func (c *Config) Path(elements ...string) string {
	return filepath.Join(append([]string{c.DataDir}, elements...)...)
}

// APIURL is where programs on this machine reach the API.
func (c *Config) APIURL() string {
	addr := c.Listen
	if addr.Addr().IsUnspecified() {
		addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), addr.Port())
	}
	return "https://" + addr.String()
}

// APIServiceIP is the cluster IP of the service default/kubernetes: the range's first address.
func (c *Config) APIServiceIP() netip.Addr { return offset(c.ServiceCIDR.Addr(), 1) }

// DNSServiceIP is the cluster IP of the cluster's DNS: the range's tenth address, as kubeadm has it.
func (c *Config) DNSServiceIP() netip.Addr { return offset(c.ServiceCIDR.Addr(), 10) }

func offset(addr netip.Addr, n int) netip.Addr {
	for range n {
		addr = addr.Next()
	}
	return addr
}
