package certificates

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
)

// signerLegacyUnknown is a signer that v1 does not name any more; old requests may.
const signerLegacyUnknown = "kubernetes.io/legacy-unknown"

// How long requests stay (kubernetes, pkg/controller/certificates/cleaner).
const (
	doneAge    = time.Hour
	pendingAge = 24 * time.Hour
)

// Lifetimes (kubernetes, pkg/controller/certificates/signer).
const (
	backdate    = 5 * time.Minute  // for clocks that are behind
	shortLived  = 8 * time.Hour    // certificates below this end as late as asked, in spite of backdate
	shortestTTL = 10 * time.Minute // of a certificate, whatever is asked
)

// parse reads the PEM of a request.
func parse(data []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	return x509.ParseCertificateRequest(block.Bytes)
}

// condition returns the condition of a type that is true, nil if there is none.
func condition(csr *certificatesv1.CertificateSigningRequest, kind certificatesv1.RequestConditionType) *certificatesv1.CertificateSigningRequestCondition {
	for i := range csr.Status.Conditions {
		if c := &csr.Status.Conditions[i]; c.Type == kind && c.Status != corev1.ConditionFalse {
			return c
		}
	}
	return nil
}

// isSelfService reports whether request is a node's own client certificate, asked for by username.
func isSelfService(username string, request *x509.CertificateRequest) bool {
	return username == request.Subject.CommonName
}

// checkUsages compares usages with what is wanted; key encipherment is left out for keys that are not RSA's.
func checkUsages(usages []certificatesv1.KeyUsage, auth certificatesv1.KeyUsage) error {
	seen := map[certificatesv1.KeyUsage]bool{}
	for _, usage := range usages {
		seen[usage] = true
	}
	delete(seen, certificatesv1.UsageKeyEncipherment)
	if len(seen) != 2 || !seen[certificatesv1.UsageDigitalSignature] || !seen[auth] {
		return fmt.Errorf("usages did not match %v", []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, auth})
	}
	return nil
}

// requireOrganization says why request's subject is no node's.
func requireOrganization(request *x509.CertificateRequest) error {
	return refuse(!slices.Equal(request.Subject.Organization, []string{"system:nodes"}), "subject organization is not system:nodes")
}

func requireNodeName(request *x509.CertificateRequest) error {
	return refuse(!strings.HasPrefix(request.Subject.CommonName, "system:node:"), "subject common name does not begin with system:node:")
}

// refuse is an error with upstream's words if wrong is true.
func refuse(wrong bool, words string) error {
	if wrong {
		return errors.New(words)
	}
	return nil
}

// checkKubeletClient says why request is no kubelet's client certificate.
func checkKubeletClient(request *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	return cmp.Or(
		requireOrganization(request),
		refuse(len(request.DNSNames) > 0, "DNS subjectAltNames are not allowed"),
		refuse(len(request.EmailAddresses) > 0, "Email subjectAltNames are not allowed"),
		refuse(len(request.IPAddresses) > 0, "IP subjectAltNames are not allowed"),
		refuse(len(request.URIs) > 0, "URI subjectAltNames are not allowed"),
		checkUsages(usages, certificatesv1.UsageClientAuth),
		requireNodeName(request),
	)
}

// checkKubeletServing says why request is no kubelet's serving certificate.
func checkKubeletServing(request *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	return cmp.Or(
		requireOrganization(request),
		refuse(len(request.DNSNames) == 0 && len(request.IPAddresses) == 0, "DNS or IP subjectAltName is required"),
		refuse(len(request.EmailAddresses) > 0, "Email subjectAltNames are not allowed"),
		refuse(len(request.URIs) > 0, "URI subjectAltNames are not allowed"),
		checkUsages(usages, certificatesv1.UsageServerAuth),
		requireNodeName(request),
	)
}

// checkClient says why usages are none of a client certificate for the API server.
func checkClient(usages []certificatesv1.KeyUsage) error {
	for _, usage := range usages {
		switch usage {
		case certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageClientAuth:
		default:
			return fmt.Errorf("invalid usage for client certificate: %s", usage)
		}
	}
	if !slices.Contains(usages, certificatesv1.UsageClientAuth) {
		return fmt.Errorf("missing required usage for client certificate: %s", certificatesv1.UsageClientAuth)
	}
	return nil
}

// checkSigner says whether the request is for a signer of ours, and why that one refuses it.
func checkSigner(csr *certificatesv1.CertificateSigningRequest, request *x509.CertificateRequest) (ours bool, err error) {
	switch csr.Spec.SignerName {
	case certificatesv1.KubeAPIServerClientSignerName:
		return true, checkClient(csr.Spec.Usages)
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		return true, checkKubeletClient(request, csr.Spec.Usages)
	case certificatesv1.KubeletServingSignerName:
		return true, checkKubeletServing(request, csr.Spec.Usages)
	case signerLegacyUnknown:
		return true, nil
	}
	return false, nil
}

// lifetime is how long a certificate lives: as asked, between shortestTTL and limit.
func lifetime(seconds *int32, limit time.Duration) time.Duration {
	if seconds == nil {
		return limit
	}
	return min(max(time.Duration(*seconds)*time.Second, shortestTTL), limit)
}

