package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/volume/local"
)

// bindCompleted is set on a claim whose binding is done (upstream's annotation).
const bindCompleted = "pv.kubernetes.io/bind-completed"

// claim sets up a volume from a claim: its own, or that of a generic ephemeral volume.
func (m *Manager) claim(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (Mounted, error) {
	name, readOnly := pod.Name+"-"+v.Name, false
	if v.PersistentVolumeClaim != nil {
		name, readOnly = v.PersistentVolumeClaim.ClaimName, v.PersistentVolumeClaim.ReadOnly
	}
	if mounted, ok := m.inUse(pod.UID, v.Name); ok {
		return mounted, nil // whatever has become of the claim, the pod's containers have the volume
	}
	claim, err := m.source.Claim(ctx, pod.Namespace, name)
	if err != nil {
		return Mounted{}, fmt.Errorf("error processing PVC %s/%s: failed to fetch PVC from API server: %w", pod.Namespace, name, err)
	}
	if v.Ephemeral != nil && !metav1.IsControlledBy(claim, pod) {
		return Mounted{}, fmt.Errorf("PVC %s/%s was not created for pod %s/%s (pod is not owner)", claim.Namespace, claim.Name, pod.Namespace, pod.Name)
	}
	refused := func(why string) error {
		return fmt.Errorf("error processing PVC %s/%s: %s", pod.Namespace, name, why)
	}
	if _, done := claim.Annotations[bindCompleted]; claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "" || !done {
		return Mounted{}, refused("PVC is not bound")
	}
	pv, err := m.source.Volume(ctx, claim.Spec.VolumeName)
	if err != nil {
		return Mounted{}, fmt.Errorf("error processing PVC %s/%s: failed to fetch PV %s from API server: %w", pod.Namespace, name, claim.Spec.VolumeName, err)
	}
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != claim.UID {
		return Mounted{}, refused(fmt.Sprintf("PV %s is not bound to this PVC", pv.Name))
	}
	there, err := m.isMounted(pod.UID, pv)
	if err != nil {
		return Mounted{}, err
	}
	if claim.DeletionTimestamp != nil && !there {
		return Mounted{}, refused("PVC is being deleted")
	}
	if pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock {
		return Mounted{}, refused("block devices are not supported by the node")
	}
	if err := m.take(pod, pv); err != nil {
		return Mounted{}, err
	}
	mounted, err := m.mountVolume(pod, pv, readOnly, there)
	if err != nil {
		m.letGo(pod.UID, pv.Name)
		return Mounted{}, err
	}
	m.mu.Lock()
	m.mounted[podVolume{pod.UID, v.Name}] = mounted
	m.mu.Unlock()
	return mounted, nil
}

// podVolume names a volume of a pod.
type podVolume struct {
	pod  types.UID
	name string
}

func (m *Manager) inUse(pod types.UID, name string) (Mounted, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mounted, ok := m.mounted[podVolume{pod, name}]
	return mounted, ok
}

// take notes that a pod uses a volume; one that only a single pod may use goes to the first.
func (m *Manager) take(pod *corev1.Pod, pv *corev1.PersistentVolume) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	users := m.users[pv.Name]
	if slices.Contains(pv.Spec.AccessModes, corev1.ReadWriteOncePod) {
		for user := range users {
			if user != pod.UID {
				return errors.New("volume uses the ReadWriteOncePod access mode and is already in use by another pod")
			}
		}
	}
	if users == nil {
		users = map[types.UID]struct{}{}
		m.users[pv.Name] = users
	}
	users[pod.UID] = struct{}{}
	return nil
}

func (m *Manager) letGo(pod types.UID, pv string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.users[pv], pod)
	if len(m.users[pv]) == 0 {
		delete(m.users, pv)
	}
}

