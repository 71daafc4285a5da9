package podconfig

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Limits of the resolver, as validation and the C library know them.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
	maxHostname    = 63
)

// Hostname returns the host name of a pod and, if it has a subdomain, the domain of its FQDN.
func Hostname(pod *corev1.Pod, clusterDomain string) (name, domain string) {
	if o := pod.Spec.HostnameOverride; o != nil {
		return truncateHostname(*o), ""
	}
	name = pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	if pod.Spec.Subdomain != "" {
		domain = fmt.Sprintf("%s.%s.svc.%s", pod.Spec.Subdomain, pod.Namespace, clusterDomain)
	}
	return truncateHostname(name), domain
}

func truncateHostname(name string) string {
	if len(name) <= maxHostname {
		return name
	}
	return strings.TrimRight(name[:maxHostname], "-.")
}

// HostsFile is the content of a pod's /etc/hosts. nodeHosts is the node's own file, used when
// the pod shares the node's network.
func HostsFile(pod *corev1.Pod, ips []string, name, domain string, nodeHosts []byte) []byte {
	var b strings.Builder
	if pod.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(nodeHosts)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n" +
			"127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\n" +
			"fe00::0\tip6-mcastprefix\n" +
			"fe00::1\tip6-allnodes\n" +
			"fe00::2\tip6-allrouters\n")
		for _, ip := range ips {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, name, domain, name)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, name)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, alias := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
		}
	}
	return []byte(b.String())
}

// Resolver is the content of a resolv.conf.
type Resolver struct {
	Servers, Searches, Options []string
}

// ParseResolver reads a resolv.conf; what it does not know it leaves out.
func ParseResolver(text string) Resolver {
	var r Resolver
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			r.Servers = append(r.Servers, fields[1])
		case "search":
			r.Searches = nil
			for _, s := range fields[1:] {
				if s != "." {
					r.Searches = append(r.Searches, strings.TrimSuffix(s, "."))
				}
			}
		case "options":
			r.Options = mergeOptions(r.Options, fields[1:])
		}
	}
	return r
}

// String formats a Resolver as a resolv.conf.
func (r Resolver) String() string {
	var b strings.Builder
	if len(r.Searches) > 0 {
		b.WriteString("search " + strings.Join(r.Searches, " ") + "\n")
	}
	for _, s := range r.Servers {
		b.WriteString("nameserver " + s + "\n")
	}
	if len(r.Options) > 0 {
		b.WriteString("options " + strings.Join(r.Options, " ") + "\n")
	}
	return b.String()
}

// PodResolver is the resolver of a pod by its dnsPolicy and dnsConfig. node is the node's own.
// The warnings are for DNSConfigForming and MissingClusterDNS events.
func PodResolver(pod *corev1.Pod, node Resolver, clusterDNS []string, clusterDomain string) (r Resolver, warnings []string) {
	policy := pod.Spec.DNSPolicy
	cluster := policy == corev1.DNSClusterFirstWithHostNet || policy != corev1.DNSDefault && policy != corev1.DNSNone && !pod.Spec.HostNetwork
	switch {
	case policy == corev1.DNSNone:
	case cluster && len(clusterDNS) > 0:
		r.Servers = slices.Clone(clusterDNS)
		if clusterDomain != "" {
			r.Searches = []string{pod.Namespace + ".svc." + clusterDomain, "svc." + clusterDomain, clusterDomain}
		}
		r.Searches = unique(slices.Concat(r.Searches, node.Searches))
		r.Options = []string{"ndots:5"}
	default:
		r = Resolver{slices.Clone(node.Servers), slices.Clone(node.Searches), slices.Clone(node.Options)}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		r.Servers = unique(append(r.Servers, c.Nameservers...))
		r.Searches = unique(append(r.Searches, c.Searches...))
		var extra []string
		for _, o := range c.Options {
			if o.Value != nil && *o.Value != "" {
				extra = append(extra, o.Name+":"+*o.Value)
			} else {
				extra = append(extra, o.Name)
			}
		}
		r.Options = mergeOptions(r.Options, extra)
	}
	return r.fit()
}

// fit cuts what the resolver could not use.
func (r Resolver) fit() (Resolver, []string) {
	var warnings []string
	if len(r.Servers) > maxNameservers {
		r.Servers = r.Servers[:maxNameservers]
		warnings = append(warnings, "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: "+strings.Join(r.Servers, " "))
	}
	before := len(r.Searches)
	r.Searches = slices.DeleteFunc(r.Searches, func(s string) bool { return len(s) > 253 })
	r.Searches = r.Searches[:min(len(r.Searches), maxSearches)]
	for len(strings.Join(r.Searches, " ")) > maxSearchChars {
		r.Searches = r.Searches[:len(r.Searches)-1]
	}
	if len(r.Searches) < before {
		warnings = append(warnings, "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: "+strings.Join(r.Searches, " "))
	}
	return r, warnings
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// mergeOptions adds options; one of the same name replaces.
func mergeOptions(list, more []string) []string {
	name := func(o string) string { n, _, _ := strings.Cut(o, ":"); return n }
	for _, o := range more {
		i := slices.IndexFunc(list, func(have string) bool { return name(have) == name(o) })
		if i >= 0 {
			list[i] = o
		} else {
			list = append(list, o)
		}
	}
	return list
}