// usagesOf turns the API's words into a certificate's.
func usagesOf(usages []certificatesv1.KeyUsage) (x509.KeyUsage, []x509.ExtKeyUsage, error) {
	plain := map[certificatesv1.KeyUsage]x509.KeyUsage{
		certificatesv1.UsageSigning: x509.KeyUsageDigitalSignature, certificatesv1.UsageDigitalSignature: x509.KeyUsageDigitalSignature,
		certificatesv1.UsageContentCommitment: x509.KeyUsageContentCommitment, certificatesv1.UsageKeyEncipherment: x509.KeyUsageKeyEncipherment,
		certificatesv1.UsageKeyAgreement: x509.KeyUsageKeyAgreement, certificatesv1.UsageDataEncipherment: x509.KeyUsageDataEncipherment,
		certificatesv1.UsageCertSign: x509.KeyUsageCertSign, certificatesv1.UsageCRLSign: x509.KeyUsageCRLSign,
		certificatesv1.UsageEncipherOnly: x509.KeyUsageEncipherOnly, certificatesv1.UsageDecipherOnly: x509.KeyUsageDecipherOnly,
	}
	extended := map[certificatesv1.KeyUsage]x509.ExtKeyUsage{
		certificatesv1.UsageAny: x509.ExtKeyUsageAny, certificatesv1.UsageServerAuth: x509.ExtKeyUsageServerAuth,
		certificatesv1.UsageClientAuth: x509.ExtKeyUsageClientAuth, certificatesv1.UsageCodeSigning: x509.ExtKeyUsageCodeSigning,
		certificatesv1.UsageEmailProtection: x509.ExtKeyUsageEmailProtection, certificatesv1.UsageSMIME: x509.ExtKeyUsageEmailProtection,
		certificatesv1.UsageIPsecEndSystem: x509.ExtKeyUsageIPSECEndSystem, certificatesv1.UsageIPsecTunnel: x509.ExtKeyUsageIPSECTunnel,
		certificatesv1.UsageIPsecUser: x509.ExtKeyUsageIPSECUser, certificatesv1.UsageTimestamping: x509.ExtKeyUsageTimeStamping,
		certificatesv1.UsageOCSPSigning: x509.ExtKeyUsageOCSPSigning, certificatesv1.UsageMicrosoftSGC: x509.ExtKeyUsageMicrosoftServerGatedCrypto,
		certificatesv1.UsageNetscapeSGC: x509.ExtKeyUsageNetscapeServerGatedCrypto,
	}
	var usage x509.KeyUsage
	var ext []x509.ExtKeyUsage
	for _, name := range usages {
		if bit, ok := plain[name]; ok {
			usage |= bit
		} else if one, ok := extended[name]; ok {
			ext = append(ext, one)
		} else {
			return 0, nil, fmt.Errorf("unrecognized usage values: %q", []certificatesv1.KeyUsage{name})
		}
	}
	slices.Sort(ext)
	return usage, slices.Compact(ext), nil
}

// sign makes the certificate that request asks for: its subject and names, the API's usages, never an authority.
func sign(request *x509.CertificateRequest, usages []certificatesv1.KeyUsage, ttl time.Duration, now time.Time, ca *x509.Certificate, key crypto.Signer) ([]byte, error) {
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("unable to verify certificate request signature: %w", err)
	}
	usage, extended, err := usagesOf(usages)
	if err != nil {
		return nil, err
	}
	if !now.Before(ca.NotAfter) {
		return nil, fmt.Errorf("the authority ended at %v", ca.NotAfter)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	end := now.Add(ttl)
	if ttl >= shortLived {
		end = end.Add(-backdate)
	}
	if end.After(ca.NotAfter) {
		end = ca.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: request.Subject, DNSNames: request.DNSNames, IPAddresses: request.IPAddresses,
		EmailAddresses: request.EmailAddresses, URIs: request.URIs, KeyUsage: usage, ExtKeyUsage: extended,
		BasicConstraintsValid: true, NotBefore: now.Add(-backdate), NotAfter: end,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, request.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// removeAt is when the request may go. Conditions without a time say nothing about it.
func removeAt(csr *certificatesv1.CertificateSigningRequest) (time.Time, bool) {
	var at time.Time
	sooner := func(candidate time.Time) {
		if at.IsZero() || candidate.Before(at) {
			at = candidate
		}
	}
	if len(csr.Status.Conditions) == 0 {
		sooner(csr.CreationTimestamp.Add(pendingAge))
	}
	issued := len(csr.Status.Certificate) > 0
	for _, c := range csr.Status.Conditions {
		switch {
		case c.Type == certificatesv1.CertificateApproved && issued && notAfter(csr.Status.Certificate) != nil:
			sooner(*notAfter(csr.Status.Certificate))
		}
		if c.LastUpdateTime.IsZero() {
			continue
		}
		switch {
		case c.Type == certificatesv1.CertificateApproved && !issued:
			sooner(c.LastUpdateTime.Add(pendingAge))
		case c.Type == certificatesv1.CertificateApproved, c.Type == certificatesv1.CertificateDenied, c.Type == certificatesv1.CertificateFailed:
			sooner(c.LastUpdateTime.Add(doneAge))
		}
	}
	return at, !at.IsZero()
}

// notAfter is the end of the first certificate in data, nil if there is none.
func notAfter(data []byte) *time.Time {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return &cert.NotAfter
}
