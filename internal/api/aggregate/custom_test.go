package aggregate_test

import (
	"fmt"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/gantrytest"
)

// TestCustomGroupsAreRegistered: a group version of custom resources has an APIService for as long as it is served.
func TestCustomGroupsAreRegistered(t *testing.T) {
	s := &stage{Cluster: gantrytest.Start(t, gantrytest.Options{})}
	crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "widgets.shop.example.com"}, Spec: apiextensionsv1.CustomResourceDefinitionSpec{
		Group: "shop.example.com", Scope: apiextensionsv1.NamespaceScoped, Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "widgets", Singular: "widget", Kind: "Widget", ListKind: "WidgetList"},
		Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true,
			Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"}}}}}}
	if err := s.Client.Create(t.Context(), crd); err != nil {
		t.Fatal(err)
	}
	const name = "v1.shop.example.com"
	s.condition(name, "Local")
	var service apiregistrationv1.APIService
	if err := s.Client.Get(t.Context(), client.ObjectKey{Name: name}, &service); err != nil || service.Labels["kube-aggregator.kubernetes.io/automanaged"] != "true" ||
		service.Spec.GroupPriorityMinimum != 1000 || service.Spec.VersionPriority != 100 {
		t.Errorf("%+v, %v", service, err)
	}
	// By hand deleted, it comes back: this one follows what is served.
	if err := s.Client.Delete(t.Context(), &service); err != nil {
		t.Fatal(err)
	}
	s.condition(name, "Local")
	if err := s.Client.Delete(t.Context(), crd); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the APIService goes with its definition", func() error {
		err := s.Client.Get(t.Context(), client.ObjectKey{Name: name}, &service)
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %v", err)
		}
		return nil
	})
}
