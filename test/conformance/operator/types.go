package main

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Gauge is the operator's kind: a config map with a level.
type Gauge struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   GaugeSpec   `json:"spec,omitempty"`
	Status GaugeStatus `json:"status,omitempty"`
}

// GaugeSpec is what a user wants.
type GaugeSpec struct {
	Level int    `json:"level,omitempty"`
	Unit  string `json:"unit,omitempty"` // a webhook fills it in
}

// GaugeStatus is what the operator did.
type GaugeStatus struct {
	Shown string `json:"shown,omitempty"`
	By    string `json:"by,omitempty"` // the instance that did it
}

// GaugeList is a list of gauges.
type GaugeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Gauge `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (g *Gauge) DeepCopyObject() runtime.Object {
	out := *g
	g.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// DeepCopyObject implements runtime.Object.
func (l *GaugeList) DeepCopyObject() runtime.Object {
	out := *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = make([]Gauge, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*Gauge)
	}
	return &out
}

func addToScheme(scheme *runtime.Scheme) {
	version := schema.GroupVersion{Group: "operator.example.com", Version: "v1"}
	scheme.AddKnownTypes(version, &Gauge{}, &GaugeList{})
	metav1.AddToGroupVersion(scheme, version)
}
