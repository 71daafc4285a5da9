package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Limits on the ranges. A node gets a /24 of the pod range, and upstream's allocator refuses
// service ranges of more than 20 bits.
const (
	podCIDRWidest      = 8
	podCIDRNarrowest   = 24
	serviceCIDRWidest  = 12
	serviceCIDRNarrow  = 27
	clusterDomainLimit = 200
)

func wrong(want, format string, args ...any) error {
	return &Error{Problem: fmt.Sprintf(format, args...), Want: want}
}

func setDataDir(c *Config, v []string) error {
	if v[0] == "" {
		return wrong("give a folder, such as /var/lib/gantry", "the data dir is empty")
	}
	dir, err := filepath.Abs(v[0])
	if err != nil {
		return wrong("give an absolute path", "%q cannot be made absolute: %v", v[0], err)
	}
	if dir == "/" {
		return wrong("give a folder of its own, such as /var/lib/gantry", "the data dir cannot be the root folder")
	}
	c.DataDir = dir
	return nil
}

func setListen(c *Config, v []string) error {
	const want = "want ADDRESS:PORT, such as 127.0.0.1:6443 or 0.0.0.0:6443"
	text := v[0]
	if rest, ok := strings.CutPrefix(text, "localhost:"); ok {
		text = "127.0.0.1:" + rest
	}
	if strings.HasPrefix(text, ":") {
		text = "0.0.0.0" + text
	}
	addr, err := netip.ParseAddrPort(text)
	if err != nil {
		return wrong(want, "%q is not an address and a port", v[0])
	}
	if addr.Port() == 0 {
		return wrong(want, "port 0 in %q is not a port clients could know", v[0])
	}
	c.Listen = addr
	return nil
}

// Who serves Services of type LoadBalancer that name no class.
const (
	LoadBalancerNodes = "nodes" // the nodes, on their own addresses
	LoadBalancerNone  = "none"  // somebody whom the user installs
)

func setLoadBalancer(c *Config, v []string) error {
	if v[0] != LoadBalancerNodes && v[0] != LoadBalancerNone {
		return wrong("want nodes or none", "%q serves no load balancers", v[0])
	}
	c.LoadBalancer = v[0]
	return nil
}

func setNodeIP(c *Config, v []string) error {
	if v[0] == "" {
		return nil
	}
	addr, err := netip.ParseAddr(v[0])
	if err != nil || !addr.Is4() {
		return wrong("want an IPv4 address of this machine, such as 192.0.2.10", "%q is not an IPv4 address", v[0])
	}
	if addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() {
		return wrong("want an address at which pods and other machines reach this one", "%s is not reachable from pods", addr)
	}
	c.NodeIP = addr
	return nil
}

func setTLSSAN(c *Config, values []string) error {
	var sans []string
	for _, value := range values {
		value = strings.TrimSpace(value)
		if value == "" {
			continue
		}
		_, ipErr := netip.ParseAddr(value)
		if ipErr != nil && len(validation.IsDNS1123Subdomain(strings.TrimPrefix(value, "*."))) > 0 {
			return wrong("want a DNS name or an address, such as gantry.example.com or 203.0.113.7", "%q is neither a DNS name nor an address", value)
		}
		sans = append(sans, value)
	}
	c.TLSSANs = sans
	return nil
}

func setNodeName(c *Config, v []string) error {
	if problems := validation.IsDNS1123Subdomain(v[0]); len(problems) > 0 {
		return wrong("want lower-case letters, digits, '-' and '.', at most 253 (RFC 1123), such as node-1", "%q cannot name a node", v[0])
	}
	c.NodeName = v[0]
	return nil
}

func setPodCIDR(c *Config, v []string) (err error) {
	c.PodCIDR, err = parseCIDR(v[0], podCIDRWidest, podCIDRNarrowest)
	return err
}

func setServiceCIDR(c *Config, v []string) (err error) {
	c.ServiceCIDR, err = parseCIDR(v[0], serviceCIDRWidest, serviceCIDRNarrow)
	return err
}

func parseCIDR(text string, widest, narrowest int) (netip.Prefix, error) {
	want := fmt.Sprintf("want an IPv4 range from /%d to /%d, such as 10.244.0.0/16", widest, narrowest)
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, wrong(want, "%q is not an address range", text)
	}
	if !prefix.Addr().Is4() {
		return netip.Prefix{}, wrong(want, "%s is an IPv6 range, and Gantry serves IPv4 only", text)
	}
	if prefix != prefix.Masked() {
		return netip.Prefix{}, wrong(fmt.Sprintf("want %s", prefix.Masked()), "%s is an address inside a range, not its start", text)
	}
	if prefix.Bits() < widest || prefix.Bits() > narrowest {
		return netip.Prefix{}, wrong(want, "%s has the wrong size", text)
	}
	if prefix.Addr().IsLoopback() || prefix.Addr().IsMulticast() || prefix.Addr().IsLinkLocalUnicast() {
		return netip.Prefix{}, wrong(want, "%s is reserved for other uses", text)
	}
	return prefix, nil
}

