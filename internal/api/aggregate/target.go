package aggregate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/authentication/user"
	apiserverproxy "k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/transport"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// Target is another server's group version.
type Target struct {
	opts      *Options
	name      string // of the APIService
	spec      apiregistrationv1.APIServiceSpec
	available bool
	transport *http.Transport
	err       error // why there is no transport
}

func newTarget(opts *Options, service *apiregistrationv1.APIService) *Target {
	t := &Target{opts: opts, name: service.Name, spec: service.Spec, available: available(service)}
	t.transport, t.err = newTransport(opts, &service.Spec)
	return t
}

// newTransport speaks TLS to the service of spec: its certificate must be for the service's name, signed by the CA in
// spec or, without one, by one that the machine trusts.
func newTransport(opts *Options, spec *apiregistrationv1.APIServiceSpec) (*http.Transport, error) {
	config := &tls.Config{
		ServerName: spec.Service.Name + "." + spec.Service.Namespace + ".svc", MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: spec.InsecureSkipTLSVerify, GetClientCertificate: opts.Certificate, //nolint:gosec // the APIService's author decides
	}
	if len(spec.CABundle) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(spec.CABundle) {
			return nil, errors.New("unable to load root certificates: the caBundle holds none")
		}
	}
	return &http.Transport{
		DialContext: opts.Dial, TLSClientConfig: config, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second,
	}, nil
}

// with is the same target in another state.
func (t *Target) with(available bool) *Target {
	if t.available == available {
		return t
	}
	next := *t
	next.available = available
	return &next
}

func (t *Target) close() {
	if t.transport != nil {
		t.transport.CloseIdleConnections()
	}
}

// Serve passes r on as who and returns the code of the answer. The context of r carries the request information.
func (t *Target) Serve(w http.ResponseWriter, r *http.Request, who user.Info) int {
	switch {
	case !t.available:
		return refuse(w, "service unavailable", http.StatusServiceUnavailable)
	case t.err != nil:
		return refuse(w, t.err.Error(), http.StatusInternalServerError)
	}
	endpoint, err := resolve(r.Context(), t.opts.Reader, t.spec.Service)
	if err != nil {
		t.opts.Log.LogAttrs(r.Context(), slog.LevelDebug, "an API server cannot be found", slog.String("apiService", t.name), slog.Any("error", err))
		return refuse(w, "service unavailable", http.StatusServiceUnavailable)
	}
	location := &url.URL{Scheme: "https", Host: endpoint.Host, Path: r.URL.Path, RawQuery: r.URL.Query().Encode()}
	next, cancel := apiserverproxy.NewRequestForProxy(location, r)
	defer cancel()
	next.URL = r.URL // the handler goes to location, and makes redirects relative to this
	if id := w.Header().Get("Audit-Id"); id != "" {
		next.Header.Set("Audit-Id", id)
	}
	next.Header.Del("Authorization")
	for name := range next.Header { // whom the caller acts as has been settled
		if strings.HasPrefix(name, "Impersonate-") {
			next.Header.Del(name)
		}
	}
	upgrades := httpstream.IsUpgradeRequest(r)
	roundTripper := transport.NewAuthProxyRoundTripper(who.GetName(), who.GetUID(), who.GetGroups(), who.GetExtra(), t.transport)
	if upgrades { // these are written to the connection directly
		transport.SetAuthProxyHeaders(next, who.GetName(), who.GetUID(), who.GetGroups(), who.GetExtra())
	}
	answer := &answer{ResponseWriter: w, code: http.StatusOK}
	handler := proxy.NewUpgradeAwareHandler(location, roundTripper, true, upgrades, answer)
	if upgrades { // takes the connection over, and looks for that on the writer itself
		answer.code = http.StatusSwitchingProtocols
		handler.ServeHTTP(w, next)
		return answer.code
	}
	// What these say is for the other server to say.
	w.Header().Del("Audit-Id")
	w.Header().Del("Cache-Control")
	handler.ServeHTTP(answer, next)
	return answer.code
}

func refuse(w http.ResponseWriter, text string, code int) int {
	http.Error(w, text, code)
	return code
}

// answer remembers the code. It implements proxy.ErrorResponder.
type answer struct {
	http.ResponseWriter
	code int
}

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(code int) {
	a.code = code
	a.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController find what the writer can do.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// Error implements proxy.ErrorResponder.
func (a *answer) Error(_ http.ResponseWriter, r *http.Request, err error) {
	a.code = http.StatusServiceUnavailable
	if errors.Is(err, context.DeadlineExceeded) && r.Context().Err() != nil {
		a.code = http.StatusGatewayTimeout
	}
	http.Error(a.ResponseWriter, err.Error(), a.code)
}
