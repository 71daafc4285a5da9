package admission_test

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	api "k8s.io/kubernetes/pkg/apis/core"

	gantryadmission "gantry.dev/gantry/internal/api/admission"
	"gantry.dev/gantry/internal/gantrytest"
)

// BenchmarkChain is what admission adds to a write where nothing is configured.
func BenchmarkChain(b *testing.B) {
	c := gantrytest.Start(b, gantrytest.Options{})
	chain, err := gantryadmission.New(gantryadmission.Options{
		Registry: c.ControlPlane.Registry(), Authorizer: authorizerfactory.NewAlwaysAllowAuthorizer(), Client: c.Client,
	})
	if err != nil {
		b.Fatal(err)
	}
	who := &user.DefaultInfo{Name: "ann", Groups: []string{"system:authenticated"}}
	for path, obj := range map[string]func() runtime.Object{
		"configmaps": func() runtime.Object {
			return &api.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}}
		},
		"pods/status": func() runtime.Object { return internalPod() },
		"pods":        func() runtime.Object { return internalPod() },
	} {
		resource, sub, _ := strings.Cut(path, "/")
		for _, op := range []admission.Operation{admission.Create, admission.Update} {
			if sub != "" && op == admission.Create {
				continue
			}
			b.Run(fmt.Sprintf("%s/%s", path, op), func(b *testing.B) {
				b.ReportAllocs()
				gvk := schema.GroupVersionKind{Version: "v1", Kind: map[string]string{"configmaps": "ConfigMap", "pods": "Pod"}[resource]}
				old := obj()
				if op == admission.Create {
					old = nil
				}
				for b.Loop() {
					a := admission.NewAttributesRecord(obj(), old, gvk, "default", "c", gvk.GroupVersion().WithResource(resource), sub, op, nil, false, who)
					if err := chain.Admit(b.Context(), a); err != nil {
						b.Fatal(err)
					}
					if err := chain.Validate(b.Context(), a); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func internalPod() *api.Pod {
	zero, never := int32(0), api.PreemptLowerPriority
	return &api.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"},
		Spec:       api.PodSpec{Containers: []api.Container{{Name: "c"}}, Priority: &zero, PreemptionPolicy: &never},
	}
}
