package gateway

import (
	"context"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/network/routes/compile"
)

// annotationPorts on the Gateway that every cluster has are the settings that its ports are from. It
// follows them as long as nobody gives it others.
const annotationPorts = "gateway.gantry.dev/ports-from-settings"

// makeDefaults makes the namespace, the classes and the Gateway that are absent.
func (c *Controller) makeDefaults(ctx context.Context) error {
	objects := []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: compile.Namespace}},
		&networkingv1.IngressClass{
			ObjectMeta: metav1.ObjectMeta{Name: compile.ClassName, Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}},
			Spec:       networkingv1.IngressClassSpec{Controller: compile.IngressController},
		},
		&gatewayv1.GatewayClass{
			ObjectMeta: metav1.ObjectMeta{Name: compile.ClassName},
			Spec:       gatewayv1.GatewayClassSpec{ControllerName: compile.Controller},
		},
	}
	for _, obj := range objects {
		there := obj.DeepCopyObject().(client.Object) //nolint:forcetypeassert // it is one
		err := c.client.Get(ctx, client.ObjectKeyFromObject(obj), there)
		if apierrors.IsNotFound(err) {
			err = client.IgnoreAlreadyExists(c.client.Create(ctx, obj))
		}
		if err != nil {
			return fmt.Errorf("making %T %s: %w", obj, obj.GetName(), err)
		}
	}
	return c.makeGateway(ctx)
}

func (c *Controller) makeGateway(ctx context.Context) error {
	want := c.defaultGateway()
	there := &gatewayv1.Gateway{}
	err := c.client.Get(ctx, client.ObjectKeyFromObject(want), there)
	switch {
	case apierrors.IsNotFound(err):
		err = client.IgnoreAlreadyExists(c.client.Create(ctx, want))
	case err == nil:
		if next := adjusted(there, want); next != nil {
			err = c.client.Update(ctx, next)
		}
	}
	if err != nil {
		return fmt.Errorf("making Gateway %s: %w", client.ObjectKeyFromObject(want), err)
	}
	return nil
}

// adjusted is the Gateway that is there with what settings say now; nil if nothing changes.
func adjusted(there, want *gatewayv1.Gateway) *gatewayv1.Gateway {
	next := there.DeepCopy()
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	if followsSettings(there) {
		for i := range want.Spec.Listeners {
			next.Spec.Listeners[i].Port = want.Spec.Listeners[i].Port
		}
		next.Annotations[annotationPorts] = want.Annotations[annotationPorts]
	}
	delete(next.Annotations, compile.AnnotationPublicAddress)
	if said := want.Annotations[compile.AnnotationPublicAddress]; said != "" {
		next.Annotations[compile.AnnotationPublicAddress] = said
	}
	if equality.Semantic.DeepEqual(next.Spec, there.Spec) && maps.Equal(next.Annotations, there.Annotations) {
		return nil
	}
	return next
}

// followsSettings reports whether the first two ports are still those that settings gave it. Further listeners are
// those of applications that have no name.
func followsSettings(gw *gatewayv1.Gateway) bool {
	l := gw.Spec.Listeners
	return len(l) >= 2 && l[0].Name == "http" && l[1].Name == "https" && gw.Annotations[annotationPorts] == fmt.Sprintf("%d,%d", l[0].Port, l[1].Port)
}

// defaultGateway takes routes of all namespaces, and has certificates for whatever host they name.
func (c *Controller) defaultGateway() *gatewayv1.Gateway {
	all := gatewayv1.NamespacesFromAll
	allowed := &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: &all}}
	annotations := map[string]string{annotationPorts: fmt.Sprintf("%d,%d", c.opts.HTTPPort, c.opts.HTTPSPort)}
	if len(c.opts.Public) > 0 {
		said := make([]string, len(c.opts.Public))
		for i, addr := range c.opts.Public {
			said[i] = addr.String()
		}
		annotations[compile.AnnotationPublicAddress] = strings.Join(said, ",")
	}
	return &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: compile.Namespace, Name: compile.ClassName, Annotations: annotations},
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: compile.ClassName,
			Listeners: []gatewayv1.Listener{
				{Name: "http", Port: gatewayv1.PortNumber(c.opts.HTTPPort), Protocol: gatewayv1.HTTPProtocolType, AllowedRoutes: allowed},
				{Name: "https", Port: gatewayv1.PortNumber(c.opts.HTTPSPort), Protocol: gatewayv1.HTTPSProtocolType, AllowedRoutes: allowed,
					TLS: &gatewayv1.ListenerTLSConfig{Options: map[gatewayv1.AnnotationKey]gatewayv1.AnnotationValue{compile.OptionCertificate: compile.Auto}}},
			},
		},
	}
}
