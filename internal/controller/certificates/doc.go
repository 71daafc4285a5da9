// Package certificates works on CertificateSigningRequests: it approves what kubelets ask for
// themselves, signs what is approved and is for one of Kubernetes' own signers, and removes requests
// that are done.
//
// Who may ask for what, what a certificate holds and how long a request stays is as in upstream's
// kube-controller-manager; the rules are cited where they stand. Serving certificates of kubelets are
// signed but, as upstream, never approved by itself. Start at New and Controller.Run; plan.go has the
// rules as pure functions.
package certificates
