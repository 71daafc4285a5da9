package registry

import (
	"encoding/json"
	"fmt"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"gantry.dev/gantry/internal/store"
)

// extensionKinds are what defines further kinds.
func extensionKinds() []*definition {
	crd := define[apiextensionsv1.CustomResourceDefinition](apiextensionsv1.SchemeGroupVersion, "customresourcedefinitions",
		customresourcedefinition.NewStrategy(legacyscheme.Scheme)).
		short("crd", "crds").category("api-extensions").at("/registry/apiextensions.k8s.io/customresourcedefinitions/").
		withStatus(customresourcedefinition.NewStatusStrategy(legacyscheme.Scheme)).hooked(hooks{markDeleted: markDefinition, share: shareSpec}).
		prints(rest.NewDefaultTableConvertor(apiextensionsv1.Resource("customresourcedefinitions")))
	crd.stored.Codec = definitionCodec{crd.stored.Codec}
	crd.info.Stored = apiextensionsv1beta1.SchemeGroupVersion.WithKind("CustomResourceDefinition")
	return []*definition{crd}
}

// definitionCodec keeps definitions as upstream does: as JSON of v1beta1, in which versions that have
// one schema share it, so that large definitions fit into etcd.
type definitionCodec struct{ store.Codec }

// Encode implements store.Codec.
func (c definitionCodec) Encode(obj store.Object) ([]byte, error) {
	var internal apiextensions.CustomResourceDefinition
	if err := legacyscheme.Scheme.Convert(obj, &internal, nil); err != nil {
		return nil, fmt.Errorf("converting a definition: %w", err)
	}
	var out apiextensionsv1beta1.CustomResourceDefinition
	if err := legacyscheme.Scheme.Convert(&internal, &out, nil); err != nil {
		return nil, fmt.Errorf("converting a definition: %w", err)
	}
	out.SetGroupVersionKind(apiextensionsv1beta1.SchemeGroupVersion.WithKind("CustomResourceDefinition"))
	out.ResourceVersion = ""
	data, err := json.Marshal(&out)
	return append(data, '\n'), err
}

// shareSpec keeps the schemas of a definition once: most of its versions differ in their status only.
func shareSpec(obj, current store.Object) {
	next, ok := obj.(*apiextensionsv1.CustomResourceDefinition)
	if before, same := current.(*apiextensionsv1.CustomResourceDefinition); ok && same && next.UID == before.UID && next.Generation == before.Generation {
		next.Spec = before.Spec
	}
}

// markDefinition marks a definition for deletion: its objects go first.
func markDefinition(obj runtime.Object) {
	crd, ok := obj.(*apiextensions.CustomResourceDefinition)
	if !ok {
		return
	}
	now := metav1.Now()
	crd.DeletionTimestamp = &now
	if !apiextensions.CRDHasFinalizer(crd, apiextensions.CustomResourceCleanupFinalizer) {
		crd.Finalizers = append(crd.Finalizers, apiextensions.CustomResourceCleanupFinalizer)
	}
	apiextensions.SetCRDCondition(crd, apiextensions.CustomResourceDefinitionCondition{
		Type: apiextensions.Terminating, Status: apiextensions.ConditionTrue, Reason: "InstanceDeletionPending",
		Message: "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
	})
}
