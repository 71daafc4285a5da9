package render

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
)

// defaultVolumeBytes is the size of a volume that says none.
const defaultVolumeBytes = 1 << 30

// ClaimName is the name of the claim of a volume.
func ClaimName(app, volume string) string { return app + "-" + volume }

// claims are the claims of all volumes. They belong to nobody: deleting an App by hand leaves its data.
func (in Input) claims() []*corev1.PersistentVolumeClaim {
	sizes := map[string]resource.Quantity{}
	for name, version := range in.Processes {
		for _, volume := range Processes(version.Content)[name].Volumes {
			size := *resource.NewQuantity(defaultVolumeBytes, resource.BinarySI)
			if volume.Size != nil {
				size = *volume.Size
			}
			if known, ok := sizes[volume.Name]; !ok || known.Cmp(size) < 0 {
				sizes[volume.Name] = size
			}
		}
	}
	var out []*corev1.PersistentVolumeClaim
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		meta := in.meta(ClaimName(in.App.Name, name), "")
		meta.OwnerReferences = nil
		out = append(out, &corev1.PersistentVolumeClaim{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
			ObjectMeta: meta,
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: sizes[name]}},
			},
		})
	}
	return out
}

// mountVolumes puts the volumes of a process into its pod.
func mountVolumes(app string, spec *corev1.PodSpec, c *corev1.Container, process v1alpha1.Process) {
	known := map[string]bool{}
	for _, path := range slices.Sorted(maps.Keys(process.Volumes)) {
		volume := process.Volumes[path]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volume.Name, MountPath: path})
		if known[volume.Name] {
			continue
		}
		known[volume.Name] = true
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: volume.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: ClaimName(app, volume.Name)},
		}})
	}
}

// Account is the account of an application's pods. It has no rights, and no token of it is mounted.
func Account(app *v1alpha1.App) *corev1.ServiceAccount { return Input{App: app}.serviceAccount() }

func (in Input) serviceAccount() *corev1.ServiceAccount {
	return &corev1.ServiceAccount{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
		ObjectMeta: in.meta(in.App.Name, ""), AutomountServiceAccountToken: new(false),
	}
}
