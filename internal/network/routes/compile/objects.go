package compile

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Key names an object within its kind.
type Key = types.NamespacedName

// Objects are what Compile looks at. They are shared with the store and never changed. The caller
// guards an Objects against use from several goroutines.
type Objects struct {
	Classes        map[Key]*gatewayv1.GatewayClass
	Gateways       map[Key]*gatewayv1.Gateway
	HTTPRoutes     map[Key]*gatewayv1.HTTPRoute
	GRPCRoutes     map[Key]*gatewayv1.GRPCRoute
	Grants         map[Key]*gatewayv1.ReferenceGrant
	IngressClasses map[Key]*networkingv1.IngressClass
	Ingresses      map[Key]*networkingv1.Ingress
	Namespaces     map[Key]*corev1.Namespace
	Services       map[Key]*corev1.Service
	Secrets        map[Key]*corev1.Secret
	Nodes          map[Key]*corev1.Node
	Slices         map[Key]map[string]*discoveryv1.EndpointSlice // by service, then by their own name
}

// NewObjects returns an empty Objects.
func NewObjects() *Objects {
	return &Objects{
		Classes: map[Key]*gatewayv1.GatewayClass{}, Gateways: map[Key]*gatewayv1.Gateway{}, HTTPRoutes: map[Key]*gatewayv1.HTTPRoute{},
		GRPCRoutes: map[Key]*gatewayv1.GRPCRoute{}, Grants: map[Key]*gatewayv1.ReferenceGrant{},
		IngressClasses: map[Key]*networkingv1.IngressClass{}, Ingresses: map[Key]*networkingv1.Ingress{},
		Namespaces: map[Key]*corev1.Namespace{}, Services: map[Key]*corev1.Service{}, Secrets: map[Key]*corev1.Secret{},
		Nodes: map[Key]*corev1.Node{}, Slices: map[Key]map[string]*discoveryv1.EndpointSlice{},
	}
}

// Kinds are one object of each kind that Objects holds, to subscribe by.
func Kinds() []client.Object {
	return []client.Object{
		&gatewayv1.GatewayClass{}, &gatewayv1.Gateway{}, &gatewayv1.HTTPRoute{}, &gatewayv1.GRPCRoute{}, &gatewayv1.ReferenceGrant{},
		&networkingv1.IngressClass{}, &networkingv1.Ingress{}, &corev1.Namespace{}, &corev1.Service{}, &corev1.Secret{},
		&corev1.Node{}, &discoveryv1.EndpointSlice{},
	}
}

// Put notes an event: an added object has old nil, a deleted one current nil.
func (o *Objects) Put(old, current client.Object) {
	obj := current
	if obj == nil {
		obj = old
	}
	switch obj.(type) {
	case *gatewayv1.GatewayClass:
		put(o.Classes, old, current)
	case *gatewayv1.Gateway:
		put(o.Gateways, old, current)
	case *gatewayv1.HTTPRoute:
		put(o.HTTPRoutes, old, current)
	case *gatewayv1.GRPCRoute:
		put(o.GRPCRoutes, old, current)
	case *gatewayv1.ReferenceGrant:
		put(o.Grants, old, current)
	case *networkingv1.IngressClass:
		put(o.IngressClasses, old, current)
	case *networkingv1.Ingress:
		put(o.Ingresses, old, current)
	case *corev1.Namespace:
		put(o.Namespaces, old, current)
	case *corev1.Service:
		put(o.Services, old, current)
	case *corev1.Secret:
		put(o.Secrets, old, current)
	case *corev1.Node:
		put(o.Nodes, old, current)
	case *discoveryv1.EndpointSlice:
		o.putSlice(old, false)
		o.putSlice(current, true)
	}
}

func put[T client.Object](into map[Key]T, old, current client.Object) {
	if t, ok := current.(T); ok && current != nil {
		into[client.ObjectKeyFromObject(current)] = t
	} else if old != nil {
		delete(into, client.ObjectKeyFromObject(old))
	}
}

func (o *Objects) putSlice(obj client.Object, there bool) {
	slice, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || slice == nil {
		return
	}
	service := ServiceOf(slice)
	if !there {
		delete(o.Slices[service], slice.Name)
		if len(o.Slices[service]) == 0 {
			delete(o.Slices, service)
		}
		return
	}
	if o.Slices[service] == nil {
		o.Slices[service] = map[string]*discoveryv1.EndpointSlice{}
	}
	o.Slices[service][slice.Name] = slice
}

// ServiceOf is the service that an endpoint slice belongs to; its name is empty for none.
func ServiceOf(slice *discoveryv1.EndpointSlice) Key {
	return Key{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
}

// sorted are the keys of a map of objects, oldest object first, as the Gateway API's precedence
// wants it.
func sorted[T client.Object](objects map[Key]T) []Key {
	return slices.SortedFunc(maps.Keys(objects), func(a, b Key) int {
		at, bt := objects[a].GetCreationTimestamp(), objects[b].GetCreationTimestamp()
		if c := at.Compare(bt.Time); c != 0 {
			return c
		}
		return strings.Compare(a.String(), b.String())
	})
}
