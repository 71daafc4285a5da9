package volume

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Mounted is a volume that is ready to be mounted into containers.
type Mounted struct {
	HostPath string
	ReadOnly bool // whatever the container's mount says
}

// Facts answers what only the agent knows of a pod.
type Facts struct {
	Field    func(pod *corev1.Pod, path string) (string, error)
	Resource func(pod *corev1.Pod, ref *corev1.ResourceFieldSelector) (string, error)
}

// Source reads the objects that volumes are made of.
type Source interface {
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	// Token issues a token for the pod's service account, bound to the pod.
	Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (token string, expires time.Time, err error)
	// Roots is the certificate bundle of a ClusterTrustBundle projection's signer or name.
	Roots(ctx context.Context, projection *corev1.ClusterTrustBundleProjection) (string, error)
	Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error)
	Volume(ctx context.Context, name string) (*corev1.PersistentVolume, error)
}

// Options configures a Manager.
type Options struct {
	PodsDir string // required; one folder a pod UID
	// PlainFiles keeps secrets and memory volumes on disk in place of tmpfs, where mounting is
	// not allowed.
	PlainFiles bool
	NodeName   string   // whose local volumes are here; default: not checked
	Folders    *Folders // of local volumes; nil keeps none
}

// Manager makes and removes volumes.
type Manager struct {
	opts    Options
	source  Source
	folders *Folders // nil keeps no local volumes

	mu      sync.Mutex // guards the fields below
	tokens  map[tokenKey]token
	mounted map[podVolume]Mounted             // volumes from claims
	users   map[string]map[types.UID]struct{} // pods that use a persistent volume
}

// New checks opts and returns a Manager.
func New(source Source, opts Options) (*Manager, error) {
	if opts.PodsDir == "" || !filepath.IsAbs(opts.PodsDir) {
		return nil, fmt.Errorf("volume: PodsDir is %q, want an absolute path", opts.PodsDir)
	}
	if source == nil {
		return nil, errors.New("volume: the source is missing")
	}
	return &Manager{
		opts: opts, source: source, folders: opts.Folders, tokens: map[tokenKey]token{},
		mounted: map[podVolume]Mounted{}, users: map[string]map[types.UID]struct{}{},
	}, nil
}

func (m *Manager) podDir(uid types.UID) string { return filepath.Join(m.opts.PodsDir, string(uid)) }

// dir is where a volume of the pod lies, by the kubelet's layout.
func (m *Manager) dir(uid types.UID, plugin, name string) string {
	return filepath.Join(m.podDir(uid), "volumes", "kubernetes.io~"+plugin, name)
}

