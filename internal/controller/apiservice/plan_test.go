package apiservice

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

func TestPlanAvailable(t *testing.T) {
	port := int32(443)
	yes, no, name, other := true, false, "https", "other"
	service := func(kind corev1.ServiceType, ports ...int32) *corev1.Service {
		out := &corev1.Service{Spec: corev1.ServiceSpec{Type: kind}}
		for _, p := range ports {
			out.Spec.Ports = append(out.Spec.Ports, corev1.ServicePort{Name: name, Port: p})
		}
		return out
	}
	slice := func(portName *string, ready ...*bool) []discoveryv1.EndpointSlice {
		out := discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Name: portName, Port: &port}}}
		for _, r := range ready {
			out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Conditions: discoveryv1.EndpointConditions{Ready: r}})
		}
		return []discoveryv1.EndpointSlice{out}
	}
	cluster := corev1.ServiceTypeClusterIP
	for what, tc := range map[string]struct {
		found  behind
		reason string // "" when the server is to be asked
		status apiregistrationv1.ConditionStatus
	}{
		"no service":         {behind{serviceErr: apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, "x")}, "ServiceNotFound", "False"},
		"service unknown":    {behind{serviceErr: errors.New("x")}, "ServiceAccessError", "Unknown"},
		"other port":         {behind{service: service(cluster, 80)}, "ServicePortError", "False"},
		"endpoints unknown":  {behind{service: service(cluster, 443), slicesErr: errors.New("x")}, "EndpointsAccessError", "Unknown"},
		"no slices":          {behind{service: service(cluster, 443)}, "EndpointsNotFound", "False"},
		"none ready":         {behind{service: service(cluster, 443), slices: slice(&name, &no)}, "MissingEndpoints", "False"},
		"other port name":    {behind{service: service(cluster, 443), slices: slice(&other, &yes)}, "MissingEndpoints", "False"},
		"ready":              {behind{service: service(cluster, 443), slices: slice(&name, &no, &yes)}, "", ""},
		"readiness not told": {behind{service: service(cluster, 443), slices: slice(&name, nil)}, "", ""},
		"a name elsewhere":   {behind{service: service(corev1.ServiceTypeExternalName)}, "", ""},
	} {
		t.Run(what, func(t *testing.T) {
			got, ask := planAvailable(&apiregistrationv1.ServiceReference{Namespace: "ns", Name: "x", Port: &port}, &tc.found)
			if ask != (tc.reason == "") || got.Reason != tc.reason || got.Status != tc.status {
				t.Errorf("%+v, ask %v; want %s", got, ask, tc.reason)
			}
			if tc.reason != "" && !strings.Contains(got.Message, `service/x in "ns"`) {
				t.Errorf("message %q", got.Message)
			}
		})
	}
}

// TestPlanRegistration is upstream's table of autoregistration.
func TestPlanRegistration(t *testing.T) {
	object := func(managed string, priority int32) *apiregistrationv1.APIService {
		out := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}}, Spec: apiregistrationv1.APIServiceSpec{VersionPriority: priority}}
		if managed != "" {
			out.Labels[managedLabel] = managed
		}
		return out
	}
	for what, tc := range map[string]struct {
		desired, current *apiregistrationv1.APIService
		atStart, done    bool
		want             step
	}{
		"neither":                        {nil, nil, false, false, nothing},
		"built in, absent":               {object(onStart, 1), nil, false, false, create},
		"built in, deleted by hand":      {object(onStart, 1), nil, false, true, nothing},
		"custom, absent":                 {object(always, 1), nil, false, true, create},
		"not ours":                       {object(always, 1), object("", 2), false, false, nothing},
		"not ours and not wanted":        {nil, object("", 2), false, false, nothing},
		"built in, from an older server": {object(onStart, 1), object(onStart, 2), true, false, update},
		"built in, changed by hand":      {object(onStart, 1), object(onStart, 2), true, true, nothing},
		"built in, as it should be":      {object(onStart, 1), object(onStart, 1), true, false, nothing},
		"built in, gone with an upgrade": {nil, object(onStart, 1), true, false, remove},
		"on start, added later":          {nil, object(onStart, 1), false, false, nothing},
		"custom, changed by hand":        {object(always, 1), object(always, 2), false, true, update},
		"custom, gone":                   {nil, object(always, 1), false, true, remove},
	} {
		t.Run(what, func(t *testing.T) {
			if got := planRegistration(tc.desired, tc.current, tc.atStart, tc.done); got != tc.want {
				t.Errorf("step %d, want %d", got, tc.want)
			}
		})
	}
}

func TestWanted(t *testing.T) {
	for gv, want := range map[schema.GroupVersion]string{
		{Version: "v1"}:                                     "v1. onstart 18000 1",
		{Group: "apps", Version: "v1"}:                      "v1.apps onstart 17800 15",
		{Group: "autoscaling", Version: "v2"}:               "v2.autoscaling onstart 17500 30",
		{Group: "gateway.networking.k8s.io", Version: "v1"}: "v1.gateway.networking.k8s.io true 1000 100",
		{Group: "shop.example.com", Version: "v1alpha1"}:    "v1alpha1.shop.example.com true 1000 100",
		{Group: "apiregistration.k8s.io", Version: "v1"}:    "",
	} {
		got := ""
		if service := wanted(gv); service != nil {
			got = strings.Join([]string{service.Name, service.Labels[managedLabel], fmt.Sprint(service.Spec.GroupPriorityMinimum), fmt.Sprint(service.Spec.VersionPriority)}, " ")
		}
		if got != want {
			t.Errorf("%v: %q, want %q", gv, got, want)
		}
	}
}