func setClusterDomain(c *Config, v []string) error {
	domain := strings.TrimSuffix(v[0], ".")
	if len(domain) > clusterDomainLimit || len(validation.IsDNS1123Subdomain(domain)) > 0 {
		return wrong("want a DNS domain, such as cluster.local", "%q is not a DNS domain", v[0])
	}
	c.ClusterDomain = domain
	return nil
}

func setKubeletDir(c *Config, v []string) (err error) {
	c.KubeletDir, err = absolute(v[0])
	return err
}

func setUnsafeSysctls(c *Config, values []string) error {
	c.UnsafeSysctls = entries(values)
	return nil
}

func setBuildBases(c *Config, values []string) error {
	bases := map[string]string{}
	for _, entry := range entries(values) {
		language, image, found := strings.Cut(entry, "=")
		if !found || image == "" || strings.ContainsAny(image, " \t\n") {
			return wrong("want LANGUAGE=IMAGE, such as node=docker.io/library/node:22-slim", "%q names no image", entry)
		}
		if language != "node" && language != "python" {
			return wrong("want node or python", "no builder has the language %q", language)
		}
		bases[language] = image
	}
	c.BuildBases = bases
	return nil
}

func setManifests(c *Config, v []string) (err error) {
	c.Manifests, err = absolute(v[0])
	return err
}

func setKubeconfig(c *Config, v []string) error {
	if v[0] == "" {
		return nil
	}
	path, err := filepath.Abs(v[0])
	if err != nil {
		return wrong("give an absolute path", "%q cannot be made absolute: %v", v[0], err)
	}
	c.Kubeconfig = path
	return nil
}

func setDetach(c *Config, v []string) error {
	detach, err := strconv.ParseBool(v[0])
	if err != nil {
		return wrong("want true or false", "%q is neither true nor false", v[0])
	}
	c.Detach = detach
	return nil
}

func setAgentPort(c *Config, v []string) error {
	port, err := strconv.ParseUint(v[0], 10, 16)
	if err != nil || port == 0 {
		return wrong("want a number from 1 to 65535", "%q is not a port", v[0])
	}
	c.AgentPort = uint16(port)
	return nil
}

func setLogLevel(c *Config, v []string) error {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, ok := levels[v[0]]
	if !ok {
		return wrong("want debug, info, warn or error", "%q is not a log level", v[0])
	}
	c.LogLevel = level
	return nil
}

func setLogFormat(c *Config, v []string) error {
	if v[0] != "text" && v[0] != "json" {
		return wrong("want text or json", "%q is not a log format", v[0])
	}
	c.LogFormat = v[0]
	return nil
}

// check compares settings with each other. Each problem is one error.
func (c *Config) check() error {
	var problems []error
	add := func(key, want, format string, args ...any) {
		problems = append(problems, &Error{Where: c.whereFor(key), Problem: fmt.Sprintf(format, args...), Want: want})
	}
	c.checkAccess(add)
	c.checkNode(add)
	c.checkGateway(add)
	if c.PodCIDR.Overlaps(c.ServiceCIDR) {
		add(KeyServiceCIDR, "choose ranges that share no address", "%s overlaps the pod range %s", c.ServiceCIDR, c.PodCIDR)
	}
	if c.NodeIP.IsValid() && c.ServiceCIDR.Contains(c.NodeIP) {
		add(KeyServiceCIDR, "choose another range, or another node-ip", "%s holds the node's own address %s", c.ServiceCIDR, c.NodeIP)
	}
	if c.NodeIP.IsValid() && c.PodCIDR.Contains(c.NodeIP) {
		add(KeyPodCIDR, "choose another range, or another node-ip", "%s holds the node's own address %s", c.PodCIDR, c.NodeIP)
	}
	if c.Listen.Port() == c.AgentPort {
		add(KeyAgentPort, "choose different ports", "port %d is the API's already", c.AgentPort)
	}
	return errors.Join(problems...)
}

// whereFor is Where, with the flag's name for a default: that is where a user would change it.
func (c *Config) whereFor(key string) string {
	if c.Given(key) {
		return c.Where(key)
	}
	return "--" + key + " (default)"
}

func setRuntimeConfig(c *Config, values []string) error {
	const want = "want VERSION=true or VERSION=false, such as api/beta=true, batch/v1=false or apps/v1/deployments=false"
	config := map[string]string{}
	for _, value := range values {
		for _, entry := range strings.Split(value, ",") {
			entry = strings.TrimSpace(entry)
			if entry == "" {
				continue
			}
			version, on, _ := strings.Cut(entry, "=")
			if on == "" {
				on = "true"
			}
			if _, err := strconv.ParseBool(on); err != nil || version == "" {
				return wrong(want, "%q switches nothing on or off", entry)
			}
			config[version] = on
		}
	}
	c.RuntimeConfig = config
	return nil
}

func setScheduler(c *Config, v []string) (err error) {
	c.SchedulerFile, err = absolute(v[0])
	return err
}
