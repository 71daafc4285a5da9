package gantrytest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/controller/certs"
	"gantry.dev/gantry/internal/network/routes/compile"
)

// gatewayClient is a client that may do everything and knows the Gateway API's types.
func gatewayClient(t *testing.T, c *Cluster) ctrlclient.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, networkingv1.AddToScheme, gatewayv1.Install} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	out, err := client.New(client.Options{Registry: c.ControlPlane.Registry(), User: &user.DefaultInfo{Name: "admin", Groups: []string{user.SystemPrivilegedGroup}}, Manager: "test", Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestGateway takes a control plane from its start to a route with a certificate.
func TestGateway(t *testing.T) {
	cluster := Start(t, Options{Nodes: 1, NoScheduler: true, Gateway: &config.Gateway{HTTPPort: 80, HTTPSPort: 443}})
	c := gatewayClient(t, cluster)
	node := &corev1.Node{}
	cluster.Eventually("the node has an address", func() error { // others write the node, too
		if err := c.Get(t.Context(), ctrlclient.ObjectKey{Name: "node-0"}, node); err != nil {
			return err
		}
		node = node.DeepCopy()
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.10"}}
		return c.Status().Update(t.Context(), node)
	})
	gw := &gatewayv1.Gateway{}
	key := ctrlclient.ObjectKey{Namespace: compile.Namespace, Name: compile.ClassName}
	cluster.Eventually("the Gateway is programmed", func() error {
		if err := c.Get(t.Context(), key, gw); err != nil {
			return err
		}
		if !meta.IsStatusConditionTrue(gw.Status.Conditions, "Programmed") || len(gw.Status.Addresses) != 1 {
			return fmt.Errorf("status is %+v", gw.Status)
		}
		return nil
	})
	class := &gatewayv1.GatewayClass{}
	if err := c.Get(t.Context(), ctrlclient.ObjectKey{Name: compile.ClassName}, class); err != nil || !meta.IsStatusConditionTrue(class.Status.Conditions, "Accepted") {
		t.Errorf("the class: %v, %+v", err, class.Status)
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	route := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
	route.Spec.ParentRefs = []gatewayv1.ParentReference{{Namespace: new(gatewayv1.Namespace(key.Namespace)), Name: gatewayv1.ObjectName(key.Name)}}
	route.Spec.Hostnames = []gatewayv1.Hostname{"web.localhost"}
	backend := gatewayv1.HTTPBackendRef{}
	backend.Name, backend.Port = "web", new(gatewayv1.PortNumber(80))
	route.Spec.Rules = []gatewayv1.HTTPRouteRule{{BackendRefs: []gatewayv1.HTTPBackendRef{backend}}}
	ingress := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: networkingv1.IngressSpec{
		DefaultBackend: &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}}}}}
	for _, obj := range []ctrlclient.Object{route, ingress} {
		if err := c.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
	resolved := func(want metav1.ConditionStatus, reason string) func() error {
		return func() error {
			if err := c.Get(t.Context(), ctrlclient.ObjectKeyFromObject(route), route); err != nil {
				return err
			}
			if len(route.Status.Parents) != 1 {
				return errors.New("no status")
			}
			s := meta.FindStatusCondition(route.Status.Parents[0].Conditions, "ResolvedRefs")
			if s == nil || s.Status != want || s.Reason != reason || s.ObservedGeneration != route.Generation {
				return fmt.Errorf("ResolvedRefs is %+v", s)
			}
			return nil
		}
	}
	cluster.Eventually("the route misses its Service", resolved(metav1.ConditionFalse, "BackendNotFound"))
	if err := c.Create(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually("the route has its Service", resolved(metav1.ConditionTrue, "ResolvedRefs"))
	cluster.Eventually("the Ingress says where it is", func() error {
		if err := c.Get(t.Context(), ctrlclient.ObjectKeyFromObject(ingress), ingress); err != nil {
			return err
		}
		if l := ingress.Status.LoadBalancer.Ingress; len(l) != 1 || l[0].IP != "192.0.2.10" || *ingress.Spec.IngressClassName != "gantry" {
			return fmt.Errorf("class and status are %v, %+v", *ingress.Spec.IngressClassName, l)
		}
		return nil
	})
	cluster.Eventually("all have certificates", func() error {
		for _, name := range []string{"certificate-web.localhost", "certificate-localhost", "certificate-192.0.2.10"} {
			secret := &corev1.Secret{}
			if err := c.Get(t.Context(), ctrlclient.ObjectKey{Namespace: key.Namespace, Name: name}, secret); err != nil {
				return err
			}
			if until, err := time.Parse(time.RFC3339, secret.Annotations[certs.AnnotationExpires]); err != nil || time.Until(until) < 60*24*time.Hour ||
				secret.Annotations[certs.AnnotationIssuer] != certs.IssuerLocal || !strings.Contains(string(secret.Data[corev1.TLSCertKey]), "BEGIN CERTIFICATE") {
				return fmt.Errorf("%s is %v", name, secret.Annotations)
			}
		}
		return nil
	})
	patch := ctrlclient.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"`+compile.AnnotationPorts+`":"{\"80\":\"port 80 is taken by nginx (pid 7)\"}"}}}`))
	if err := c.Patch(t.Context(), node, patch); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually("a taken port is named", func() error {
		if err := c.Get(t.Context(), key, gw); err != nil {
			return err
		}
		s := meta.FindStatusCondition(gw.Status.Conditions, "Programmed")
		if s.Status != metav1.ConditionFalse || !strings.Contains(s.Message, "nginx (pid 7)") {
			return fmt.Errorf("Programmed is %+v", s)
		}
		return nil
	})
}
