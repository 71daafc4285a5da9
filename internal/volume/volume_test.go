//go:build linux

package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// source is a Source in memory.
type source struct {
	configMaps map[string]map[string]string
	secrets    map[string]map[string]string
	tokens     int
	tokenError error
	life       time.Duration
	claims     map[string]*corev1.PersistentVolumeClaim
	volumes    map[string]*corev1.PersistentVolume
}

func (s *source) ConfigMap(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
	data, ok := s.configMaps[name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
	}
	return &corev1.ConfigMap{Data: data}, nil
}

func (s *source) Secret(_ context.Context, _, name string) (*corev1.Secret, error) {
	data, ok := s.secrets[name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
	}
	secret := &corev1.Secret{Data: map[string][]byte{}}
	for k, v := range data {
		secret.Data[k] = []byte(v)
	}
	return secret, nil
}

func (s *source) Token(context.Context, *corev1.Pod, string, int64) (string, time.Time, error) {
	s.tokens++
	return "token-" + string(rune('0'+s.tokens)), time.Now().Add(s.life), s.tokenError
}

func (s *source) Roots(context.Context, *corev1.ClusterTrustBundleProjection) (string, error) {
	return "", nil
}

func (s *source) Claim(_ context.Context, _, name string) (*corev1.PersistentVolumeClaim, error) {
	claim, ok := s.claims[name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "persistentvolumeclaims"}, name)
	}
	return claim, nil
}

func (s *source) Volume(_ context.Context, name string) (*corev1.PersistentVolume, error) {
	pv, ok := s.volumes[name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "persistentvolumes"}, name)
	}
	return pv, nil
}

func newManager(t *testing.T, s *source) *Manager {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	if s.life == 0 {
		s.life = time.Hour
	}
	// A file system of the test's own: a mistake cannot reach anything else.
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	folders, err := NewFolders(filepath.Join(root, "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(s, Options{PodsDir: filepath.Join(root, "pods"), NodeName: "n1", Folders: folders})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func podWith(volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "uid-1", Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Volumes: volumes, Containers: []corev1.Container{{Name: "main"}}},
	}
}

var facts = Facts{
	Field:    func(pod *corev1.Pod, path string) (string, error) { return pod.Name + " " + path, nil },
	Resource: func(*corev1.Pod, *corev1.ResourceFieldSelector) (string, error) { return "1", nil },
}

func setUp(t *testing.T, m *Manager, pod *corev1.Pod) map[string]Mounted {
	t.Helper()
	mounted, err := m.SetUp(t.Context(), pod, facts)
	if err != nil {
		t.Fatal(err)
	}
	return mounted
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func configMapVolume(name string, items ...corev1.KeyToPath) corev1.Volume {
	return corev1.Volume{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: items,
	}}}
}

func TestConfigMapIsUpdatedAtomically(t *testing.T) {
	s := &source{configMaps: map[string]map[string]string{"conf": {"a": "1", "b": "2"}}}
	m := newManager(t, s)
	pod := podWith(configMapVolume("conf"))
	dir := setUp(t, m, pod)["conf"].HostPath
	first, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil || read(t, filepath.Join(dir, "a")) != "1" {
		t.Fatalf("link %s, %v", first, err)
	}
	setUp(t, m, pod)
	if same, _ := os.Readlink(filepath.Join(dir, "..data")); same != first {
		t.Error("unchanged content was written again")
	}
	s.configMaps["conf"] = map[string]string{"a": "new", "c": "3"}
	setUp(t, m, pod)
	if read(t, filepath.Join(dir, "a")) != "new" || read(t, filepath.Join(dir, "c")) != "3" {
		t.Error("the new content is not there")
	}
	if _, err := os.Lstat(filepath.Join(dir, "b")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a removed key is still there")
	}
	if _, err := os.Stat(filepath.Join(dir, first)); !errors.Is(err, os.ErrNotExist) {
		t.Error("the old content is still there")
	}
}

