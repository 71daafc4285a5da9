package volume

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"gantry.dev/gantry/internal/volume/local"
)

// localNode is what the provisioner knows of a node.
type localNode struct {
	name   string
	labels map[string]string
	dir    string // where its volumes lie; empty if it keeps none
	fit    bool   // ready and not cordoned
	count  int    // volumes that it has
}

// refusal says why a claim cannot be provisioned.
type refusal struct {
	note       string
	reschedule bool // another node might do
}

// planLocal returns the volume for a claim of the built-in provisioner, on the node that the
// scheduler has chosen or, if volumes of the class do not wait for it, on the one with the
// fewest. suffix makes its folder's name unlike any other.
func planLocal(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, nodes []localNode, suffix string) (*corev1.PersistentVolume, *refusal) {
	if note := unfit(claim, class); note != "" {
		return nil, &refusal{note: note}
	}
	node, no := pickNode(claim, class, nodes)
	if no != nil {
		return nil, no
	}
	host, ok := node.labels[corev1.LabelHostname]
	if !ok {
		return nil, &refusal{note: fmt.Sprintf("node %q has no label %s", node.name, corev1.LabelHostname), reschedule: true}
	}
	name := "pvc-" + string(claim.UID)
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: name,
			Annotations: map[string]string{
				storagehelpers.AnnBoundByController:      "yes",
				storagehelpers.AnnDynamicallyProvisioned: local.Provisioner,
				local.NodeAnnotation:                     node.name,
			},
			Finalizers: []string{local.Finalizer},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: *claim.Spec.Resources.Requests.Storage()},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: ptr.Deref(class.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete),
			StorageClassName:              class.Name,
			VolumeMode:                    ptr.To(corev1.PersistentVolumeFilesystem),
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: node.dir + "/" + name + "-" + suffix}},
			ClaimRef: &corev1.ObjectReference{
				Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name,
				UID: claim.UID, ResourceVersion: claim.ResourceVersion,
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host}}},
			}}}},
		},
	}, nil
}

// unfit says what a claim or its class asks for that a folder cannot be, or nothing.
func unfit(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) string {
	refused := func(what string) string {
		return fmt.Sprintf("Failed to provision volume with StorageClass %q: %s", class.Name, what)
	}
	switch {
	case claim.Spec.DataSource != nil || claim.Spec.DataSourceRef != nil:
		return fmt.Sprintf("plugin %q is not a CSI plugin. Only CSI plugin can provision a claim with a datasource", local.Provisioner)
	case len(class.MountOptions) > 0:
		return fmt.Sprintf("Mount options are not supported by the provisioner but StorageClass %q has mount options %v", class.Name, class.MountOptions)
	case len(class.Parameters) > 0:
		return refused("local volumes have no parameters")
	case claim.Spec.Selector != nil:
		return refused("a claim with a selector takes only volumes that are there")
	case ptr.Deref(claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) != corev1.PersistentVolumeFilesystem:
		return refused("local volumes are file systems, not block devices")
	case claim.Spec.VolumeAttributesClassName != nil && *claim.Spec.VolumeAttributesClassName != "":
		return refused("local volumes have no attributes")
	case slices.ContainsFunc(claim.Spec.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool {
		return m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod
	}):
		return refused("local volumes are on one node: the access modes ReadWriteOnce and ReadWriteOncePod are possible")
	}
	return ""
}

func pickNode(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, nodes []localNode) (*localNode, *refusal) {
	chosen, named := claim.Annotations[storagehelpers.AnnSelectedNode]
	var best *localNode
	for i := range nodes {
		n := &nodes[i]
		switch {
		case named && n.name != chosen, !named && (!n.fit || n.dir == "" || !allowed(class.AllowedTopologies, n.labels)):
		case best == nil || n.count < best.count || n.count == best.count && n.name < best.name:
			best = n
		}
	}
	switch {
	case best == nil && named:
		return nil, &refusal{note: fmt.Sprintf("Failed to get target node: node %q not found", chosen), reschedule: true}
	case best == nil:
		return nil, &refusal{note: fmt.Sprintf("Failed to provision volume with StorageClass %q: no node is ready to take local volumes", class.Name)}
	case best.dir == "":
		return nil, &refusal{note: fmt.Sprintf("Failed to provision volume with StorageClass %q: node %q keeps no local volumes", class.Name, chosen), reschedule: true}
	case !allowed(class.AllowedTopologies, best.labels):
		return nil, &refusal{note: fmt.Sprintf("Failed to provision volume with StorageClass %q: node %q is not in the allowed topologies", class.Name, chosen), reschedule: true}
	}
	return best, nil
}

// allowed says whether a node with these labels is within the topologies of a class; none means all.
func allowed(terms []corev1.TopologySelectorTerm, have labels.Set) bool {
	if len(terms) == 0 {
		return true
	}
	return slices.ContainsFunc(terms, func(term corev1.TopologySelectorTerm) bool {
		return len(term.MatchLabelExpressions) > 0 && !slices.ContainsFunc(term.MatchLabelExpressions, func(e corev1.TopologySelectorLabelRequirement) bool {
			return !have.Has(e.Key) || !slices.Contains(e.Values, have.Get(e.Key))
		})
	})
}
