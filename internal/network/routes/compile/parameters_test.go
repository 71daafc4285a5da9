package compile

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// TestParameters: a Gateway that names parameters is not accepted, for the class takes none.
func TestParameters(t *testing.T) {
	objects := NewObjects()
	objects.Put(nil, &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: ClassName}, Spec: gatewayv1.GatewayClassSpec{ControllerName: Controller}})
	gateway := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: gatewayv1.GatewaySpec{
		GatewayClassName: ClassName,
		Listeners:        []gatewayv1.Listener{{Name: "http", Port: 80, Protocol: gatewayv1.HTTPProtocolType}},
		Infrastructure:   &gatewayv1.GatewayInfrastructure{ParametersRef: &gatewayv1.LocalParametersReference{Kind: "Nothing", Name: "here"}},
	}}
	objects.Put(nil, gateway)
	status := Compile(objects, Options{HTTPPort: 80, HTTPSPort: 443}).Gateways[Key{Namespace: "default", Name: "web"}]
	for _, kind := range []gatewayv1.GatewayConditionType{gatewayv1.GatewayConditionAccepted, gatewayv1.GatewayConditionProgrammed} {
		if c := meta.FindStatusCondition(status.Conditions, string(kind)); c == nil || c.Status != metav1.ConditionFalse {
			t.Errorf("condition %s: %+v", kind, c)
		}
	}
	if c := meta.FindStatusCondition(status.Conditions, string(gatewayv1.GatewayConditionAccepted)); c != nil && c.Reason != string(gatewayv1.GatewayReasonInvalidParameters) {
		t.Errorf("reason %s", c.Reason)
	}
}
