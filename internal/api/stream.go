package api

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericrest "k8s.io/apiserver/pkg/registry/generic/rest"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	registrynode "k8s.io/kubernetes/pkg/registry/core/node"
	registrypod "k8s.io/kubernetes/pkg/registry/core/pod"
	podrest "k8s.io/kubernetes/pkg/registry/core/pod/rest"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// newProxyTransport speaks to pods, services and nodes for the proxy subresources. As upstream's it believes any
// certificate: those of workloads are signed by nobody we know, and the connection stays in the cluster.
func newProxyTransport() http.RoundTripper {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, //nolint:gosec // see above
		TLSHandshakeTimeout: 10 * time.Second, MaxIdleConns: 64, MaxIdleConnsPerHost: 4, IdleConnTimeout: 90 * time.Second,
	}
}

// streams serves the subresources that end at a node's agent or at a pod: log, exec, attach, portforward, proxy.
// Where they go and what they say when something is missing is upstream's; WebSocket exec and portforward are
// translated here, so that an agent needs to know SPDY only.
type streams struct {
	server *Server
	conn   map[string]rest.Connecter // by subresource of pods
}

// getter gives upstream's code the objects of one resource, as internal types.
type getter struct {
	server   *Server
	resource schema.GroupVersionResource
}

// Get implements the ResourceGetter of upstream's pod and node packages.
func (g getter) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	ep := g.server.routes().endpoints[g.resource]
	if ep == nil {
		return nil, apierrors.NewNotFound(g.resource.GroupResource(), name)
	}
	namespace := ""
	if ep.Namespaced {
		namespace = request.NamespaceValue(ctx)
	}
	entry, err := ep.Get(ctx, namespace, name, "")
	if err != nil {
		return nil, err
	}
	// A copy, because the conversion shares memory and what follows is not ours.
	return legacyscheme.Scheme.UnsafeConvertToVersion(entry.Object.DeepCopyObject(), runtime.InternalGroupVersioner)
}

func newStreams(s *Server) *streams {
	core := corev1.SchemeGroupVersion
	pods := getter{s, core.WithResource("pods")}
	agents := agentInfo{s}
	return &streams{server: s, conn: map[string]rest.Connecter{
		"exec":        &podrest.ExecREST{Store: pods, KubeletConn: agents, Authorizer: s.opts.Authorizer},
		"attach":      &podrest.AttachREST{Store: pods, KubeletConn: agents, Authorizer: s.opts.Authorizer},
		"portforward": &podrest.PortForwardREST{Store: pods, KubeletConn: agents, Authorizer: s.opts.Authorizer},
	}}
}

// serves reports whether a subresource is a stream.
func (s *streams) serves(resource, subresource string) bool {
	switch resource {
	case "pods":
		return subresource == "log" || subresource == "proxy" || subresource == "exec" || subresource == "attach" || subresource == "portforward"
	case "nodes", "services":
		return subresource == "proxy"
	}
	return false
}

// connects reports whether a stream takes a method: a proxy takes all, as upstream's does.
func connects(subresource, method string) bool {
	switch method {
	case http.MethodGet:
		return true
	case http.MethodHead:
		return subresource == "proxy" || subresource == "log"
	case http.MethodPost:
		return subresource != "log"
	case http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return subresource == "proxy"
	}
	return false
}

// dropCredentials removes what a request says about who sends it: that is for us, and where the request goes it could
// be used or believed.
func dropCredentials(header http.Header) {
	header.Del("Authorization")
	for name := range header {
		if strings.HasPrefix(name, "Impersonate-") || strings.HasPrefix(name, "X-Remote-") {
			header.Del(name)
		}
	}
}

// agentInfo finds a node's agent. It implements client.ConnectionInfoGetter of upstream.
type agentInfo struct{ server *Server }

