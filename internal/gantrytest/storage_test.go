package gantrytest

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/volume/local"
)

// annotate writes annotations of a node as its agent does.
func (c *Cluster) annotate(name string, annotations map[string]string) {
	c.t.Helper()
	c.changeNode(name, func(node *corev1.Node) error {
		if node.Annotations == nil {
			node.Annotations = map[string]string{}
		}
		maps.Copy(node.Annotations, annotations)
		return c.Client.Update(c.t.Context(), node)
	})
}

func claimed(name string) (*corev1.PersistentVolumeClaim, *corev1.Pod) {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c", Image: "busybox"}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
			}}},
		},
	}
	return claim, pod
}

// TestLocalVolumes is a claim's life in a whole control plane, with the accounts and rights
// that its controllers really have. Only one of the nodes keeps local volumes.
func TestLocalVolumes(t *testing.T) {
	c := Start(t, Options{Nodes: 2})
	c.annotate("node-1", map[string]string{local.DirAnnotation: "/data/volumes"})
	claim, pod := claimed("db")
	pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "node-1"}
	mustCreate(t, c, claim, pod)
	var pv corev1.PersistentVolume
	c.Eventually("the pod is on the volume's node", func() error {
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(claim), claim); err != nil {
			return err
		}
		if pod.Spec.NodeName != "node-1" || claim.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("pod on %q, claim %s: %v", pod.Spec.NodeName, claim.Status.Phase, pod.Status.Conditions)
		}
		return c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: claim.Spec.VolumeName}, &pv)
	})
	if *claim.Spec.StorageClassName != "local" || local.Folder(&pv) == "" || pv.Status.Phase != corev1.VolumeBound {
		t.Errorf("class %q, folder %q, volume %s", *claim.Spec.StorageClassName, local.Folder(&pv), pv.Status.Phase)
	}

	// The claim waits for its pod, then the volume for its node.
	gone := ctrlclient.GracePeriodSeconds(0)
	if err := c.Client.Delete(t.Context(), claim.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(claim), claim); err != nil {
		t.Fatalf("the claim went under its pod: %v", err)
	}
	if err := c.Client.Delete(t.Context(), pod.DeepCopy(), gone); err != nil {
		t.Fatal(err)
	}
	folder := local.Folder(&pv)
	c.Eventually("the node is told to remove the folder", func() error {
		var node corev1.Node
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: "node-1"}, &node); err != nil {
			return err
		}
		if orders := local.Split(node.Annotations[local.RemoveAnnotation]); !slices.Contains(orders, folder) {
			return fmt.Errorf("its orders are %v", orders)
		}
		return nil
	})
	c.annotate("node-1", map[string]string{local.RemovedAnnotation: folder})
	c.Eventually("the volume goes, and the order with it", func() error {
		var node corev1.Node
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: "node-1"}, &node); err != nil {
			return err
		}
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(&pv), &pv); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there, with %v: %w", pv.Finalizers, err)
		}
		if orders := node.Annotations[local.RemoveAnnotation]; orders != "" {
			return fmt.Errorf("the order %q is left", orders)
		}
		return nil
	})
}

// TestDeletedDefaultClass: the class is made once in a cluster's life.
func TestDeletedDefaultClass(t *testing.T) {
	c := Start(t, Options{})
	var class storagev1.StorageClass
	if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: "local"}, &class); err != nil {
		t.Fatal(err)
	}
	if err := c.Client.Delete(t.Context(), &class); err != nil {
		t.Fatal(err)
	}
	c.Stop()
	again := Start(t, Options{Dir: c.Dir})
	if err := again.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: "local"}, &class); !apierrors.IsNotFound(err) {
		t.Errorf("after a restart: %v, want not found", err)
	}
}
