package app

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

func TestPublicAddress(t *testing.T) {
	for name, tc := range map[string]struct {
		said  string
		there []string
		want  string
	}{
		"behind NAT, not said":   {there: []string{"192.168.1.7"}},
		"provider's shared":      {there: []string{"100.64.3.4"}},
		"said":                   {said: "203.0.113.7", there: []string{"203.0.113.7"}, want: "203.0.113.7"},
		"said, of a company":     {said: "10.1.2.3,10.1.2.4", there: []string{"10.1.2.3", "10.1.2.4"}, want: "10.1.2.3"},
		"a node's own":           {there: []string{"10.0.0.1", "198.51.100.4"}, want: "198.51.100.4"},
		"of the sixth version":   {there: []string{"fd00::1", "2001:db8::1"}, want: "2001:db8::1"},
		"a name is no address":   {there: []string{"lb.example.com"}},
		"none":                   {},
		"loopback and linklocal": {there: []string{"127.0.0.1", "169.254.1.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			gateway := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{annotationPublic: tc.said}}}
			for _, at := range tc.there {
				gateway.Status.Addresses = append(gateway.Status.Addresses, gatewayv1.GatewayStatusAddress{Value: at})
			}
			if got := publicAddress(gateway); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