// GetConnectionInfo implements upstream's ConnectionInfoGetter: the agent listens at the node's internal address.
func (a agentInfo) GetConnectionInfo(ctx context.Context, name types.NodeName) (*kubeletclient.ConnectionInfo, error) {
	if a.server.opts.AgentTransport == nil {
		return nil, apierrors.NewServiceUnavailable("this server has no way to reach agents")
	}
	ep := a.server.routes().endpoints[corev1.SchemeGroupVersion.WithResource("nodes")]
	entry, err := ep.Get(ctx, "", string(name), "")
	if err != nil {
		return nil, err
	}
	node, ok := entry.Object.(*corev1.Node)
	if !ok {
		return nil, fmt.Errorf("a %T is no node", entry.Object)
	}
	host := nodeHost(node)
	if host == "" {
		return nil, fmt.Errorf("no preferred addresses found; known addresses: %v", node.Status.Addresses)
	}
	port := a.server.opts.AgentPort
	if own := node.Status.DaemonEndpoints.KubeletEndpoint.Port; own > 0 {
		port = int(own)
	}
	return &kubeletclient.ConnectionInfo{Scheme: "https", Hostname: host, Port: strconv.Itoa(port), Transport: a.server.opts.AgentTransport,
		InsecureSkipTLSVerifyTransport: a.server.opts.AgentTransport}, nil
}

// nodeHost is the address under which a node is reached.
func nodeHost(node *corev1.Node) string {
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeHostName} {
		for _, address := range node.Status.Addresses {
			if address.Type == kind && address.Address != "" {
				return address.Address
			}
		}
	}
	return ""
}

// connect answers a stream.
func (s *streams) connect(q *query) int {
	dropCredentials(q.r.Header)
	ctx := request.WithNamespace(q.context(), q.path.Namespace)
	name, sub := q.path.Name, q.path.Subresource
	gauge := s.server.metrics.inflight.WithLabelValues("CONNECT", q.path.Resource)
	gauge.Inc()
	defer gauge.Dec()
	if sub == "log" {
		return s.log(ctx, q)
	}
	if sub == "proxy" {
		return s.proxy(ctx, q)
	}
	connecter := s.conn[sub]
	opts, _, _ := connecter.NewConnectOptions()
	if err := legacyscheme.ParameterCodec.DecodeParameters(q.r.URL.Query(), corev1.SchemeGroupVersion, opts); err != nil {
		return s.server.fail(q, apierrors.NewBadRequest(err.Error()))
	}
	if err := q.endpoint.Connect(ctx, q.namespace(), name, sub, opts); err != nil {
		return s.server.fail(q, err)
	}
	answer := &responder{server: s.server, q: q, code: http.StatusSwitchingProtocols}
	handler, err := connecter.Connect(ctx, name, opts, answer)
	if err != nil {
		return s.server.fail(q, err)
	}
	handler.ServeHTTP(q.w, q.r.WithContext(ctx))
	return answer.code
}

// responder answers what goes wrong before a stream stands. It implements rest.Responder.
type responder struct {
	server *Server
	q      *query
	code   int
}

// Object implements rest.Responder.
func (r *responder) Object(code int, object runtime.Object) {
	r.code = r.server.writeObject(r.q, output{}, code, object.GetObjectKind().GroupVersionKind(), object)
}

// Error implements rest.Responder.
func (r *responder) Error(err error) { r.code = r.server.fail(r.q, err) }

