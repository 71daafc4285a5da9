package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/api/aggregate"
	"gantry.dev/gantry/internal/api/auth"
	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/controller/apiservice"
	"gantry.dev/gantry/internal/controller/flowcontrol"
	"gantry.dev/gantry/internal/pki"
)

// FrontProxy is how this server and other API servers believe each other about users.
type FrontProxy struct {
	CA          []byte                // PEM of who signs front proxies' certificates
	Pool        func() *x509.CertPool // of the same
	Name        string                // common name of our own certificate
	Certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
}

func frontProxy(authority *pki.Authority) *FrontProxy {
	pool := authority.Pool(pki.FrontProxyCA) // authorities are never replaced
	return &FrontProxy{
		CA: authority.CertPEM(pki.FrontProxyCA), Pool: func() *x509.CertPool { return pool },
		Name: string(pki.FrontProxyClient), Certificate: authority.GetClientCertificate(pki.FrontProxyClient),
	}
}

// believed is who may speak for others in requests to this server.
func (f *FrontProxy) believed() *auth.FrontProxy {
	if f == nil {
		return nil
	}
	return &auth.FrontProxy{CAs: f.Pool, Names: []string{f.Name}}
}

// newAggregator makes what passes requests on to other API servers.
func (cp *ControlPlane) newAggregator() (*aggregate.Aggregator, error) {
	opts := aggregate.Options{Reader: cp.admin, Log: cp.opts.Logger}
	if cp.opts.FrontProxy != nil {
		opts.Certificate = cp.opts.FrontProxy.Certificate
	}
	return aggregate.New(opts)
}

// startAggregator runs it, and the controller of APIServices.
// It returns when requests for what other servers have go there.
func (cp *ControlPlane) startAggregator(ctx context.Context, run func(string, func(context.Context) error), informers *client.Cache) error {
	if cp.registry.Resource(apiregistrationv1.SchemeGroupVersion.WithResource("apiservices")) == nil {
		return nil // switched off
	}
	keeper, err := apiservice.New(cp.admin, informers, apiservice.Options{
		Served: cp.handler.Versions, Changed: cp.registry.Changed, Check: cp.aggregator.Check, Log: cp.opts.Logger,
	})
	if err != nil {
		return err
	}
	known := make(chan struct{})
	run("aggregator", func(ctx context.Context) error { return cp.aggregator.Run(ctx, informers, func() { close(known) }) })
	run("APIServices", keeper.Run)
	return waitFor(known)(ctx)
}

// startFairness makes FlowSchemas and priority levels count, unless their API is switched off.
func (cp *ControlPlane) startFairness(run func(string, func(context.Context) error), informers *client.Cache) error {
	for _, name := range []string{"flowschemas", "prioritylevelconfigurations"} {
		if cp.registry.Resource(flowcontrolv1.SchemeGroupVersion.WithResource(name)) == nil {
			return nil
		}
	}
	conditions, err := flowcontrol.New(cp.admin, informers, cp.opts.Logger)
	if err != nil {
		return err
	}
	run("priority and fairness", func(ctx context.Context) error { return cp.fairness.Run(ctx, informers) })
	run("FlowSchemas", conditions.Run)
	return nil
}

// publishAuthentication tells other API servers, in the ConfigMap that upstream's library looks for, whose certificates
// and whose headers to believe.
func (cp *ControlPlane) publishAuthentication(ctx context.Context) error {
	data := map[string]string{"client-ca-file": string(cp.opts.RootCA)}
	if proxy := cp.opts.FrontProxy; proxy != nil {
		data["requestheader-client-ca-file"] = string(proxy.CA)
		lists := auth.FrontProxyHeaders()
		lists["requestheader-allowed-names"] = []string{proxy.Name}
		for key, values := range lists {
			list, err := json.Marshal(values)
			if err != nil {
				return fmt.Errorf("encoding %s: %w", key, err)
			}
			data[key] = string(list)
		}
	}
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "extension-apiserver-authentication"}, Data: data}
	there := new(corev1.ConfigMap)
	err := cp.admin.Get(ctx, ctrlclient.ObjectKeyFromObject(config), there)
	switch {
	case apierrors.IsNotFound(err):
		return cp.admin.Create(ctx, config)
	case err != nil || maps.Equal(there.Data, data):
		return err
	}
	next := there.DeepCopy()
	next.Data = data
	return cp.admin.Update(ctx, next)
}
