package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Lifetimes. Renewal at two thirds leaves four months in which a stopped machine may come back.
const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	leafLifetime = 365 * 24 * time.Hour
	// clockSkew is how far another machine's clock may be behind ours.
	clockSkew = 5 * time.Minute
)

// CA names a certificate authority: the path below the folder without its ending.
type CA string

// The authorities.
const (
	ClusterCA    CA = "ca"
	FrontProxyCA CA = "front-proxy-ca"
	EtcdCA       CA = "etcd/ca"
)

// Leaf names a certificate: the path below the folder without its ending.
type Leaf string

// The certificates.
const (
	APIServer              Leaf = "apiserver"
	APIServerKubeletClient Leaf = "apiserver-kubelet-client"
	FrontProxyClient       Leaf = "front-proxy-client"
	EtcdServer             Leaf = "etcd/server"
	EtcdPeer               Leaf = "etcd/peer"
	Kubelet                Leaf = "kubelet"        // what the agent serves logs and exec with
	KubeletClient          Leaf = "kubelet-client" // who the agent is at the API
	Admin                  Leaf = "admin"
	SuperAdmin             Leaf = "super-admin"
)

// Groups that certificates put their holders into.
const (
	// GroupAdmins is bound to cluster-admin by the ClusterRoleBinding of the same name, as kubeadm does.
	GroupAdmins = "kubeadm:cluster-admins"
	// GroupMasters passes every check without RBAC: for repairing RBAC itself.
	GroupMasters = "system:masters"
	// GroupNodes is the group of node agents.
	GroupNodes = "system:nodes"
	// NodeUserPrefix starts a node agent's user name.
	NodeUserPrefix = "system:node:"
)

// serviceAccountKey is the path of the key that signs service account tokens.
const serviceAccountKey = "sa"

// caSpec is what a root should be.
type caSpec struct {
	name       CA
	commonName string
}

func caSpecs() []caSpec {
	return []caSpec{
		{ClusterCA, "kubernetes"},
		{FrontProxyCA, "front-proxy-ca"},
		{EtcdCA, "etcd-ca"},
	}
}

// leafSpec is what a certificate should be.
type leafSpec struct {
	name   Leaf
	issuer CA
	user   string
	groups []string
	usage  []x509.ExtKeyUsage
	dns    []string
	ips    []netip.Addr
}

// leafSpecs lists the certificates that a node with these names needs. It is pure.
func leafSpecs(n Names) []leafSpec {
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	server := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	both := append(slices.Clone(server), client...)
	loopback := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

	apiDNS := []string{"localhost", n.NodeName, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + n.ClusterDomain}
	apiIPs := append(slices.Clone(loopback), n.ServiceIP)
	apiIPs = append(apiIPs, n.Addresses...)
	for _, san := range n.ExtraSANs {
		if addr, err := netip.ParseAddr(san); err == nil {
			apiIPs = append(apiIPs, addr)
		} else {
			apiDNS = append(apiDNS, san)
		}
	}
	nodeDNS := []string{"localhost", n.NodeName}
	nodeIPs := append(slices.Clone(loopback), n.Addresses...)
	nodeUser := NodeUserPrefix + n.NodeName
	return []leafSpec{
		{APIServer, ClusterCA, "kube-apiserver", nil, server, apiDNS, apiIPs},
		{APIServerKubeletClient, ClusterCA, "kube-apiserver-kubelet-client", []string{GroupAdmins}, client, nil, nil},
		{FrontProxyClient, FrontProxyCA, "front-proxy-client", nil, client, nil, nil},
		{EtcdServer, EtcdCA, n.NodeName, nil, both, nodeDNS, nodeIPs},
		{EtcdPeer, EtcdCA, n.NodeName, nil, both, nodeDNS, nodeIPs},
		{Kubelet, ClusterCA, nodeUser, []string{GroupNodes}, server, nodeDNS, nodeIPs},
		{KubeletClient, ClusterCA, nodeUser, []string{GroupNodes}, client, nil, nil},
		{Admin, ClusterCA, "kubernetes-admin", []string{GroupAdmins}, client, nil, nil},
		{SuperAdmin, ClusterCA, "kubernetes-super-admin", []string{GroupMasters}, client, nil, nil},
	}
}

// template is the certificate to sign at now, ending no later than its issuer.
func (s leafSpec) template(now time.Time, issuer *x509.Certificate) *x509.Certificate {
	end := now.Add(leafLifetime)
	if end.After(issuer.NotAfter) {
		end = issuer.NotAfter
	}
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: s.user, Organization: s.groups},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           s.usage,
		BasicConstraintsValid: true,
		DNSNames:              sortedUnique(s.dns),
	}
	for _, addr := range s.ips {
		ip := net.IP(addr.Unmap().AsSlice())
		if addr.IsValid() && !slices.ContainsFunc(t.IPAddresses, ip.Equal) {
			t.IPAddresses = append(t.IPAddresses, ip)
		}
	}
	return t
}

// stale says why cert must be replaced at now, or "" when it is good. It is pure.
func (s leafSpec) stale(cert, issuer *x509.Certificate, now time.Time) string {
	want := s.template(now, issuer)
	switch {
	case cert.CheckSignatureFrom(issuer) != nil:
		return "signed by another authority"
	case now.Before(cert.NotBefore):
		return "not valid yet"
	case !now.Before(renewAt(cert)):
		return "past two thirds of its life"
	case cert.Subject.CommonName != s.user || !slices.Equal(sortedUnique(cert.Subject.Organization), sortedUnique(s.groups)):
		return "holder changed"
	case !slices.Equal(sortedUnique(cert.DNSNames), want.DNSNames) || !slices.Equal(ipTexts(cert.IPAddresses), ipTexts(want.IPAddresses)):
		return "names or addresses changed"
	case !slices.Equal(cert.ExtKeyUsage, s.usage):
		return "use changed"
	}
	return ""
}

// renewAt is when two thirds of the certificate's life have passed.
func renewAt(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 3 * 2)
}

func sortedUnique(texts []string) []string {
	out := slices.DeleteFunc(slices.Clone(texts), func(s string) bool { return s == "" })
	for i := range out {
		out[i] = strings.ToLower(out[i])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func ipTexts(ips []net.IP) []string {
	texts := make([]string, 0, len(ips))
	for _, ip := range ips {
		texts = append(texts, ip.String())
	}
	return sortedUnique(texts)
}