func TestItemsModesAndGroup(t *testing.T) {
	mode := int32(0o400)
	gid := int64(2000)
	s := &source{configMaps: map[string]map[string]string{"conf": {"a": "1", "b": "2"}}}
	m := newManager(t, s)
	pod := podWith(configMapVolume("conf", corev1.KeyToPath{Key: "a", Path: "deep/er/x", Mode: &mode}))
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &gid}
	dir := setUp(t, m, pod)["conf"].HostPath
	var stat unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "deep/er/x"), &stat); err != nil {
		t.Fatal(err)
	}
	if stat.Gid != 2000 || stat.Mode&0o777 != 0o440 {
		t.Errorf("file has group %d and mode %o, want 2000 and 440", stat.Gid, stat.Mode&0o777)
	}
	if _, err := os.Stat(filepath.Join(dir, "b")); err == nil {
		t.Error("a key that no item names is there")
	}
}

func TestMissingSources(t *testing.T) {
	m := newManager(t, &source{configMaps: map[string]map[string]string{"conf": {}}})
	if _, err := m.SetUp(t.Context(), podWith(configMapVolume("none")), facts); err == nil || !strings.Contains(err.Error(), `MountVolume.SetUp failed for volume "conf" : configmaps "none" not found`) {
		t.Errorf("error is %v", err)
	}
	if _, err := m.SetUp(t.Context(), podWith(configMapVolume("conf", corev1.KeyToPath{Key: "x", Path: "x"})), facts); err == nil || !strings.Contains(err.Error(), "configmap references non-existent configmap key: x") {
		t.Errorf("error is %v", err)
	}
	optional := true
	v := configMapVolume("none")
	v.ConfigMap.Optional = &optional
	setUp(t, m, podWith(v))
}

func TestProjectedToken(t *testing.T) {
	s := &source{secrets: map[string]map[string]string{"s": {"k": "v"}}, configMaps: map[string]map[string]string{"ca": {"ca.crt": "CA"}}}
	m := newManager(t, s)
	pod := podWith(corev1.Volume{Name: "api", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "ca"}}},
		{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}}}}},
	}}}})
	dir := setUp(t, m, pod)["api"].HostPath
	for name, want := range map[string]string{"token": "token-1", "ca.crt": "CA", "k": "v", "namespace": "web metadata.namespace"} {
		if got := read(t, filepath.Join(dir, name)); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	setUp(t, m, pod)
	if s.tokens != 1 {
		t.Errorf("a fresh token was renewed: %d requests", s.tokens)
	}
	key := tokenKey{pod.UID, "", 3600}
	old := m.tokens[key]
	old.issued = old.issued.Add(-50 * time.Minute)
	old.expires = old.expires.Add(-50 * time.Minute)
	m.tokens[key] = old
	setUp(t, m, pod)
	if got := read(t, filepath.Join(dir, "token")); got != "token-2" {
		t.Errorf("an old token was not renewed: %q", got)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Errorf("the token is not in memory: %v", err)
	}
}

