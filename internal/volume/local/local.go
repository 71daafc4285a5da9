package local

import (
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Names that storage classes, volumes and nodes carry.
const (
	// Provisioner is the provisioner of storage classes whose volumes are local folders.
	Provisioner = "gantry.dev/local"
	// Finalizer keeps a volume object until its node has removed the data.
	Finalizer = "gantry.dev/local-volume"

	// NodeAnnotation of a volume names the node that has the folder.
	NodeAnnotation = "volumes.gantry.dev/node"
	// ProvisionedBy of a volume names the provisioner that made it (upstream's annotation).
	ProvisionedBy = "pv.kubernetes.io/provisioned-by"

	// DirAnnotation of a node is the absolute path below which its volumes lie. The node writes it.
	DirAnnotation = "volumes.gantry.dev/dir"
	// RemoveAnnotation of a node lists folders that it must remove. The control plane writes it.
	RemoveAnnotation = "volumes.gantry.dev/remove"
	// RemovedAnnotation of a node lists those of RemoveAnnotation that it has no more. The node writes it.
	RemovedAnnotation = "volumes.gantry.dev/removed"
)

// MaxNames is how many folders one annotation lists at most; the others wait for their turn.
// 200 names of 50 bytes are 10 kB of the 256 kB that an object's annotations may have.
const MaxNames = 200

// Ours says whether the built-in provisioner made a volume.
func Ours(pv *corev1.PersistentVolume) bool {
	return pv.Spec.Local != nil && pv.Annotations[ProvisionedBy] == Provisioner
}

// Join writes names as an annotation: sorted, without repetition, at most MaxNames.
func Join(names []string) string {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	return strings.Join(names[:min(len(names), MaxNames)], ",")
}

// Split reads an annotation, leaving out what cannot name a volume's folder.
func Split(annotation string) []string {
	var names []string
	for name := range strings.SplitSeq(annotation, ",") {
		if ValidName(name) && len(names) < MaxNames {
			names = append(names, name)
		}
	}
	return names
}

// ValidName says whether name can be a volume's folder: one path element that is not hidden.
func ValidName(name string) bool {
	return name != "" && len(name) <= 253 && name[0] != '.' && !strings.ContainsAny(name, "/\x00,")
}

// Folder is the name of the folder of one of our volumes, empty if it has none that is valid.
// No two volumes ever have the same, so what a node hears or says of it is never about another.
func Folder(pv *corev1.PersistentVolume) string {
	if !Ours(pv) {
		return ""
	}
	name := filepath.Base(pv.Spec.Local.Path)
	if !ValidName(name) {
		return ""
	}
	return name
}
