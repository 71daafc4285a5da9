package certificates

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const nodeUserPrefix = "system:node:"

// A node that has just begun asks for the certificate that it serves with before it has said its addresses.
const (
	nodeRetry    = 250 * time.Millisecond
	nodePatience = time.Minute
)

// awaitsNode reports whether a request may be approved when its node has said more of itself.
func awaitsNode(csr *certificatesv1.CertificateSigningRequest, now time.Time) bool {
	return csr.Spec.SignerName == certificatesv1.KubeletServingSignerName && len(csr.Status.Conditions) == 0 &&
		slices.Contains(csr.Spec.Groups, "system:nodes") && now.Sub(csr.CreationTimestamp.Time) < nodePatience
}

// refuseTaken denies a certificate for the name of a node that is there to somebody who is not that node.
func (cc *Controller) refuseTaken(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, request *x509.CertificateRequest) (bool, error) {
	name := strings.TrimPrefix(request.Subject.CommonName, nodeUserPrefix)
	err := cc.client.Get(ctx, client.ObjectKey{Name: name}, &corev1.Node{})
	reserved := slices.Contains(cc.reserved().DNSNames, name)
	if apierrors.IsNotFound(err) && !reserved {
		return false, nil
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("asking whether there is a node %s: %w", name, err)
	}
	message := fmt.Sprintf("there is a node %s: remove it with \"gantry node rm %s\" if it is gone for good, or join under another name with --node-name", name, name)
	if err != nil { // there is no such node
		message = fmt.Sprintf("%s is a name of the API, so no node can have it: join under another name with --node-name", name)
	}
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateDenied, Status: corev1.ConditionTrue, Reason: "NameTaken", LastUpdateTime: metav1.Now(), Message: message,
	})
	if err := cc.client.SubResource("approval").Update(ctx, csr); err != nil {
		return false, fmt.Errorf("refusing %s: %w", csr.Name, err)
	}
	return true, nil
}

// reserved is the API server's certificate.
func (cc *Controller) reserved() *x509.Certificate {
	if cc.opts.Reserved == nil {
		return &x509.Certificate{}
	}
	return cc.opts.Reserved()
}

// approveServing approves the certificate that a node serves with, for itself and its own addresses.
func (cc *Controller) approveServing(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, request *x509.CertificateRequest) (bool, error) {
	if checkKubeletServing(request, csr.Spec.Usages) != nil || !isSelfService(csr.Spec.Username, request) || !slices.Contains(csr.Spec.Groups, "system:nodes") {
		return false, nil
	}
	var nodes corev1.NodeList
	if err := cc.client.List(ctx, &nodes); err != nil {
		return false, fmt.Errorf("reading the nodes' addresses: %w", err)
	}
	if !ownNames(nodes.Items, strings.TrimPrefix(request.Subject.CommonName, nodeUserPrefix), request) || overlaps(request, cc.reserved()) {
		return false, nil
	}
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "AutoApproved", LastUpdateTime: metav1.Now(),
		Message: "The node asks for its own name and addresses.",
	})
	if err := cc.client.SubResource("approval").Update(ctx, csr); err != nil {
		return false, fmt.Errorf("approving %s: %w", csr.Name, err)
	}
	return true, nil
}

// ownNames reports whether a request names nothing but the node and addresses that it has and no other node has: else a node
// could serve as another, or as the API.
func ownNames(nodes []corev1.Node, name string, request *x509.CertificateRequest) bool {
	holders := map[string][]string{} // by address
	for i := range nodes {
		for _, a := range nodes[i].Status.Addresses {
			if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
				holders[a.Address] = append(holders[a.Address], nodes[i].Name)
			}
		}
	}
	for _, ip := range request.IPAddresses {
		if !slices.Equal(slices.Compact(holders[ip.String()]), []string{name}) {
			return false
		}
	}
	return !slices.ContainsFunc(request.DNSNames, func(dns string) bool { return dns != name })
}

// overlaps reports whether a request names something that a certificate names.
func overlaps(request *x509.CertificateRequest, cert *x509.Certificate) bool {
	return slices.ContainsFunc(request.DNSNames, func(dns string) bool { return slices.Contains(cert.DNSNames, dns) }) ||
		slices.ContainsFunc(request.IPAddresses, func(ip net.IP) bool { return slices.ContainsFunc(cert.IPAddresses, ip.Equal) })
}