// log streams the log of a container.
func (s *streams) log(ctx context.Context, q *query) int {
	opts := &core.PodLogOptions{}
	if err := legacyscheme.ParameterCodec.DecodeParameters(q.r.URL.Query(), corev1.SchemeGroupVersion, opts); err != nil {
		return s.server.fail(q, apierrors.NewBadRequest(err.Error()))
	}
	if opts.Stream == nil {
		all := core.LogStreamAll
		opts.Stream = &all
	}
	if errs := validation.ValidatePodLogOptions(opts, true); len(errs) > 0 {
		return s.server.fail(q, apierrors.NewInvalid(core.Kind("PodLogOptions"), q.path.Name, errs))
	}
	pods := getter{s.server, corev1.SchemeGroupVersion.WithResource("pods")}
	location, transport, err := registrypod.LogLocation(ctx, pods, agentInfo{s.server}, q.path.Name, opts)
	if err != nil {
		return s.server.fail(q, err)
	}
	stream := &genericrest.LocationStreamer{
		Location: location, Transport: transport, ContentType: "text/plain", Flush: opts.Follow, RedirectChecker: genericrest.PreventRedirects,
		ResponseChecker: genericrest.NewGenericHttpResponseChecker(core.Resource("pods/log"), q.path.Name),
	}
	counted := &codeWriter{ResponseWriter: q.w, code: http.StatusOK}
	var w http.ResponseWriter = counted
	if wsstream.IsWebSocketRequest(q.r) {
		w = q.w // an upgrade takes the connection over and looks for that on the writer itself
	}
	responsewriters.StreamObject(http.StatusOK, corev1.SchemeGroupVersion, legacyscheme.Codecs, wholeStream{stream}, w, q.r.WithContext(ctx))
	return counted.code
}

// wholeStream gives its end apart from its last bytes: upstream's WebSocket reader forgets bytes that come together
// with the end.
type wholeStream struct{ rest.ResourceStreamer }

// InputStream implements rest.ResourceStreamer.
func (s wholeStream) InputStream(ctx context.Context, apiVersion, accept string) (io.ReadCloser, bool, string, error) {
	stream, flush, contentType, err := s.ResourceStreamer.InputStream(ctx, apiVersion, accept)
	if stream != nil {
		stream = lateEnd{stream}
	}
	return stream, flush, contentType, err
}

type lateEnd struct{ io.ReadCloser }

// Read implements io.Reader; an error that comes with bytes comes again without them.
func (l lateEnd) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if n > 0 {
		err = nil
	}
	return n, err
}

// codeWriter remembers the code that others wrote.
type codeWriter struct {
	http.ResponseWriter
	code int
}

