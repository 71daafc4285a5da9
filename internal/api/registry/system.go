package registry

import (
	"fmt"
	"slices"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	flowcontrolbootstrap "k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	scheduling "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/kubernetes/pkg/registry/flowcontrol/ensurer"

	"gantry.dev/gantry/internal/store"
)

// SystemObjects are what every cluster has of upstream's making: the priority classes of system pods,
// and the flow schemas with their priority levels. The caller may change them.
func SystemObjects() []store.Object {
	var objects []store.Object
	for _, class := range scheduling.SystemPriorityClasses() {
		objects = append(objects, class)
	}
	for _, level := range slices.Concat(flowcontrolbootstrap.SuggestedPriorityLevelConfigurations, flowcontrolbootstrap.MandatoryPriorityLevelConfigurations) {
		objects = append(objects, level.DeepCopy())
	}
	for _, schema := range slices.Concat(flowcontrolbootstrap.SuggestedFlowSchemas, flowcontrolbootstrap.MandatoryFlowSchemas) {
		objects = append(objects, schema.DeepCopy())
	}
	return objects
}

// ReviseSystemObject is what becomes of an object that is there already, nil if it stays as it is.
// Whoever changed a suggested one keeps the change; mandatory ones are set right.
func ReviseSystemObject(there, want store.Object) (store.Object, error) {
	switch want := want.(type) {
	case *schedulingv1.PriorityClass:
		return nil, nil
	case *flowcontrolv1.FlowSchema:
		current, ok := there.(*flowcontrolv1.FlowSchema)
		if !ok {
			return nil, fmt.Errorf("flow schema %s is a %T", want.Name, there)
		}
		strategy := ensurer.NewSuggestedEnsureStrategy[*flowcontrolv1.FlowSchema]()
		if isNamed(want, flowcontrolbootstrap.MandatoryFlowSchemas) {
			strategy = ensurer.NewMandatoryEnsureStrategy[*flowcontrolv1.FlowSchema]()
		}
		next, changed, err := strategy.ReviseIfNeeded(ensurer.NewFlowSchemaOps(nil, nil), current, want)
		if err != nil || !changed {
			return nil, err
		}
		return next, nil
	case *flowcontrolv1.PriorityLevelConfiguration:
		current, ok := there.(*flowcontrolv1.PriorityLevelConfiguration)
		if !ok {
			return nil, fmt.Errorf("priority level %s is a %T", want.Name, there)
		}
		strategy := ensurer.NewSuggestedEnsureStrategy[*flowcontrolv1.PriorityLevelConfiguration]()
		if isNamed(want, flowcontrolbootstrap.MandatoryPriorityLevelConfigurations) {
			strategy = ensurer.NewMandatoryEnsureStrategy[*flowcontrolv1.PriorityLevelConfiguration]()
		}
		next, changed, err := strategy.ReviseIfNeeded(ensurer.NewPriorityLevelConfigurationOps(nil, nil), current, want)
		if err != nil || !changed {
			return nil, err
		}
		return next, nil
	}
	return nil, fmt.Errorf("a %T is no system object", want)
}

func isNamed[T store.Object](object T, objects []T) bool {
	return slices.ContainsFunc(objects, func(other T) bool { return other.GetName() == object.GetName() })
}
