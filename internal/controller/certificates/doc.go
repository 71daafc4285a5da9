// Package certificates works on CertificateSigningRequests: it approves what kubelets ask for
// themselves, signs what is approved and is for one of Kubernetes' own signers, and removes requests
// that are done.
//
// Who may ask for what, what a certificate holds and how long a request stays is as in upstream's
// kube-controller-manager; the rules are cited where they stand. Two rules are stricter or wider: who joins
// with a token cannot take the name of a node that is there, and a node gets the certificate that it serves
// with if that names nothing but the node and addresses that are its own and nobody else's. Start at New and
// Controller.Run; plan.go has the rules as pure functions.
package certificates