// WriteHeader implements http.ResponseWriter.
func (w *codeWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// Flush implements http.Flusher.
func (w *codeWriter) Flush() {
	if flusher, ok := w.ResponseWriter.(http.Flusher); ok {
		flusher.Flush()
	}
}

// Unwrap lets http.ResponseController find what the writer can do.
func (w *codeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// proxy passes a request on to a node, pod or service.
func (s *streams) proxy(ctx context.Context, q *query) int {
	var location *url.URL
	var transport http.RoundTripper
	err := q.endpoint.Connect(ctx, q.namespace(), q.path.Name, q.path.Subresource, proxyOptions(q.path.Resource, s.proxyPath(q)))
	if err != nil {
		return s.server.fail(q, err)
	}
	version := corev1.SchemeGroupVersion
	switch q.path.Resource {
	case "nodes":
		location, transport, err = registrynode.ResourceLocation(getter{s.server, version.WithResource("nodes")}, agentInfo{s.server},
			s.server.opts.ProxyTransport, ctx, q.path.Name)
	case "pods":
		location, transport, err = registrypod.ResourceLocation(ctx, getter{s.server, version.WithResource("pods")}, s.server.opts.ProxyTransport, q.path.Name)
	case "services":
		location, transport, err = s.serviceLocation(ctx, q.path.Namespace, q.path.Name)
	}
	if err != nil {
		return s.server.fail(q, err)
	}
	location.Path = utilnet.JoinPreservingTrailingSlash(location.Path, s.proxyPath(q))
	answer := &responder{server: s.server, q: q, code: http.StatusOK}
	counted := &codeWriter{ResponseWriter: q.w, code: http.StatusOK}
	handler := proxy.NewUpgradeAwareHandler(location, transport, true, false, proxy.NewErrorResponder(answer))
	handler.UseLocationHost = false
	var w http.ResponseWriter = counted
	if _, upgrades := q.r.Header["Upgrade"]; upgrades {
		w = q.w // as for a log
	}
	handler.ServeHTTP(w, q.r.WithContext(ctx))
	if answer.code != http.StatusOK {
		return answer.code
	}
	return counted.code
}

// proxyOptions are what admission is shown of a request to a proxy.
func proxyOptions(resource, path string) runtime.Object {
	switch resource {
	case "nodes":
		return &core.NodeProxyOptions{Path: path}
	case "services":
		return &core.ServiceProxyOptions{Path: path}
	}
	return &core.PodProxyOptions{Path: path}
}

// proxyPath is what the target is asked for: what follows "proxy", or the path parameter.
func (s *streams) proxyPath(q *query) string {
	path := q.path.rest
	if path != "" && len(q.r.URL.Path) > 0 && q.r.URL.Path[len(q.r.URL.Path)-1] == '/' {
		path += "/"
	}
	if path == "" {
		path = q.r.URL.Query().Get("path")
	}
	return path
}

// serviceLocation picks an address of a service. id is name, name:port or scheme:name:port.
func (s *streams) serviceLocation(ctx context.Context, namespace, id string) (*url.URL, http.RoundTripper, error) {
	scheme, name, port, valid := utilnet.SplitSchemeNamePort(id)
	if !valid {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("invalid service request %q", id))
	}
	version := corev1.SchemeGroupVersion
	if number, err := strconv.ParseInt(port, 10, 64); err == nil {
		entry, err := s.server.routes().endpoints[version.WithResource("services")].Get(ctx, namespace, name, "")
		if err != nil {
			return nil, nil, err
		}
		service, _ := entry.Object.(*corev1.Service)
		found := false
		for i := range service.Spec.Ports {
			if int64(service.Spec.Ports[i].Port) == number {
				port, found = service.Spec.Ports[i].Name, true
				break
			}
		}
		if !found {
			return nil, nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", number, name))
		}
	}
	entry, err := s.server.routes().endpoints[version.WithResource("endpoints")].Get(ctx, namespace, name, "")
	if err != nil {
		return nil, nil, err
	}
	endpoints, _ := entry.Object.(*corev1.Endpoints)
	if len(endpoints.Subsets) == 0 {
		return nil, nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	if host := s.pickAddress(ctx, namespace, endpoints, port); host != "" {
		return &url.URL{Scheme: scheme, Host: host}, s.server.opts.ProxyTransport, nil
	}
	return nil, nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
}

// pickAddress returns host:port of a pod behind the named port. Addresses that are no pod's are passed over, so
// that an Endpoints object that someone wrote by hand cannot make the server call anything.
func (s *streams) pickAddress(ctx context.Context, namespace string, endpoints *corev1.Endpoints, port string) string {
	pods := s.server.routes().endpoints[corev1.SchemeGroupVersion.WithResource("pods")]
	for _, i := range rand.Perm(len(endpoints.Subsets)) {
		subset := &endpoints.Subsets[i]
		for _, candidate := range subset.Ports {
			if candidate.Name != port {
				continue
			}
			for _, j := range rand.Perm(len(subset.Addresses)) {
				address := &subset.Addresses[j]
				if address.TargetRef == nil || address.TargetRef.Kind != "Pod" || address.TargetRef.Namespace != namespace {
					continue
				}
				entry, err := pods.Get(ctx, namespace, address.TargetRef.Name, "")
				if err != nil {
					continue
				}
				if pod, ok := entry.Object.(*corev1.Pod); ok && hasAddress(pod, address.IP) {
					return net.JoinHostPort(address.IP, strconv.Itoa(int(candidate.Port)))
				}
			}
		}
	}
	return ""
}

func hasAddress(pod *corev1.Pod, ip string) bool {
	if pod.Status.PodIP == ip {
		return true
	}
	for _, own := range pod.Status.PodIPs {
		if own.IP == ip {
			return true
		}
	}
	return false
}