func TestEmptyDir(t *testing.T) {
	m := newManager(t, &source{})
	size := resource.MustParse("1Mi")
	pod := podWith(
		corev1.Volume{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		corev1.Volume{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}}},
	)
	mounted := setUp(t, m, pod)
	for _, name := range []string{"disk", "memory"} {
		if err := os.WriteFile(filepath.Join(mounted[name].HostPath, "f"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]os.FileMode{"disk": 0o777, "memory": 0o777 | os.ModeSticky} {
		info, err := os.Stat(mounted[name].HostPath)
		if err != nil || info.Mode()&^os.ModeDir != want {
			t.Errorf("%s has mode %v, %v; want %v", name, info.Mode(), err, want)
		}
		if err := os.Chmod(mounted[name].HostPath, 0o700); err != nil { // as a container may
			t.Fatal(err)
		}
	}
	setUp(t, m, pod)
	if read(t, filepath.Join(mounted["memory"].HostPath, "f")) != "x" {
		t.Error("a second SetUp emptied the volume")
	}
	for _, name := range []string{"disk", "memory"} {
		if info, err := os.Stat(mounted[name].HostPath); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("a second SetUp changed the mode of %s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := os.WriteFile(filepath.Join(mounted["memory"].HostPath, "big"), make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more than the size limit could be written: %v", err)
	}
	if err := m.TearDown(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if left, _ := m.Pods(); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestSubPathCannotEscape(t *testing.T) {
	m := newManager(t, &source{})
	pod := podWith(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	root := setUp(t, m, pod)["v"].HostPath
	for link, target := range map[string]string{"absolute": "/etc", "relative": "../../../../../..", "hidden": "inner/../../..", "magic": "/proc/self/root"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{link, link + "/deeper"} {
			if got, err := m.SubPath(pod.UID, SubPath{Volume: "v", Root: root, Path: path, Container: "main"}); err == nil {
				t.Errorf("subPath %s was allowed: %s", path, got)
			}
		}
	}
	if err := os.Mkdir(filepath.Join(root, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(root, "inside")); err != nil {
		t.Fatal(err)
	}
	for i, path := range []string{"inside", "new/folder"} {
		got, err := m.SubPath(pod.UID, SubPath{Volume: "v", Root: root, Path: path, Container: "main", Index: i})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(got, "f"), []byte(path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, filepath.Join(root, "real/f")) != "inside" || read(t, filepath.Join(root, "new/folder/f")) != "new/folder" {
		t.Error("a subPath is not the folder in the volume")
	}
	if err := m.TearDown(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
}

func TestTearDownKeepsWhatIsNotThePods(t *testing.T) {
	m := newManager(t, &source{})
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "precious"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := podWith(
		corev1.Volume{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: outside}}},
		corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	)
	mounted := setUp(t, m, pod)
	if _, err := m.SubPath(pod.UID, SubPath{Volume: "host", Root: outside, Path: ".", Container: "main"}); err != nil {
		t.Fatal(err)
	}
	inner := filepath.Join(mounted["v"].HostPath, "foreign")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 { // mounted twice over itself
		if err := unix.Mount(outside, inner, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(mounted["v"].HostPath, "link")); err != nil {
		t.Fatal(err)
	}
	if err := m.TearDown(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if read(t, filepath.Join(outside, "precious")) != "x" {
		t.Error("a file outside the pod's folder is gone")
	}
	if err := m.TearDown(t.Context(), ".."); err == nil {
		t.Error("a UID that leads out of the folder was accepted")
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		kind corev1.HostPathType
		path string
		want string
	}{
		"unset":          {corev1.HostPathUnset, filepath.Join(dir, "none"), ""},
		"directory":      {corev1.HostPathDirectory, dir, ""},
		"no directory":   {corev1.HostPathDirectory, file, "is not a directory"},
		"file":           {corev1.HostPathFile, file, ""},
		"no file":        {corev1.HostPathFile, dir, "is not a file"},
		"made directory": {corev1.HostPathDirectoryOrCreate, filepath.Join(dir, "new/er"), ""},
		"made file":      {corev1.HostPathFileOrCreate, filepath.Join(dir, "made"), ""},
		"socket":         {corev1.HostPathSocket, file, "is not a socket file"},
		"device":         {corev1.HostPathCharDev, "/dev/null", ""},
		"backsteps":      {corev1.HostPathUnset, "/a/../b", "must not contain '..'"},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkHostPath(&corev1.HostPathVolumeSource{Path: tc.path, Type: &tc.kind})
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("checkHostPath = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestPathsInContent(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", "/abs", "../up", "a/../../b", "..data"} {
		if err := writeAtomic(dir, map[string]file{name: {}}, nil); err == nil {
			t.Errorf("path %q was accepted", name)
		}
	}
	entries, _ := os.ReadDir(dir)
	if slices.ContainsFunc(entries, func(os.DirEntry) bool { return true }) {
		t.Error("a refused write left something behind")
	}
}
