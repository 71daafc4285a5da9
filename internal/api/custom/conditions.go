package custom

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/api/equality"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/util/webhook"
)

type condition = apiextensionsv1.CustomResourceDefinitionCondition

// setCondition sets a condition unless it is there already.
func setCondition(crd *apiextensionsv1.CustomResourceDefinition, c condition) {
	if old := apihelpers.FindCRDCondition(crd, c.Type); !apihelpers.IsCRDConditionEquivalent(&c, old) {
		apihelpers.SetCRDCondition(crd, c)
	}
}

// groupOf is the group in the name of a definition.
func groupOf(name string) string {
	_, group, _ := strings.Cut(name, ".")
	return group
}

// taken are the names in use in a group.
type taken struct{ resources, kinds map[string]bool }

func takenNames(group string, crds []*apiextensionsv1.CustomResourceDefinition) taken {
	t := taken{resources: make(map[string]bool), kinds: make(map[string]bool)}
	for _, crd := range crds {
		if crd.Spec.Group != group {
			continue
		}
		names := &crd.Status.AcceptedNames
		for _, name := range append([]string{names.Plural, names.Singular}, names.ShortNames...) {
			t.resources[name] = true
		}
		t.kinds[names.Kind], t.kinds[names.ListKind] = true, true
	}
	return t
}

// settleNames gives crd the names it asks for as far as they are free, and sets the conditions about
// them. It reports whether the accepted names changed.
func settleNames(crd *apiextensionsv1.CustomResourceDefinition, all []*apiextensionsv1.CustomResourceDefinition) bool {
	before := crd.Status.AcceptedNames
	if equality.Semantic.DeepEqual(crd.Spec.Names, before) {
		return false
	}
	used := takenNames(crd.Spec.Group, all)
	want, got := &crd.Spec.Names, before
	accepted := condition{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue, Reason: "NoConflicts", Message: "no conflicts found"}
	refuse := func(reason string, err error) {
		accepted.Status, accepted.Reason, accepted.Message = apiextensionsv1.ConditionFalse, reason, err.Error()
	}
	for _, name := range []struct {
		want   string
		got    *string
		used   map[string]bool
		reason string
	}{
		{want.Plural, &got.Plural, used.resources, "PluralConflict"},
		{want.Singular, &got.Singular, used.resources, "SingularConflict"},
	} {
		if err := free(name.want, *name.got, name.used); err != nil {
			refuse(name.reason, err)
		} else {
			*name.got = name.want
		}
	}
	if !reflect.DeepEqual(want.ShortNames, before.ShortNames) {
		if err := freeShortNames(want.ShortNames, before.ShortNames, used.resources); err != nil {
			refuse("ShortNamesConflict", err)
		} else {
			got.ShortNames = want.ShortNames
		}
	}
	if err := free(want.Kind, got.Kind, used.kinds); err != nil {
		refuse("KindConflict", err)
	} else {
		got.Kind = want.Kind
	}
	if err := free(want.ListKind, got.ListKind, used.kinds); err != nil {
		refuse("ListKindConflict", err)
	} else {
		got.ListKind = want.ListKind
	}
	got.Categories = want.Categories
	crd.Status.AcceptedNames = got
	setCondition(crd, accepted)
	setCondition(crd, afterNames(crd, accepted.Status))
	return !equality.Semantic.DeepEqual(before, got)
}

// afterNames is the established condition that follows from the one about names.
func afterNames(crd *apiextensionsv1.CustomResourceDefinition, accepted apiextensionsv1.ConditionStatus) condition {
	old := apihelpers.FindCRDCondition(crd, apiextensionsv1.Established)
	switch {
	case old != nil && old.Status == apiextensionsv1.ConditionTrue:
		return *old
	case accepted == apiextensionsv1.ConditionTrue:
		return condition{
			Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionFalse,
			Reason: "Installing", Message: "the initial names have been accepted",
		}
	case old != nil:
		return *old
	}
	return condition{
		Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionFalse,
		Reason: "NotAccepted", Message: "not all names are accepted",
	}
}

func free(want, got string, used map[string]bool) error {
	if want == got || !used[want] {
		return nil
	}
	return fmt.Errorf("%q is already in use", want)
}

