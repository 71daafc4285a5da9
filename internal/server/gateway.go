package server

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/controller/certs"
	"gantry.dev/gantry/internal/controller/gateway"
	"gantry.dev/gantry/internal/events"
	edgegateway "gantry.dev/gantry/internal/network/gateway"
	"gantry.dev/gantry/internal/network/routes"
	"gantry.dev/gantry/internal/network/routes/compile"
)

// Accounts of the gateway's parts.
const (
	gatewayAccount = "gantry-gateway"      // status and defaults
	certsAccount   = "gantry-certificates" // certificates
	edgeAccount    = "gantry-edge"         // feeds a node's edge
)

// gatewayUser is the service account of a part of the gateway.
func gatewayUser(account string) user.Info {
	return &user.DefaultInfo{
		Name:   "system:serviceaccount:" + compile.Namespace + ":" + account,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + compile.Namespace, user.AllAuthenticated},
	}
}

// gatewayScheme knows the Go types that the gateway's parts read.
func gatewayScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme, gatewayv1.Install} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("the gateway's types: %w", err)
		}
	}
	return scheme, nil
}

// asGateway gives a part of the gateway its client: it reads what controllers read.
func asGateway(from clients, account string) (*client.Client, *client.Cache, error) {
	scheme, err := gatewayScheme()
	if err != nil {
		return nil, nil, err
	}
	return from.as(client.Options{User: gatewayUser(account), Manager: account, Lister: controllersUser(), Scheme: scheme}, nil)
}

// startGateway runs what looks after the gateway's objects and certificates.
func (cp *term) startGateway() error {
	settings := cp.opts.Gateway
	if settings == nil {
		return nil
	}
	c, informers, err := asGateway(cp, gatewayAccount)
	if err != nil {
		return err
	}
	status, err := gateway.New(c, informers, cp.Events(events.Source{Component: gatewayAccount}), gateway.Options{
		HTTPPort: settings.HTTPPort, HTTPSPort: settings.HTTPSPort, Public: settings.PublicAddresses,
		Served: cp.serveGateway, Log: cp.opts.Logger,
	})
	if err != nil {
		return err
	}
	if c, informers, err = asGateway(cp, certsAccount); err != nil {
		return err
	}
	options := certs.Options{Public: settings.PublicAddresses, Log: cp.opts.Logger}
	if settings.ACME.On {
		here := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		options.ACME = certs.ACME{Directory: settings.ACME.Directory, Email: settings.ACME.Email, CAFile: settings.ACME.CAFile,
			Gateway: netip.AddrPortFrom(here, settings.HTTPPort).String(), GatewayTLS: netip.AddrPortFrom(here, settings.HTTPSPort).String()}
	}
	issuer, err := certs.New(c, informers, cp.Events(events.Source{Component: certsAccount}), options)
	if err != nil {
		return err
	}
	cp.run("gateway", status.Run)
	cp.run("certificates", issuer.Run)
	return nil
}

// awaitGateway notices that the leader has made the Gateway API's kinds.
func (cp *ControlPlane) awaitGateway(ctx context.Context) error {
	if cp.opts.Gateway == nil {
		return nil
	}
	for {
		if leading, _ := cp.store.Leading(); !leading && cp.store.HasKind("httproutes."+gatewayv1.GroupName) {
			cp.serveGateway()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-cp.gatewayServed:
			return nil
		case <-time.After(time.Second):
		}
	}
}

// feedGateway is what a node's feeder needs for the gateway; nil where there is none.
func (cp *ControlPlane) feedGateway(settings *config.Gateway, nodeName string, say func(string)) (*routes.GatewayOptions, error) {
	if settings.Off {
		return nil, nil //nolint:nilnil // no gateway is no error
	}
	c, informers, err := asGateway(cp, edgeAccount)
	if err != nil {
		return nil, err
	}
	return &routes.GatewayOptions{
		HTTPPort: settings.HTTPPort, HTTPSPort: settings.HTTPSPort, Public: settings.PublicAddresses, NodeName: nodeName,
		Kinds: cp.gatewayServed, Writer: c, Informers: informers, Say: say, Holder: portHolder,
	}, nil
}

// portHolder says who listens on a port.
func portHolder(at netip.AddrPort) (string, bool) {
	process, ok := edgegateway.Holder("/proc", at)
	return fmt.Sprintf("%s (pid %d)", process.Name, process.PID), ok
}

// gatewayObjects are the rights of the gateway's parts.
func gatewayObjects() []ctrlclient.Object {
	read := []string{"get", "list", "watch"}
	write := []string{"get", "list", "watch", "create", "update", "patch", "delete"}
	role := func(account string, rules ...rbacv1.PolicyRule) []ctrlclient.Object {
		name := "gantry:" + account
		return []ctrlclient.Object{
			&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules},
			&rbacv1.ClusterRoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
				Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: compile.Namespace, Name: account}},
			},
		}
	}
	nodes := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: read}
	objects := role(gatewayAccount,
		rbacv1.PolicyRule{APIGroups: []string{gatewayv1.GroupName}, Resources: []string{"*"}, Verbs: []string{"get", "list", "watch", "create", "update", "patch"}},
		rbacv1.PolicyRule{APIGroups: []string{networkingv1.GroupName}, Resources: []string{"ingresses", "ingressclasses", "ingresses/status"}, Verbs: []string{"get", "list", "watch", "create", "update", "patch"}},
		rbacv1.PolicyRule{APIGroups: []string{"apiextensions.k8s.io"}, Resources: []string{"customresourcedefinitions"}, Verbs: []string{"get", "list", "watch", "create", "update"}},
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"get", "list", "watch", "create"}},
	)
	objects = append(objects, role(certsAccount, nodes)...)
	objects = append(objects, role(edgeAccount, nodes,
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"nodes", "services"}, Verbs: []string{"get", "patch"}})...)
	// Secrets only where certificates are.
	name := "gantry:certificates"
	objects = append(objects,
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: compile.Namespace, Name: name},
			Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: write}}},
		&rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: compile.Namespace, Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects: []rbacv1.Subject{
				{Kind: rbacv1.ServiceAccountKind, Namespace: compile.Namespace, Name: gatewayAccount},
				{Kind: rbacv1.ServiceAccountKind, Namespace: compile.Namespace, Name: certsAccount},
			},
		})
	return objects
}

// gatewayCounts asks an edge what its gateway counts.
func gatewayCounts(socket string) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		snapshot, err := routes.Snapshot(ctx, socket)
		if err != nil {
			return nil, err
		}
		return routes.Exposition(snapshot), nil
	}
}
