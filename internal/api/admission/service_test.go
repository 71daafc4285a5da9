package admission_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"

	gantryadmission "gantry.dev/gantry/internal/api/admission"
	"gantry.dev/gantry/internal/gantrytest"
)

func TestServicesAreCalledAtAnEndpoint(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	chain, err := gantryadmission.New(gantryadmission.Options{
		Registry: w.ControlPlane.Registry(), Authorizer: authorizerfactory.NewAlwaysAllowAuthorizer(), Client: w.Client,
	})
	if err != nil {
		t.Fatal(err)
	}
	resolve := func() (string, error) {
		url, err := chain.Services().ResolveEndpoint(ns, "hook", 443)
		if err != nil {
			return "", err
		}
		return url.String(), nil
	}
	_, err = resolve()
	wantError(t, "a service that is not there", err, `service "hook" not found`)
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "hook"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: 443, TargetPort: intstr.FromInt32(8443)}}}}
	if _, err := w.CoreV1().Services(ns).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = resolve()
	wantError(t, "a service without endpoints", err, `no endpoints available for service "hook"`)
	name, port, yes, no := "https", int32(8443), true, false
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "hook", Labels: map[string]string{discoveryv1.LabelServiceName: "hook"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"192.0.2.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"192.0.2.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
		},
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	if _, err := w.DiscoveryV1().EndpointSlices(ns).Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := resolve(); err != nil || got != "https://192.0.2.2:8443" {
		t.Errorf("ResolveEndpoint = %s, %v; want the ready endpoint", got, err)
	}
	_, err = chain.Services().ResolveEndpoint(ns, "hook", 80)
	wantError(t, "a port that is not there", err, `no service port 80 found for service "hook"`)
}