// forgetVolumes drops what is known of a pod's volumes from claims.
func (m *Manager) forgetVolumes(pod types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.mounted {
		if key.pod == pod {
			delete(m.mounted, key)
		}
	}
	for pv, users := range m.users {
		delete(users, pod)
		if len(users) == 0 {
			delete(m.users, pv)
		}
	}
}

func (m *Manager) localTarget(pod types.UID, pv *corev1.PersistentVolume) string {
	return m.dir(pod, "local-volume", pv.Name)
}

// isMounted says whether a local volume is mounted for a pod already: an earlier run of the
// agent did so.
func (m *Manager) isMounted(pod types.UID, pv *corev1.PersistentVolume) (bool, error) {
	if pv.Spec.Local == nil {
		return false, nil
	}
	mounted, err := mountinfo.Mounted(m.localTarget(pod, pv))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for the volume's mount: %w", err)
	}
	return mounted, nil
}

// mountVolume makes a persistent volume ready. there says that a local one is mounted already.
func (m *Manager) mountVolume(pod *corev1.Pod, pv *corev1.PersistentVolume, readOnly, there bool) (Mounted, error) {
	switch {
	case pv.Spec.HostPath != nil:
		return Mounted{HostPath: pv.Spec.HostPath.Path, ReadOnly: readOnly}, checkHostPath(pv.Spec.HostPath)
	case pv.Spec.Local == nil:
		return Mounted{}, fmt.Errorf("PersistentVolume %q is a volume of kind %s, which is not supported by the node", pv.Name, sourceKind(pv.Spec.PersistentVolumeSource))
	}
	target := m.localTarget(pod.UID, pv)
	if there {
		return Mounted{HostPath: target, ReadOnly: readOnly}, nil
	}
	path, err := m.localPath(pv)
	if err != nil {
		return Mounted{}, err
	}
	if gid := group(pod); gid != nil && !readOnly {
		if err := giveToGroup(path, *gid, pod.Spec.SecurityContext.FSGroupChangePolicy); err != nil {
			return Mounted{}, fmt.Errorf("applyFSGroup failed for vol %s: %w", pv.Name, err)
		}
	}
	if m.opts.PlainFiles {
		return Mounted{HostPath: path, ReadOnly: readOnly}, nil
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return Mounted{}, fmt.Errorf("making the volume's mount point: %w", err)
	}
	if err := unix.Mount(path, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return Mounted{}, fmt.Errorf("mounting %s: %w", path, err)
	}
	return Mounted{HostPath: target, ReadOnly: readOnly}, nil
}

// localPath is the folder of a local volume. Those of our provisioner are made here, the first
// time that a pod uses them.
func (m *Manager) localPath(pv *corev1.PersistentVolume) (string, error) {
	if !local.Ours(pv) {
		path := pv.Spec.Local.Path
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return "", fmt.Errorf("path %q does not exist", path)
		case err != nil:
			return "", fmt.Errorf("looking at the local volume: %w", err)
		case slices.Contains(strings.Split(path, "/"), ".."):
			return "", fmt.Errorf("local volume %s must not contain '..'", path)
		case !info.IsDir():
			return "", fmt.Errorf("path %q is not a directory", path)
		}
		return path, nil
	}
	if m.folders == nil {
		return "", errors.New("this node keeps no local volumes")
	}
	if node := pv.Annotations[local.NodeAnnotation]; m.opts.NodeName != "" && node != m.opts.NodeName {
		return "", fmt.Errorf("the local volume %q is on node %q", pv.Name, node)
	}
	if pv.DeletionTimestamp != nil {
		return "", fmt.Errorf("the volume is marked for deletion %q", pv.Name)
	}
	return m.folders.Ensure(local.Folder(pv))
}

// sourceKind names the kind of a volume's source, as "nfs".
func sourceKind[S corev1.PersistentVolumeSource | corev1.VolumeSource](source S) string {
	v := reflect.ValueOf(source)
	for i := range v.NumField() {
		if !v.Field(i).IsNil() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			return name
		}
	}
	return "unknown"
}
