package certs

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Annotations of a certificate's Secret.
const (
	AnnotationIssuer   = "gateway.gantry.dev/issuer"   // IssuerLocal or the ACME directory's URL
	AnnotationExpires  = "gateway.gantry.dev/expires"  // RFC 3339
	AnnotationProblem  = "gateway.gantry.dev/problem"  // why the wanted issuer did not issue, for people
	AnnotationFailures = "gateway.gantry.dev/failures" // in a row, of ACME
	AnnotationRetryAt  = "gateway.gantry.dev/retry-at" // RFC 3339: not before that
)

// IssuerLocal is the cluster's own authority.
const IssuerLocal = "local"

// action is what to do about a certificate.
type action struct {
	local bool          // issue one of the cluster's own
	acme  bool          // then get one by ACME
	after time.Duration // look again then
}

// plan decides about a Secret. want is who should issue.
func plan(secret *corev1.Secret, host, want string, now time.Time) action {
	leaf := leafOf(secret)
	valid := leaf != nil && now.Before(leaf.NotAfter) && leaf.VerifyHostname(hostToVerify(host)) == nil
	if valid && secret.Annotations[AnnotationIssuer] == want && now.Before(renewAt(leaf)) {
		return action{after: renewAt(leaf).Sub(now)}
	}
	a := action{local: !valid || want == IssuerLocal}
	if want == IssuerLocal {
		return a
	}
	if retry, err := time.Parse(time.RFC3339, secret.Annotations[AnnotationRetryAt]); err == nil && now.Before(retry) {
		a.after = retry.Sub(now)
		return a
	}
	a.acme = true
	return a
}

// hostToVerify is a name that a certificate of host must be good for.
func hostToVerify(host string) string {
	if rest, ok := strings.CutPrefix(host, "*."); ok {
		return "any." + rest
	}
	return host
}

// renewAt is at two thirds of a certificate's life.
func renewAt(leaf *x509.Certificate) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 3 * 2)
}

// leafOf is a Secret's certificate, nil if there is none.
func leafOf(secret *corev1.Secret) *x509.Certificate {
	block, _ := pem.Decode(secret.Data[corev1.TLSCertKey])
	if block == nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return leaf
}

// issuerOf is who issues for a host: an ACME authority what the Internet can reach, if there is one. named are addresses
// of which somebody says that it can.
func issuerOf(host, directory string, named []netip.Addr) string {
	addr, err := netip.ParseAddr(host)
	said := err == nil && slices.Contains(named, addr)
	if directory == "" || !said && !public(host) {
		return IssuerLocal
	}
	return directory
}

// public reports whether an authority can check by http-01 that a host is here: neither wildcards
// nor names and addresses that mean something only here (RFC 2606, 6761, 6762, 8375).
func public(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.IsGlobalUnicast() && !addr.IsPrivate() && !sharedSpace().Contains(addr)
	}
	if strings.HasPrefix(host, "*") {
		return false
	}
	i := strings.LastIndexByte(host, '.')
	return i > 0 && !slices.Contains([]string{"localhost", "local", "internal", "test", "example", "invalid", "lan", "home", "arpa"}, host[i+1:])
}

// sharedSpace is between providers and their customers (RFC 6598).
func sharedSpace() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10) }

// Waits after failures. Let's Encrypt takes five failed validations of a host an hour.
const (
	firstRetry  = 5 * time.Minute
	longestWait = 12 * time.Hour
	limitedWait = time.Hour
	dnsRetry    = time.Minute
)

// backoff is how long to wait after so many failures in a row.
func backoff(failures int) time.Duration {
	wait := firstRetry
	for range min(failures-1, 12) {
		wait *= 2
	}
	return min(wait, longestWait)
}

func failuresOf(secret *corev1.Secret) int {
	n, _ := strconv.Atoi(secret.Annotations[AnnotationFailures])
	return max(n, 0)
}

// pointsHere judges what a name's addresses are; "" is good. Without a public address of our own
// nothing can be compared.
func pointsHere(host string, found, ours []netip.Addr) string {
	known := slices.ContainsFunc(ours, func(a netip.Addr) bool { return public(a.String()) })
	if len(found) == 0 {
		return host + " has no address in the DNS: add an A record with " + list(ours)
	}
	if !known || slices.ContainsFunc(found, func(a netip.Addr) bool { return slices.Contains(ours, a.Unmap()) }) {
		return ""
	}
	return host + " points to " + list(found) + ", not to this machine: set its A record to " + list(ours) +
		" (or say by --public-address under which address the Internet reaches it)"
}

func list(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	if len(texts) == 0 {
		return "this machine's address"
	}
	return strings.Join(texts, " or ")
}
