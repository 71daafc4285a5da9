package auth

import (
	"crypto/x509"
	"net/http"
	"slices"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
)

// FrontProxy says which proxies before this server are believed when they say whom they speak for.
type FrontProxy struct {
	CAs   func() *x509.CertPool // who may sign their certificates
	Names []string              // common names of those certificates; empty: any
}

// The headers in which a front proxy names the user, as kubeadm configures them.
const (
	frontProxyUser   = "X-Remote-User"
	frontProxyUID    = "X-Remote-Uid"
	frontProxyGroup  = "X-Remote-Group"
	frontProxyExtras = "X-Remote-Extra-"
)

// FrontProxyHeaders is what other API servers must be told to believe us, by their names in the ConfigMap
// kube-system/extension-apiserver-authentication.
func FrontProxyHeaders() map[string][]string {
	return map[string][]string{
		"requestheader-username-headers":     {frontProxyUser},
		"requestheader-uid-headers":          {frontProxyUID},
		"requestheader-group-headers":        {frontProxyGroup},
		"requestheader-extra-headers-prefix": {frontProxyExtras},
	}
}

// newFrontProxy returns the authenticator of requests that come through a front proxy, nil if none is believed.
func newFrontProxy(opts *FrontProxy) authenticator.Request {
	if opts == nil {
		return nil
	}
	verify := func() (x509.VerifyOptions, bool) {
		return x509.VerifyOptions{Roots: opts.CAs(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, true
	}
	one := func(name string) headerrequest.StringSliceProvider { return headerrequest.StaticStringSlice{name} }
	return headerrequest.NewDynamicVerifyOptionsSecure(verify, headerrequest.StaticStringSlice(slices.Clone(opts.Names)),
		one(frontProxyUser), one(frontProxyUID), one(frontProxyGroup), one(frontProxyExtras))
}

// fromFrontProxy authenticates a request whose certificate is a front proxy's; nil for any other. What the headers say
// counts for nothing then: anybody can send them.
func (a *Authenticator) fromFrontProxy(req *http.Request) *authenticator.Response {
	if a.frontProxy == nil || req.TLS == nil || len(req.TLS.PeerCertificates) == 0 || len(req.Header[frontProxyUser]) == 0 {
		return nil
	}
	response, ok, err := a.frontProxy.AuthenticateRequest(req)
	if err != nil || !ok {
		return nil
	}
	return withAuthenticated(response)
}
