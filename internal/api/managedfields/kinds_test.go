package managedfields

import (
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/common"
	openapiutil "k8s.io/kube-openapi/pkg/util"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	generated "k8s.io/kubernetes/pkg/generated/openapi"
	"k8s.io/kubernetes/pkg/registry/apps/controllerrevision"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/apps/replicaset"
	"k8s.io/kubernetes/pkg/registry/coordination/lease"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/endpoint"
	"k8s.io/kubernetes/pkg/registry/core/event"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	nodestrategy "k8s.io/kubernetes/pkg/registry/core/node"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"
	"k8s.io/kubernetes/pkg/registry/discovery/endpointslice"
	"k8s.io/kubernetes/pkg/registry/networking/ipaddress"
	"k8s.io/kubernetes/pkg/registry/networking/servicecidr"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrole"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding"
	"k8s.io/kubernetes/pkg/registry/rbac/role"
	"k8s.io/kubernetes/pkg/registry/rbac/rolebinding"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// testKind is a kind with the strategies of its views.
type testKind struct {
	newObj func() Object
	subs   map[string]any
}

func testKinds() []testKind {
	return append([]testKind{
		{func() Object { return &corev1.Pod{} }, map[string]any{"": pod.Strategy, "status": pod.StatusStrategy, "resize": pod.ResizeStrategy, "ephemeralcontainers": pod.EphemeralContainersStrategy}},
		{func() Object { return &appsv1.Deployment{} }, map[string]any{"": deployment.Strategy, "status": deployment.StatusStrategy}},
		{func() Object { return &appsv1.ReplicaSet{} }, map[string]any{"": replicaset.Strategy, "status": replicaset.StatusStrategy}},
		{func() Object { return &corev1.Service{} }, map[string]any{"": service.Strategy, "status": service.StatusStrategy}},
		{func() Object { return &corev1.Node{} }, map[string]any{"": nodestrategy.Strategy, "status": nodestrategy.StatusStrategy}},
		{func() Object { return &corev1.ConfigMap{} }, map[string]any{"": configmap.Strategy}},
		{func() Object { return &corev1.Secret{} }, map[string]any{"": secret.Strategy}},
		{func() Object { return &corev1.Endpoints{} }, map[string]any{"": endpoint.Strategy}},
		{func() Object { return &corev1.Event{} }, map[string]any{"": event.Strategy}},
		{func() Object { return &corev1.Namespace{} }, map[string]any{"": namespace.Strategy, "status": namespace.StatusStrategy, "finalize": namespace.FinalizeStrategy}},
		{func() Object { return &corev1.ServiceAccount{} }, map[string]any{"": serviceaccount.Strategy}},
		{func() Object { return &appsv1.ControllerRevision{} }, map[string]any{"": controllerrevision.Strategy}},
		{func() Object { return &coordinationv1.Lease{} }, map[string]any{"": lease.Strategy}},
		{func() Object { return &discoveryv1.EndpointSlice{} }, map[string]any{"": endpointslice.Strategy}},
		{func() Object { return &networkingv1.IPAddress{} }, map[string]any{"": ipaddress.Strategy}},
		{func() Object { return &networkingv1.ServiceCIDR{} }, map[string]any{"": servicecidr.Strategy, "status": servicecidr.StatusStrategy}},
		{func() Object { return &rbacv1.ClusterRole{} }, map[string]any{"": clusterrole.Strategy}},
		{func() Object { return &rbacv1.ClusterRoleBinding{} }, map[string]any{"": clusterrolebinding.Strategy}},
		{func() Object { return &rbacv1.Role{} }, map[string]any{"": role.Strategy}},
		{func() Object { return &rbacv1.RoleBinding{} }, map[string]any{"": rolebinding.Strategy}},
		{func() Object { return &autoscalingv1.Scale{} }, map[string]any{"": nil}},
	}, widerKinds()...)
}

func (k testKind) gvk() schema.GroupVersionKind {
	kinds, _, err := legacyscheme.Scheme.ObjectKinds(k.newObj())
	if err != nil {
		panic(err)
	}
	return kinds[0]
}

func (k testKind) empty() Object {
	obj := k.newObj()
	obj.GetObjectKind().SetGroupVersionKind(k.gvk())
	return obj
}

func resetFields(strategy any) map[fieldpath.APIVersion]fieldpath.Filter {
	switch s := strategy.(type) {
	case rest.ResetFieldsFilterStrategy:
		return s.GetResetFieldsFilter()
	case rest.ResetFieldsStrategy:
		return fieldpath.NewExcludeFilterSetMap(s.GetResetFields())
	}
	return nil
}

// converter is upstream's for all kinds of the tests; it takes a while to make.
var converter = sync.OnceValue(func() managedfields.TypeConverter {
	namer := openapi.NewDefinitionNamer(legacyscheme.Scheme)
	config := &common.OpenAPIV3Config{GetDefinitions: generated.GetOpenAPIDefinitions, GetDefinitionName: namer.GetDefinitionName}
	var names []string
	for _, k := range testKinds() {
		names = append(names, openapiutil.GetCanonicalTypeName(k.newObj()))
	}
	schemas, err := builder3.BuildOpenAPIDefinitionsForResources(config, names...)
	if err != nil {
		panic(err)
	}
	conv, err := managedfields.NewTypeConverter(schemas, false)
	if err != nil {
		panic(err)
	}
	return conv
})

// views are both managers of each view of a kind.
type views struct {
	fast     map[string]*View
	upstream map[string]*managedfields.FieldManager
	names    []string
}

func newViews(t testing.TB, tracker *Tracker, k testKind) views {
	t.Helper()
	v := views{make(map[string]*View), make(map[string]*managedfields.FieldManager), nil}
	gvk := k.gvk()
	for _, sub := range []string{"", "status", "resize", "ephemeralcontainers", "finalize", "approval"} {
		strategy, ok := k.subs[sub]
		if !ok {
			continue
		}
		var err error
		if v.fast[sub], err = tracker.View(gvk, sub, k.newObj(), resetFields(strategy)); err != nil {
			t.Fatal(err)
		}
		v.upstream[sub], err = managedfields.NewDefaultFieldManager(converter(), legacyscheme.Scheme, legacyscheme.Scheme, legacyscheme.Scheme,
			gvk, gvk.GroupVersion(), sub, resetFields(strategy))
		if err != nil {
			t.Fatal(err)
		}
		v.names = append(v.names, sub)
	}
	return v
}

func newTracker(t testing.TB) *Tracker {
	t.Helper()
	tracker, err := New(converter(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return tracker
}
