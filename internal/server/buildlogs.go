package server

import (
	"context"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
)

// builtAt hands requests for a build's log to the server that builds it; nil is this one.
func (cp *ControlPlane) builtAt(ctx context.Context, namespace, name string) http.Handler {
	if !cp.store.HasCompany() {
		return nil
	}
	at := cp.store.Leader()
	obj := &unstructured.Unstructured{}
	obj.SetGroupVersionKind(v1alpha1.GroupVersion().WithKind("Build"))
	if err := cp.admin.Get(ctx, ctrlclient.ObjectKey{Namespace: namespace, Name: name}, obj); err == nil {
		if node, _, _ := unstructured.NestedString(obj.Object, "status", "node"); node != "" {
			at = node
		}
	}
	if at == "" || at == cp.opts.Name {
		return nil
	}
	return cp.servers.proxy(at)
}

// proxy hands requests to the server of a node, as a server; who asks is known and may. nil: there is no such server.
func (p *otherServers) proxy(node string) http.Handler {
	if !p.reachable() {
		return nil
	}
	for _, m := range p.cp.store.Known() {
		addr, ok := addressOf(m)
		if !ok || m.Self || m.Name != node {
			continue
		}
		address := netip.AddrPortFrom(addr, p.cp.opts.Endpoint().Port()).String()
		return &httputil.ReverseProxy{
			Transport: p.client(address).Transport, FlushInterval: -1,
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(&url.URL{Scheme: "https", Host: address})
				for _, name := range []string{"Authorization", "Impersonate-User", "Impersonate-Group", "Impersonate-Uid"} {
					r.Out.Header.Del(name)
				}
			},
		}
	}
	return nil
}
