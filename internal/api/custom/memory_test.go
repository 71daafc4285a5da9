package custom_test

import (
	"encoding/json"
	"fmt"
	"runtime"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/gantrytest"
)

// largeDefinition is as large as those of the operators that people install: fields of every kind with texts,
// in eight parts.
func largeDefinition(i, fields int) *apiextensionsv1.CustomResourceDefinition {
	text := "is one of the many settings of this part; when it is left out, a value that suits most is chosen."
	spec := apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{}}
	for part := range 8 {
		section := apiextensionsv1.JSONSchemaProps{Type: "object", Description: "A part of the whole.", Properties: map[string]apiextensionsv1.JSONSchemaProps{}}
		for field := range fields - 1 {
			name := fmt.Sprintf("setting%d", field)
			section.Properties[name] = apiextensionsv1.JSONSchemaProps{Type: "string", Description: fmt.Sprintf("%s %s (%d, %d)", name, text, i, part)}
		}
		section.Properties["count"] = apiextensionsv1.JSONSchemaProps{Type: "integer", Default: &apiextensionsv1.JSON{Raw: []byte("1")}}
		section.XValidations = apiextensionsv1.ValidationRules{{Rule: "self.count < 1000", Message: "too many"}}
		spec.Properties[fmt.Sprintf("part%d", part)] = section
	}
	plural := fmt.Sprintf("things%d", i)
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: plural + ".large.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "large.example.com", Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: plural, Singular: fmt.Sprintf("thing%d", i), Kind: fmt.Sprintf("Thing%d", i), ListKind: fmt.Sprintf("Thing%dList", i)},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true, Subresources: &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}},
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
					Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"spec": spec},
				}},
			}},
		},
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// TestTwoHundredDefinitions holds what definitions cost that nobody has used yet, and that clients
// have asked discovery for.
func TestTwoHundredDefinitions(t *testing.T) {
	for name, fields := range map[string]int{"of 26 kB": 20, "of 49 kB": 37} {
		t.Run(name, func(t *testing.T) { twoHundredDefinitions(t, fields) })
	}
}

func twoHundredDefinitions(t *testing.T, fields int) {
	t.Helper()
	const count, limit = 200, 60 << 20
	c := start(t, gantrytest.Options{})
	c.define(t, cronTabs) // what every first use costs
	if _, err := c.of(cronTab).Create(t.Context(), newCronTab("a", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.do(t, "GET", "/apis", "")
	before := heap()
	data, err := json.Marshal(largeDefinition(0, fields))
	if err != nil {
		t.Fatal(err)
	}
	for i := range count {
		if err := c.Client.Create(t.Context(), largeDefinition(i, fields)); err != nil {
			t.Fatal(err)
		}
	}
	c.Eventually("all are established", func() error {
		var list apiextensionsv1.CustomResourceDefinitionList
		if err := c.Client.List(t.Context(), &list); err != nil {
			return err
		}
		for i := range list.Items {
			if !apihelpers.IsCRDConditionTrue(&list.Items[i], apiextensionsv1.Established) {
				return fmt.Errorf("%s is not", list.Items[i].Name)
			}
		}
		return nil
	})
	c.do(t, "GET", "/apis/large.example.com/v1", "")
	cost := heap() - before
	t.Logf("%d definitions of %d bytes cost %.1f MB", count, len(data), float64(cost)/(1<<20))
	if cost > limit {
		t.Errorf("%d definitions cost %d bytes, want at most %d", count, cost, limit)
	}
}