// SetUp makes the pod's volumes, or brings the content of those that are there up to date.
func (m *Manager) SetUp(ctx context.Context, pod *corev1.Pod, facts Facts) (map[string]Mounted, error) {
	if strings.ContainsAny(string(pod.UID), "/\x00") || pod.UID == "" || pod.UID == "." || pod.UID == ".." {
		return nil, fmt.Errorf("the pod's UID %q cannot name a folder", pod.UID)
	}
	if err := os.MkdirAll(m.podDir(pod.UID), 0o750); err != nil {
		return nil, fmt.Errorf("making the pod's folder: %w", err)
	}
	mounted := make([]Mounted, len(pod.Spec.Volumes))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		group.Go(func() error {
			var err error
			if mounted[i], err = m.setUp(ctx, pod, v, facts); err != nil {
				return fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	byName := make(map[string]Mounted, len(mounted))
	for i := range mounted {
		byName[pod.Spec.Volumes[i].Name] = mounted[i]
	}
	return byName, nil
}

func (m *Manager) setUp(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, facts Facts) (Mounted, error) {
	switch {
	case v.HostPath != nil:
		return Mounted{HostPath: v.HostPath.Path}, checkHostPath(v.HostPath)
	case v.EmptyDir != nil:
		dir := m.dir(pod.UID, "empty-dir", v.Name)
		return Mounted{HostPath: dir}, m.emptyDir(pod, v.EmptyDir, dir)
	case v.ConfigMap != nil:
		dir := m.dir(pod.UID, "configmap", v.Name)
		files, err := m.configMapFiles(ctx, pod.Namespace, v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional, mode(v.ConfigMap.DefaultMode, 0o644))
		return m.content(pod, dir, files, false, err)
	case v.Secret != nil:
		dir := m.dir(pod.UID, "secret", v.Name)
		files, err := m.secretFiles(ctx, pod.Namespace, v.Secret.SecretName, v.Secret.Items, v.Secret.Optional, mode(v.Secret.DefaultMode, 0o644))
		return m.content(pod, dir, files, true, err)
	case v.DownwardAPI != nil:
		dir := m.dir(pod.UID, "downward-api", v.Name)
		files, err := downwardFiles(pod, v.DownwardAPI.Items, mode(v.DownwardAPI.DefaultMode, 0o644), facts)
		return m.content(pod, dir, files, false, err)
	case v.Projected != nil:
		dir := m.dir(pod.UID, "projected", v.Name)
		files, err := m.projectedFiles(ctx, pod, v.Projected, facts)
		return m.content(pod, dir, files, true, err)
	case v.PersistentVolumeClaim != nil, v.Ephemeral != nil:
		return m.claim(ctx, pod, v)
	case v.Image != nil:
		return Mounted{ReadOnly: true}, nil // mounted when a container that has it starts
	default:
		return Mounted{}, fmt.Errorf("volumes of kind %s are not supported by the node", sourceKind(v.VolumeSource))
	}
}

// content writes files as the whole of a volume.
func (m *Manager) content(pod *corev1.Pod, dir string, files map[string]file, memory bool, err error) (Mounted, error) {
	if err != nil {
		// What an earlier run of the node wrote serves until a server answers again.
		if _, unreachable := errors.AsType[*url.Error](err); unreachable && isWritten(dir) {
			return Mounted{HostPath: dir, ReadOnly: true}, nil
		}
		return Mounted{}, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Mounted{}, fmt.Errorf("making the volume's folder: %w", err)
	}
	mode := os.ModeDir | 0o777
	if memory && !m.opts.PlainFiles {
		if err := mountMemory(dir, 0, nil); err != nil {
			return Mounted{}, err
		}
		mode |= os.ModeSticky
	}
	if err := os.Chmod(dir, mode); err != nil {
		return Mounted{}, fmt.Errorf("setting the mode of the volume's folder: %w", err)
	}
	if err := writeAtomic(dir, files, group(pod)); err != nil {
		return Mounted{}, err
	}
	return Mounted{HostPath: dir, ReadOnly: true}, nil
}

// isWritten reports whether a volume of files has its content.
func isWritten(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, dataLink))
	return err == nil
}

// emptyDir makes an empty folder, in memory if it says so. What is there stays as its
// containers have made it.
func (m *Manager) emptyDir(pod *corev1.Pod, source *corev1.EmptyDirVolumeSource, dir string) error {
	if strings.HasPrefix(string(source.Medium), string(corev1.StorageMediumHugePages)) {
		return errors.New("hugepages are not supported as an emptyDir medium by the node")
	}
	if source.Medium != corev1.StorageMediumMemory || m.opts.PlainFiles {
		return makeEmpty(dir, group(pod))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the volume's folder: %w", err)
	}
	size := int64(0)
	if source.SizeLimit != nil {
		size = source.SizeLimit.Value()
	}
	if limit := memoryLimit(pod); limit > 0 && (size == 0 || limit < size) {
		size = limit
	}
	return mountMemory(dir, size, group(pod))
}

// makeEmpty makes a folder with the mode and group of an emptyDir unless it is there. It gets its name
// when it is as it should be, whenever a crash comes.
func makeEmpty(dir string, gid *int64) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	unfinished := dir + "~"
	if err := os.MkdirAll(unfinished, 0o755); err != nil {
		return fmt.Errorf("making the volume's folder: %w", err)
	}
	mode := os.ModeDir | 0o777
	if gid != nil {
		if err := os.Chown(unfinished, -1, int(*gid)); err != nil {
			return fmt.Errorf("giving the volume to its group: %w", err)
		}
		mode |= os.ModeSetgid
	}
	if err := os.Chmod(unfinished, mode); err != nil {
		return fmt.Errorf("setting the mode of the volume's folder: %w", err)
	}
	if err := os.Rename(unfinished, dir); err != nil {
		return fmt.Errorf("naming the volume's folder: %w", err)
	}
	return nil
}

// memoryLimit is the sum of the containers' memory limits, 0 when one has none: what a memory
// volume may take at most.
func memoryLimit(pod *corev1.Pod) int64 {
	total := int64(0)
	for i := range pod.Spec.Containers {
		limit := pod.Spec.Containers[i].Resources.Limits.Memory().Value()
		if limit == 0 {
			return 0
		}
		total += limit
	}
	return total
}

// group is the pod's fsGroup.
func group(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

func mode(m *int32, fallback int32) int32 {
	if m == nil {
		return fallback
	}
	return *m
}

// Pods lists the pods that have a folder.
func (m *Manager) Pods() ([]types.UID, error) {
	entries, err := os.ReadDir(m.opts.PodsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the pods' folders: %w", err)
	}
	var uids []types.UID
	for _, e := range entries {
		if e.IsDir() {
			uids = append(uids, types.UID(e.Name()))
		}
	}
	return uids, nil
}