func freeShortNames(want, got []string, used map[string]bool) error {
	var errs []error
	for _, name := range want {
		if slices.Contains(got, name) {
			continue
		}
		if err := free(name, "", used); err != nil {
			errs = append(errs, err)
		}
	}
	return utilerrors.NewAggregate(errs)
}

// establish sets the established condition once the names are accepted; it stays.
func establish(crd *apiextensionsv1.CustomResourceDefinition) {
	if !apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.NamesAccepted) || apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
		return
	}
	c := condition{
		Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue,
		Reason: "InitialNamesAccepted", Message: "the initial names have been accepted",
	}
	conversion := crd.Spec.Conversion
	if conversion != nil && conversion.Webhook != nil && conversion.Webhook.ClientConfig != nil &&
		len(webhook.ValidateCABundle(field.NewPath(""), conversion.Webhook.ClientConfig.CABundle)) > 0 {
		c.Status, c.Reason, c.Message = apiextensionsv1.ConditionFalse, "InvalidCABundle", "The conversion webhook CABundle is invalid"
	}
	setCondition(crd, c)
}

// setNonStructural says whether a schema breaks the rules of structural schemas. New definitions
// cannot; those of v1beta1 could.
func setNonStructural(crd *apiextensionsv1.CustomResourceDefinition) {
	c := condition{Type: apiextensionsv1.NonStructuralSchema}
	if !crd.Spec.PreserveUnknownFields && apihelpers.FindCRDCondition(crd, c.Type) == nil && apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) &&
		crd.Generation <= 1 {
		return // validation has just seen to it
	}
	err := structuralErrors(crd)
	var broken *schemaError
	switch {
	case err == nil:
		if apihelpers.FindCRDCondition(crd, c.Type) != nil {
			apihelpers.RemoveCRDCondition(crd, c.Type)
		}
		return
	case errors.As(err, &broken):
		c.Status, c.Reason, c.Message = apiextensionsv1.ConditionUnknown, "StructuralError", broken.Error()
	default:
		c.Status, c.Reason, c.Message = apiextensionsv1.ConditionTrue, "Violations", err.Error()
	}
	setCondition(crd, c)
}

// schemaError is a schema that cannot be read as a structural one at all.
type schemaError struct {
	version string
	err     error
}

func (e *schemaError) Error() string {
	return fmt.Sprintf("failed to check validation schema for version %s: %v", e.version, e.err)
}

func structuralErrors(crd *apiextensionsv1.CustomResourceDefinition) error {
	var errs field.ErrorList
	if crd.Spec.PreserveUnknownFields {
		errs = append(errs, field.Invalid(field.NewPath("spec", "preserveUnknownFields"), true, "must be false"))
	}
	for i, v := range crd.Spec.Versions {
		if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
			continue
		}
		internal, err := internalSchema(crd, v.Name)
		if err != nil || internal == nil {
			continue
		}
		s, err := structuralschema.NewStructural(internal)
		if err != nil {
			return &schemaError{v.Name, err}
		}
		path := field.NewPath("spec", "versions").Index(i).Child("schema", "openAPIV3Schema")
		errs = append(errs, structuralschema.ValidateStructural(path, s)...)
	}
	if len(errs) == 0 {
		return nil
	}
	return errs.ToAggregate()
}

// setApproval says whether a definition in one of Kubernetes' own groups was approved.
func setApproval(crd *apiextensionsv1.CustomResourceDefinition) {
	if !apihelpers.IsProtectedCommunityGroup(crd.Spec.Group) {
		return
	}
	c := condition{Type: apiextensionsv1.KubernetesAPIApprovalPolicyConformant, Status: apiextensionsv1.ConditionFalse}
	state, reason := apihelpers.GetAPIApprovalState(crd.Annotations)
	c.Message = reason
	switch state {
	case apihelpers.APIApprovalInvalid:
		c.Reason = "InvalidAnnotation"
	case apihelpers.APIApprovalMissing:
		c.Reason = "MissingAnnotation"
	case apihelpers.APIApproved:
		c.Status, c.Reason = apiextensionsv1.ConditionTrue, "ApprovedAnnotation"
	case apihelpers.APIApprovalBypassed:
		c.Reason = "UnapprovedAnnotation"
	default:
		c.Status, c.Reason = apiextensionsv1.ConditionUnknown, "UnknownAnnotation"
	}
	setCondition(crd, c)
}
