// Package v1alpha1 has the public types of gantry.dev: applications as people describe them in gantry.yaml, the
// releases that deploys make of them, and builds.
//
// The keys are those of gantry.yaml, one lower-case word each. The file may use a scalar as short for a map; objects
// in the API always have the long form.
//
// +kubebuilder:object:generate=true
// +groupName=gantry.dev
package v1alpha1
