package registry

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Strategies clear the status on create; the phase has a default nevertheless.
func TestWhatStrategiesClearHasItsDefault(t *testing.T) {
	r := start(t, Options{})
	claims := schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
	claim := create(t, r, claims, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimLost},
	})
	if claim.Status.Phase != corev1.ClaimPending {
		t.Errorf("phase = %q, want %q", claim.Status.Phase, corev1.ClaimPending)
	}
	entry, err := r.Resource(claims).Get(t.Context(), "default", "data", "")
	if err != nil {
		t.Fatal(err)
	}
	codec := r.Resource(claims).def.stored.Codec
	bare := entry.Object.(*corev1.PersistentVolumeClaim).DeepCopy()
	bare.Status.Phase = "" // as upstream stores it
	raw, err := codec.Encode(bare)
	if err != nil {
		t.Fatal(err)
	}
	read, err := codec.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := read.(*corev1.PersistentVolumeClaim).Status.Phase; got != corev1.ClaimPending {
		t.Errorf("read from etcd: phase = %q, want %q", got, corev1.ClaimPending)
	}
}

// An object in memory is what it will be once it was read from etcd.
func TestEmptySlicesAreWhatEtcdMakesOfThem(t *testing.T) {
	r := start(t, Options{})
	slices := schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}
	slice := create(t, r, slices, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "none"}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{}, Ports: []discoveryv1.EndpointPort{},
	})
	if slice.Endpoints != nil || slice.Ports != nil {
		t.Errorf("endpoints %#v, ports %#v; want nil", slice.Endpoints, slice.Ports)
	}
}
